"""SIGKILL of whole commands, from their own start: what the forked victims of the other tests spare themselves."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.console import backstay
from tests.crash.aftermath import after_a_crash
from tests.crash.scenes import SCENES
from tests.crash.stages import Stage, disks, set_up

COMMANDS = {
    "backup": ("disk", "backup", "IMAGE", "--name", "new"),
    "expire": ("expire", "POINT", "--yes"),
    "hold": ("hold", "POINT", "--reason", "court"),
    "verify": ("verify",),
    "rebuild": ("catalog", "rebuild"),
}
KILLS = (
    ("backup", "pack.sealed"),
    ("backup", "commit.manifest_written"),
    ("backup", "commit.catalog_noted"),
    ("expire", "expire.marked"),
    ("expire", "expire.manifest_removed"),
    ("hold", "blob.linked"),
    ("verify", "verify.recorded"),
    ("rebuild", "rebuild.index_removed"),
    ("rebuild", "catalog.created"),
)


@pytest.mark.parametrize(("command", "point"), KILLS)
def test_a_command_that_is_killed_harms_no_restore_point(trials: Path, command: str, point: str) -> None:
    stage: Stage = set_up(trials / "repo")
    image = trials / "image"
    image.write_bytes(disks()["new"])
    words = {"IMAGE": str(image), "POINT": min(stage.going)}
    arguments = [words.get(word, word) for word in COMMANDS[command]]
    ran = backstay(
        *arguments,
        "--repo",
        stage.location,
        home=trials,
        env={"BACKSTAY_FAILPOINT": point},
        expect=-signal.SIGKILL,
    )
    assert not ran.out
    scene = SCENES["full"] if command == "backup" else SCENES["expire" if command == "expire" else "marks"]
    committed = point in ("commit.manifest_written", "commit.catalog_noted")
    after_a_crash(stage.location, stage, scene, least=committed, most=committed)
