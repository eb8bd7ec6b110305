"""Crashes for as long as they are wanted: `python -m tests.crash.soak`.

Every passing of every failpoint, kills at random moments, every fault of every kind at every call, and power cuts at
every moment, until each part has had its number or its time. A line tells of progress every ten seconds; a case that
fails is printed with what plays it again. It ends with 1 when there was one.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.faults import (
    count_calls,
    fault_of,
    faults,
    injected,
    system_call_fails,
    system_faults,
)
from tests.crash.kills import every, kill, kill_after
from tests.crash.powerloss import Cut, after_a_cut, cuts, digest, left
from tests.crash.recording import Recording, python, record
from tests.crash.scenes import SCENES, Scene
from tests.crash.stages import KINDS, Stage, clear, fresh_copy, set_up
from tests.crash.victim import Victims

Case = tuple[str, Callable[[Path], object]]
"""What plays it again, and the case itself, to be called with a new place."""

PARTS = ("kills", "faults", "cuts")


class Soak:
    """One run: its stages, its victims, its figures."""

    def __init__(self, folder: Path, victims: Victims, seed: int) -> None:
        self.folder = folder
        self.victims = victims
        self.seed = seed
        self.stages: dict[str, Stage] = {kind: set_up(folder / f"stage-{kind}", kind) for kind in KINDS}
        self.passed: dict[str, list[str]] = {}
        self.recordings: dict[str, Recording] = {}
        self.done: Counter[str] = Counter()
        self.not_reached: Counter[str] = Counter()
        self.failed: list[str] = []
        self._started = self._told = time.monotonic()

    def stage(self, scene: Scene) -> Stage:
        """The stage that a scene is played on."""
        return self.stages[scene.kind]

    def count(self, scene: Scene) -> list[str]:
        """The failpoints that a scene reaches; played once."""
        if scene.name not in self.passed:
            location = fresh_copy(self.stage(scene), self.folder / "counted", scene.prepare)
            self.passed[scene.name] = self.victims.passed(scene.name, location)
            clear(location)
        return self.passed[scene.name]

    def recording(self, name: str) -> tuple[Recording, Stage]:
        """What a scene writes; played once."""
        scene = SCENES.get(name)
        stage = self.stages[scene.kind if scene else "plain"]
        if name not in self.recordings:
            root = self.folder / f"recorded-{name}"
            root.mkdir()
            fresh_copy(stage, root / "repo", scene.prepare if scene else None)
            self.recordings[name] = record(python("tests.crash.recorded", name, str(root)), root)
        return self.recordings[name], stage

    def run(self, part: str, cases: Iterator[Case], most: int, until: float) -> None:
        """Play cases until there are so many, no more, or no time."""
        for number, (again, play) in enumerate(cases):
            if number >= most or time.monotonic() > until:
                break
            location = self.folder / "trial"
            try:
                reached = play(location)
            except Exception:
                clear(location)
                self.failed.append(again)
                print(f"FAILED {part}: python -m tests.crash.soak --seed {self.seed} {again}", flush=True)
                traceback.print_exc()
            else:
                (self.not_reached if reached is False else self.done)[part] += 1
            self.tell(part)
        self.tell(part, now=True)

    def tell(self, part: str, *, now: bool = False) -> None:
        """A line of progress."""
        if now or time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            figures = ", ".join(f"{self.done[name]} {name}" for name in PARTS)
            spent = self._told - self._started
            print(f"{spent:6.0f} s  {part}: {figures}, {len(self.failed)} failed", flush=True)

    # --- the cases ---

    def named_kills(self) -> Iterator[Case]:
        """Every passing of every failpoint in every scene, in a random order."""
        found = [(scene, point) for scene in SCENES.values() for point in every(self.count(scene))]
        random.Random(self.seed).shuffle(found)
        for scene, point in found:
            yield f"--kill {scene.name}/{point}", self.kill(scene, point)

    def kill(self, scene: Scene, point: str) -> Callable[[Path], object]:
        """One kill at a failpoint."""
        return lambda at: kill(self.victims, self.stage(scene), scene, point, self.count(scene), at)

    def random_kills(self) -> Iterator[Case]:
        """Kills at random moments, for ever."""
        chance = random.Random(self.seed)
        while True:
            scene = chance.choice(list(SCENES.values()))
            seconds = chance.uniform(0.002, 0.25)
            yield f"--kill {scene.name}/{seconds:.4f}", self.kill_after(scene, seconds)

    def kill_after(self, scene: Scene, seconds: float) -> Callable[[Path], object]:
        """One kill after a time."""
        return lambda at: kill_after(self.victims, self.stage(scene), scene, seconds, at)

    def all_faults(self) -> Iterator[Case]:
        """Every kind of fault at every call to the store and beneath, spread over the scenes."""
        found: list[tuple[str, Scene, str]] = []
        for scene in SCENES.values():
            for reads in (False, True) if scene.own_store else ():
                for nth in range(1, self._calls(scene, reads=reads) + 1):
                    found += [("fault", scene, str(fault)) for fault in faults(nth, reads=reads)]
            for nth in range(1, self._calls(scene, beneath=True) + 1):
                found += [("system-call", scene, str(fault)) for fault in system_faults(nth)]
        print(f"         {len(found)} faults are possible", flush=True)
        random.Random(self.seed).shuffle(found)
        for what, scene, fault in found:
            yield f"--{what} {scene.name}/{fault}", self.fault(what, scene, fault)

    def fault(self, what: str, scene: Scene, fault: str) -> Callable[[Path], object]:
        """One injected fault."""
        play = injected if what == "fault" else system_call_fails
        return lambda at: play(self.stage(scene), scene, fault_of(fault), at, thorough=True)

    def _calls(self, scene: Scene, *, reads: bool = False, beneath: bool = False) -> int:
        location = fresh_copy(self.stage(scene), self.folder / "counted", scene.prepare)
        try:
            return count_calls(scene, location, reads=reads, beneath=beneath)
        finally:
            clear(location)

    def all_cuts(self) -> Iterator[Case]:
        """Power cuts at every moment of every scene, in more and more random ways; each state once."""
        seen: set[bytes] = set()
        for generation in range(1000):
            found = []
            for name in (*SCENES, "engine"):
                recording, _ = self.recording(name)
                some = range(self.seed + 4 * generation, self.seed + 4 * generation + 4)
                found += [(name, cut) for cut in cuts(recording, some) if generation == 0 or cut.way.isdigit()]
            random.Random(self.seed + generation).shuffle(found)
            for name, cut in found:
                state = digest(left(self.recording(name)[0], cut))
                if state not in seen:
                    seen.add(state)
                    yield f"--cut {name}/{cut}", self.cut(name, cut)

    def cut(self, name: str, cut: Cut) -> Callable[[Path], object]:
        """One power cut."""

        def play(at: Path) -> None:
            recording, stage = self.recording(name)
            after_a_cut(recording, cut, stage, SCENES.get(name), at, thorough=True)

        return play


def _one(soak: Soak, arguments: argparse.Namespace) -> Case:
    name, _, rest = (arguments.kill or arguments.fault or arguments.system_call or arguments.cut).partition("/")
    if arguments.cut:
        at, _, way = rest.partition("-")
        return f"--cut {name}/{rest}", soak.cut(name, Cut(int(at), way))
    scene = SCENES[name]
    if arguments.kill and rest.replace(".", "", 1).isdigit():
        return f"--kill {name}/{rest}", soak.kill_after(scene, float(rest))
    if arguments.kill:
        return f"--kill {name}/{rest}", soak.kill(scene, rest)
    what = "fault" if arguments.fault else "system-call"
    return f"--{what} {name}/{rest}", soak.fault(what, scene, rest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--random-kills", type=int, default=600, help="beside every passing of every failpoint")
    parser.add_argument("--faults", type=int, default=10**9, help="at most so many; all by default")
    parser.add_argument("--cuts", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=10**6, help="for each of the three parts")
    for what in ("kill", "fault", "system-call", "cut"):
        parser.add_argument(f"--{what}", metavar="SCENE/CASE", help="only this one")
    return parser.parse_args()


def main() -> int:
    """Run, and tell."""
    logging.disable(logging.CRITICAL)
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Victims() as victims:
        soak = Soak(Path(folder), victims, arguments.seed)

        def run(part: str, cases: Iterator[Case], most: int) -> None:
            soak.run(part, cases, most, time.monotonic() + arguments.minutes * 60)

        if arguments.kill or arguments.fault or arguments.system_call or arguments.cut:
            run("one", iter([_one(soak, arguments)]), 1)
        else:
            run("kills", soak.named_kills(), 10**9)
            run("kills", soak.random_kills(), arguments.random_kills)
            run("cuts", soak.all_cuts(), arguments.cuts)
            run("faults", soak.all_faults(), arguments.faults)
        figures = ", ".join(f"{soak.done[part]} {part}" for part in (*PARTS, "one") if soak.done[part])
        print(f"seed {arguments.seed}: {figures or 'nothing'} withstood, {len(soak.failed)} failed;", end=" ")
        print(f"{sum(soak.not_reached.values())} ended before their moment came")
        for again in soak.failed:
            print(f"    python -m tests.crash.soak --seed {arguments.seed} {again}")
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
