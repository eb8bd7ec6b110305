"""A power cut at any moment: what was not synced is dropped, reordered or torn, and no acknowledged word is broken.

Every write, sync, rename, link and removal of a real process is recorded, DuckDB's in catalog and state included.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.powerloss import Cut, after_a_cut, cuts, digest, left
from tests.crash.recording import Recording, python, record
from tests.crash.scenes import SCENES
from tests.crash.stages import Stage, fresh_copy

RECORDED = (
    "hinted", "hinted-encrypted", "many-packs", "marks", "expire", "reclaim", "reclaim-in-phases", "copy",
    "key-rotated", "rebuild", "verify", "open-spoilt-catalog", "open-nothing-derived", "open-half-expired", "engine",
)  # fmt: skip
STATES = 17
"""Different states that are looked at for each scene."""


def played(name: str, stages: dict[str, Stage], folder: Path) -> tuple[Recording, Stage]:
    """A scene's recording, and the stage that it was played on."""
    scene = SCENES.get(name)
    stage = stages[scene.kind if scene else "plain"]
    fresh_copy(stage, folder / "repo", scene.prepare if scene else None)
    return record(python("tests.crash.recorded", name, str(folder)), folder), stage


def different(recording: Recording, seeds: range, most: int) -> list[Cut]:
    """Cuts that leave different states, spread over the whole recording and all ways."""
    first: dict[bytes, Cut] = {}
    for cut in cuts(recording, seeds):
        first.setdefault(digest(left(recording, cut)), cut)
    found = list(first.values())
    return found if len(found) <= most else [found[at * len(found) // most] for at in range(most)]


@pytest.mark.parametrize("name", RECORDED)
def test_a_power_cut_at_any_moment_breaks_no_acknowledged_word(
    trials: Path, stages: dict[str, Stage], name: str
) -> None:
    (trials / "recorded").mkdir()
    recording, stage = played(name, stages, trials / "recorded")
    chosen = different(recording, range(2), STATES)
    assert len(chosen) == STATES
    for number, cut in enumerate(chosen):
        try:
            after_a_cut(recording, cut, stage, SCENES.get(name), trials / f"cut-{cut}", thorough=number % 4 == 0)
        except BaseException as error:
            error.add_note(f"cut {cut}; again: python -m tests.crash.soak --cut {name}/{cut}")
            raise


def test_the_model_leaves_what_is_there_when_everything_survives(trials: Path, stages: dict[str, Stage]) -> None:
    folder = trials / "recorded"
    folder.mkdir()
    recording, _ = played("reclaim", stages, folder)
    found = left(recording, Cut(len(recording.operations), "all"))
    there = {path: None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}
    assert found == {str(path.relative_to(folder)): data for path, data in there.items()}


def test_what_was_not_synced_may_be_gone_and_a_name_may_outlive_its_content(trials: Path) -> None:
    folder = trials / "small"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "(folder / 'new').write_bytes(b'n' * 2000)\n"
        "(folder / 'new').replace(folder / 'old')\n"
        "fd = os.open(folder, os.O_RDONLY)\n"
        "os.fsync(fd)\n"
    )
    (trials / "script.py").write_text(script)
    recording = record([*python()[:1], str(trials / "script.py"), str(folder)], folder)
    states = {frozenset(left(recording, cut).items()) for cut in cuts(recording, range(20))}
    names = {name: data for name, data in left(recording, Cut(len(recording.operations), "none")).items()}
    assert names == {"old": b""}, "the name is synced, the content is not"
    assert frozenset({("old", b"old")}) in states
    assert frozenset({("old", b"n" * 2000)}) in states
    assert frozenset({("old", b"n" * 512)}) in states or frozenset({("old", b"n" * 1024)}) in states
    assert not any(len(state) == 0 for state in states), "a rename happens as one"
