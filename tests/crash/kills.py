"""SIGKILL at named points: which there are, and what one of them comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.crash.aftermath import after_a_crash, again
from tests.crash.scenes import Scene
from tests.crash.stages import Stage, clear, fresh_copy
from tests.crash.victim import Victims

MANIFEST = ("commit.packs_sealed", "commit.manifest_written")
"""Before its first no restore point may be seen, after its second it must be."""

POLICIES_DIE = ("policies.written", "policies.accepted")
"""Where `tests/acceptance/test_nothing_is_lost.py` kills an engine that is told to apply policies."""


def chosen(passed: Mapping[str, Sequence[str]], times: int = 3) -> dict[str, list[str]]:
    """By scene, the first and the last passing of each failpoint, as `name:n`; each in so many scenes only.

    No scene is left out.
    """
    taken: Counter[tuple[str, bool]] = Counter()
    points: dict[str, list[str]] = {}
    for scene, names in passed.items():
        mine = points[scene] = []
        for name in dict.fromkeys(names):
            for nth in sorted({1, names.count(name)}):
                if taken[name, nth == 1] < times:
                    taken[name, nth == 1] += 1
                    mine.append(f"{name}:{nth}")
        if not mine:
            mine += every(names)[len(set(names)) // 2 :][:2]
    return points


def every(passed: Sequence[str]) -> list[str]:
    """Every passing of each failpoint."""
    return [f"{name}:{n}" for name in dict.fromkeys(passed) for n in range(1, passed.count(name) + 1)]


def kill(victims: Victims, stage: Stage, scene: Scene, point: str, location: Path) -> bool:
    """Play a scene on a copy of the stage, killed at a point, and look at what is left; False if it was not reached."""
    killed = _look_after(victims, stage, scene, location, point=point)
    if point.endswith(":1") and not scene.made and scene.after is None:
        again(location, stage, scene)
    clear(location)
    return killed


def kill_after(victims: Victims, stage: Stage, scene: Scene, seconds: float, location: Path) -> bool:
    """The same with a kill from outside at some time; False if the scene had ended before."""
    killed = _look_after(victims, stage, scene, location, seconds=seconds)
    clear(location)
    return killed


def _look_after(
    victims: Victims, stage: Stage, scene: Scene, location: Path, *, point: str = "", seconds: float | None = None
) -> bool:
    fresh_copy(stage, location, scene.prepare)
    life = victims.play(scene.name, location, point, seconds=seconds)
    least, most = (life.passed.count(name) for name in reversed(MANIFEST))
    if not life.killed:
        assert least == most == len(scene.made)
    after_a_crash(location, stage, scene, least=least, most=most)
    return life.killed
