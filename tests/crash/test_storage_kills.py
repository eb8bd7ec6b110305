"""SIGKILL at named points: the repository opens by itself, and every older restore point is as it was.

Each kill is a real process and a real SIGKILL; the processes are forked from a warmed one, as a start takes long.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.crash.keeping import KEEPER_DIES
from tests.crash.kills import POLICIES_DIE, chosen, kill
from tests.crash.objects import OBJECT_KILLS
from tests.crash.scenes import SCENES, Scene
from tests.crash.stages import Stage, fresh_copy
from tests.crash.victim import Victims
from tests.damage_kit import in_memory

ELSEWHERE = {
    point.partition(":")[0] for point in (*KEEPER_DIES, *POLICIES_DIE, *(point for _, point, _ in OBJECT_KILLS))
}
"""Where `test_keeper_kills`, `test_object_kills` and engines are killed, in processes that these scenes do not have."""

ROOT = Path(__file__).parents[2]
PACKAGES = ("connectors", "engine", "metrics", "policies", "storage")
POINT = re.compile(r'\bfailpoint\((?:"([a-z_.]+)"\)|(?!name: ))')
"""A point, or a call whose name nobody can read here."""


@pytest.fixture(scope="module")
def passed(victims: Victims, stages: dict[str, Stage]) -> dict[str, list[str]]:
    """The failpoints that each scene reaches, in order."""
    with in_memory() as folder:
        return {
            scene.name: list(
                victims.play(scene.name, fresh_copy(stages[scene.kind], folder / scene.name, scene.prepare)).passed
            )
            for scene in SCENES.values()
        }


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_a_process_killed_at_any_step_harms_no_restore_point(
    trials: Path, victims: Victims, stages: dict[str, Stage], passed: dict[str, list[str]], scene: Scene
) -> None:
    for point in chosen(passed)[scene.name]:
        name, _, nth = point.partition(":")
        # How often a point is passed may depend on how threads meet: on how many packs the catalog is told of at once.
        assert any(_killed(trials, victims, stages, scene, f"{name}:{n}") for n in range(int(nth), 0, -1)), point


def _killed(trials: Path, victims: Victims, stages: dict[str, Stage], scene: Scene, point: str) -> bool:
    try:
        return kill(victims, stages[scene.kind], scene, point, trials / "trial")
    except BaseException as error:
        error.add_note(f"killed at {point}; again: python -m tests.crash.soak --kill {scene.name}/{point}")
        raise


def test_there_are_at_least_120_kills_and_every_failpoint_in_the_code_is_among_them(
    passed: dict[str, list[str]],
) -> None:
    points = {(scene, point) for scene, points in chosen(passed).items() for point in points}
    assert len(points) >= 120
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    written = {name for path in modules for name in POINT.findall(path.read_text(encoding="utf-8"))}
    killed = {point.partition(":")[0] for _, point in points} | ELSEWHERE
    assert len(written) > 40
    assert "" not in written, "name failpoints in place, so that this test can find them"
    assert not written - killed, "play a scene that passes these, in tests/crash/scenes.py, and say in docs/crash.md"
    assert not killed - written, "these are no more"


def test_the_crash_document_has_every_failpoint_in_the_code() -> None:
    told = set(re.findall(r"`([a-z]+\.[a-z_]+)`", (ROOT / "docs/crash.md").read_text(encoding="utf-8")))
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    written = {name for path in modules for name in POINT.findall(path.read_text(encoding="utf-8"))}
    assert not written - told
