"""SIGKILL at named points: the repository opens by itself, and every older restore point is as it was.

Each kill is a real process and a real SIGKILL; the processes are forked from a warmed one, as a start takes long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.kills import chosen, kill
from tests.crash.scenes import KINDS, SCENES, Scene, Stage, fresh_copy, set_up
from tests.crash.victim import Victims

ELSEWHERE = ("keeper.", "commit.packs_locked")
"""Points of another process than the one that is killed here, and one that needs a store with Object Lock."""

POINT = re.compile(r'failpoint\("([a-z_.]+)"\)')


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims() as victims:
        yield victims


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("stages")
    return {kind: set_up(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def passed(
    victims: Victims, stages: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The failpoints that each scene reaches, in order."""
    folder = tmp_path_factory.mktemp("counted")
    return {
        scene.name: victims.passed(scene.name, fresh_copy(stages[scene.kind], folder / scene.name, scene.prepare))
        for scene in SCENES.values()
    }


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_process_killed_at_any_step_harms_no_restore_point(
    tmp_path: Path, victims: Victims, stages: dict[str, Stage], passed: dict[str, list[str]], scene: Scene
) -> None:
    for point in chosen(passed)[scene.name]:
        try:
            died = kill(victims, stages[scene.kind], scene, point, passed[scene.name], tmp_path / "trial")
        except BaseException as error:
            error.add_note(f"killed at {point}; again: python -m tests.crash.soak --kill {scene.name}/{point}")
            raise
        assert died, f"{point} was not reached"


def test_there_are_at_least_120_kills_and_every_failpoint_is_among_them(passed: dict[str, list[str]]) -> None:
    assert sum(map(len, chosen(passed).values())) >= 120
    written = {name for path in Path("storage").glob("*.py") for name in POINT.findall(path.read_text())}
    reached = {name for names in passed.values() for name in names}
    assert not [name for name in sorted(written - reached) if not name.startswith(ELSEWHERE)]
