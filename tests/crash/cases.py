"""Single cases of the soak: which there are, and how a process of its own plays one.

A case is a text that plays it again: `--kill SCENE/POINT:N`, `--kill SCENE/SECONDS`, `--fault SCENE/FAULT`,
`--system-call SCENE/FAULT`, `--cut SCENE/MOMENT-WAY`, `--day VMS/SEED`. What is learnt of a scene is kept in the shared
folder, so that each scene is counted and recorded once for all processes.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from tests.crash.faults import count_calls, fault_of, faults, injected, system_call_fails, system_faults
from tests.crash.kills import every, kill, kill_after
from tests.crash.powerloss import Cut, after_a_cut, cuts, digest, left
from tests.crash.recording import Recording, python, record
from tests.crash.scenes import SCENES, Scene
from tests.crash.stages import KINDS, Stage, clear, fresh_copy, set_up
from tests.crash.victim import Victims

Result = tuple[bool, str]
"""Whether the moment of the case came, and why it failed; empty when it did not."""

RECORDED = (*SCENES, "engine")

ROOT = Path(__file__).parents[2]
DAY_SECONDS = 900.0
"""A day that takes longer hangs."""


class Player:
    """Plays cases in this process, below a folder that it shares with others. Ends with its process."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage]) -> None:
        self.folder = folder
        self.stages = stages
        self.victims = Victims()
        self._own = folder / f"process-{os.getpid()}"
        self._own.mkdir()
        self._recordings: dict[str, Recording] = {}

    # --- what there is ---

    def passed(self, name: str) -> list[str]:
        """The failpoints that a scene reaches."""
        known = self.folder / f"passed-{name}"
        if not known.exists():
            location = self._copy(SCENES[name])
            self._keep(known, json.dumps(self.victims.play(name, location).passed).encode())
            clear(location)
        found: list[str] = json.loads(known.read_bytes())
        return found

    def kills(self, name: str) -> list[str]:
        """Every passing of every failpoint of a scene."""
        return [f"--kill {name}/{point}" for point in every(self.passed(name))]

    def faults(self, name: str, seed: int) -> list[list[str]]:
        """For each call of a scene, to the store and beneath it, every fault that it can meet, in a random order."""
        scene = SCENES[name]
        found: list[list[str]] = []
        for reads in (False, True) if scene.own_store else ():
            calls = range(1, self._calls(scene, reads=reads) + 1)
            found += ([f"--fault {name}/{fault}" for fault in faults(nth, reads=reads)] for nth in calls)
        calls = range(1, self._calls(scene, beneath=True) + 1)
        found += ([f"--system-call {name}/{fault}" for fault in system_faults(nth)] for nth in calls)
        chance = random.Random(f"{seed} {name}")
        for ways in found:
            chance.shuffle(ways)
        return found

    def cuts(self, name: str, seed: int, most: int) -> list[str]:
        """Power cuts through a scene, or through the engine's state, that each leave something else."""
        recording = self._recording(name)
        possible = list(cuts(recording, range(4 * seed, 4 * seed + 4)))
        random.Random(f"{seed} {name}").shuffle(possible)
        seen: dict[bytes, str] = {}
        for cut in possible:
            if len(seen) >= most:
                break
            seen.setdefault(digest(left(recording, cut)), f"--cut {name}/{cut}")
        return list(seen.values())

    # --- one of them ---

    def play(self, case: str) -> bool:
        """Play one and fail as an assertion does; False when its moment did not come."""
        what, _, rest = case.partition(" ")
        name, _, moment = rest.partition("/")
        if what == "--day":
            _day(name, moment)
            return True
        location = self._own / "trial"
        clear(location)
        if what == "--cut":
            at, _, way = moment.partition("-")
            stage = self._stage(SCENES.get(name))
            after_a_cut(self._recording(name), Cut(int(at), way), stage, SCENES.get(name), location, thorough=True)
            return True
        scene = SCENES[name]
        match what:
            case "--kill" if moment.replace(".", "", 1).isdigit():
                return kill_after(self.victims, self._stage(scene), scene, float(moment), location)
            case "--kill":
                return kill(self.victims, self._stage(scene), scene, moment, location)
            case "--fault":
                return injected(self._stage(scene), scene, fault_of(moment), location, thorough=True)
            case "--system-call":
                return system_call_fails(self._stage(scene), scene, fault_of(moment), location, thorough=True)
            case _:
                raise ValueError(f"no such case: {case}")

    def _stage(self, scene: Scene | None) -> Stage:
        return self.stages[scene.kind if scene else "plain"]

    def _copy(self, scene: Scene) -> Path:
        location = self._own / "counted"
        clear(location)
        return fresh_copy(self._stage(scene), location, scene.prepare)

    def _calls(self, scene: Scene, *, reads: bool = False, beneath: bool = False) -> int:
        location = self._copy(scene)
        try:
            return count_calls(scene, location, reads=reads, beneath=beneath)
        finally:
            clear(location)

    def _recording(self, name: str) -> Recording:
        if name not in self._recordings:
            known = self.folder / f"recorded-{name}"
            if not known.exists():
                root = self._own / f"recorded-{name}"
                root.mkdir()
                scene = SCENES.get(name)
                fresh_copy(self._stage(scene), root / "repo", scene.prepare if scene else None)
                self._keep(known, pickle.dumps(record(python("tests.crash.recorded", name, str(root)), root)))
                clear(root)
            self._recordings[name] = pickle.loads(known.read_bytes())
        return self._recordings[name]

    def _keep(self, path: Path, data: bytes) -> None:
        part = self._own / path.name
        part.with_suffix(".part").write_bytes(data)
        part.with_suffix(".part").replace(path)


def _day(vms: str, seed: str) -> None:
    """A whole engine on a whole day, in processes of their own."""
    command = [sys.executable, "-m", "tests.acceptance.day", "--vms", vms, "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DAY_SECONDS, check=False)
    if done.returncode:
        raise AssertionError(f"exit {done.returncode}\n{done.stderr[-6000:]}{done.stdout}")


def set_up_all(folder: Path) -> dict[str, Stage]:
    """A stage of each kind."""
    return {kind: set_up(folder / f"stage-{kind}", kind) for kind in KINDS}


# --- in a process of a pool ---

_players: list[Player] = []


def begin(folder: Path, stages: Mapping[str, Stage]) -> None:
    """Make this process one that plays. Whoever started it ends it: an interrupt from the keyboard does not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    _players.append(Player(folder, stages))


def find_kills(name: str) -> list[str]:
    """As `Player.kills`."""
    return _players[0].kills(name)


def find_faults(name: str, seed: int) -> list[list[str]]:
    """As `Player.faults`."""
    return _players[0].faults(name, seed)


def find_cuts(name: str, seed: int, most: int) -> list[str]:
    """As `Player.cuts`."""
    return _players[0].cuts(name, seed, most)


def play(case: str) -> Result:
    """Play one; whatever it raises is told."""
    try:
        return _players[0].play(case), ""
    except Exception:
        return True, traceback.format_exc()
