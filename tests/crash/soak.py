"""Crashes for as long as they are wanted: `make soak`, or `python -m tests.crash.soak`.

Every passing of every failpoint, kills at random moments, a fault at every call, power cuts at every kind of moment,
and whole days on a simulated vCenter (`make day`), in one random order, on all processors. The folder is in memory and
removed at the end; days lie on disk. A line tells of progress every ten seconds; a case that fails is printed with what
plays it again. Ctrl-C or SIGTERM ends it after the cases under way. Exit codes: 0 all withstood, 1 a case failed, 130
ended by a signal.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from tests.crash import cases
from tests.crash.scenes import SCENES
from tests.damage_kit import in_memory

T = TypeVar("T")

PARTS = {
    "kills": ("--kill",),
    "faults": ("--fault", "--system-call"),
    "power cuts": ("--cut",),
    "days": ("--day",),
}
SECONDS_BETWEEN_LINES = 10
FAILURES_SHOWN = 20
DAYS = 200
DAYS_VMS = (12, 12, 16, 24)
"""On how many VMs the whole engine plays days; most are short."""

RANDOM_KILLS = 600
"""At random moments, beside every passing of every failpoint."""


@dataclass
class Limits:
    """When it ends early: at a time, or when somebody says so."""

    until: float
    stopped: bool = False

    @property
    def reached(self) -> bool:
        return self.stopped or time.monotonic() >= self.until


@dataclass
class Tally:
    """What came of the cases that were played."""

    seed: int
    planned: Counter[str] = field(default_factory=Counter)
    withstood: Counter[str] = field(default_factory=Counter)
    not_reached: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    playing_since: float = 0.0
    _told: float = 0.0

    @property
    def played(self) -> int:
        return self.withstood.total() + self.not_reached.total() + len(self.failed)

    def add(self, case: str, reached: bool, why: str) -> None:
        """Count a case; one that failed is told at once."""
        if why:
            self.failed[case] = why
            print(f"FAILED {self.again(case)}\n{why}", flush=True)
        else:
            (self.withstood if reached else self.not_reached)[part_of(case)] += 1

    def again(self, case: str) -> str:
        """The command that plays a case alone."""
        return f"python -m tests.crash.soak --seed {self.seed} {case}"

    def tell(self, preparing: str = "") -> None:
        """A line of progress, not too often."""
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        spent = now - self.began
        figures = ", ".join(f"{self.withstood[part]:,} of {self.planned[part]:,} {part}" for part in PARTS)
        left = (self.planned.total() - self.played) * (now - self.playing_since) / max(1, self.played) / 60
        said = preparing or f"{figures}, {len(self.failed)} failed; about {left:.0f} min to go"
        print(f"{spent:6.0f} s  {said}", flush=True)

    def sum_up(self, limits: Limits) -> None:
        """The whole, in a few lines."""
        spent = time.monotonic() - self.began
        print(f"\nsoak, seed {self.seed}, {spent:.0f} s")
        for part in PARTS:
            bad = sum(part_of(case) == part for case in self.failed)
            print(
                f"  {part:10}  {self.withstood[part]:6,} withstood, {bad} failed,"
                f" {self.not_reached[part]} ended before their moment came"
            )
        if self.played < self.planned.total():
            why = "a signal came" if limits.stopped else "the time was up"
            print(f"  {self.planned.total() - self.played:,} cases were not played, as {why}")
        for case in islice(self.failed, FAILURES_SHOWN):
            print(f"  again: {self.again(case)}")
        print("FAILED" if self.failed else "nothing failed", flush=True)


def part_of(case: str) -> str:
    """Which of PARTS a case belongs to."""
    return next(part for part, options in PARTS.items() if case.partition(" ")[0] in options)


def prepared(pool: ProcessPoolExecutor, arguments: argparse.Namespace, tally: Tally, limits: Limits) -> list[str]:
    """Every case that is to be played, in one random order."""
    seed = arguments.seed
    chance = random.Random(seed)
    scenes = [name for name in cases.RECORDED if name in (arguments.scenes or cases.RECORDED)]
    played = [name for name in scenes if name in SCENES]
    share = -(-arguments.cuts // len(scenes))
    kills = [pool.submit(cases.find_kills, name) for name in played if arguments.kills]
    faults = [pool.submit(cases.find_faults, name, seed) for name in played if arguments.faults]
    cuts = [pool.submit(cases.find_cuts, name, seed, share) for name in scenes if arguments.cuts]
    _finish([*kills, *cuts, *faults], tally, limits)
    named = [case for found in kills for case in _result(found, [])]
    moments = [(chance.choice(played), chance.uniform(0.002, 0.25)) for _ in range(RANDOM_KILLS)] if kills else []
    at_random = [f"--kill {name}/{seconds:.4f}" for name, seconds in moments]
    by_call = [ways for found in faults for ways in _result(found, [])]
    chance.shuffle(by_call)
    rounds = (case for ways in zip_longest(*by_call) for case in ways if case is not None)
    chosen = {
        "kills": _some(chance, named + at_random, arguments.kills),
        "faults": list(islice(rounds, len(by_call) if arguments.faults < 0 else arguments.faults)),
        "power cuts": _some(chance, [case for found in cuts for case in _result(found, [])], arguments.cuts),
    }
    if arguments.days and not arguments.scenes:
        chosen["days"] = [f"--day {chance.choice(DAYS_VMS)}/{chance.randrange(10**6)}" for _ in range(arguments.days)]
    tally.planned.update({part: len(found) for part, found in chosen.items()})
    together = list(chain.from_iterable(chosen.values()))
    chance.shuffle(together)
    return together


def _some(chance: random.Random, found: list[str], most: int) -> list[str]:
    chance.shuffle(found)
    return found if most < 0 else found[:most]


def _finish(futures: Sequence[Future[Any]], tally: Tally, limits: Limits) -> None:
    waiting = set(futures)
    while waiting:
        if limits.reached:
            for one in waiting:
                one.cancel()
        _, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
        tally.tell(f"counting and recording: {len(futures) - len(waiting)} of {len(futures)}")


def _result(future: Future[T], otherwise: T) -> T:
    return otherwise if future.cancelled() else future.result()


def play_all(pool: ProcessPoolExecutor, found: Iterator[str], most_at_once: int, tally: Tally, limits: Limits) -> None:
    """Play cases, some at once, until there are no more or a limit is reached."""
    tally.playing_since = time.monotonic()
    running: dict[Future[cases.Result], str] = {}
    while True:
        while not limits.reached and len(running) < most_at_once and (case := next(found, "")):
            running[pool.submit(cases.play, case)] = case
        if not running:
            return
        done, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        for one in done:
            tally.add(running.pop(one), *one.result())
        tally.tell()


@contextmanager
def ended_by_signals(limits: Limits) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends it soon, a second one at once."""

    def stop(number: int, _: object) -> None:
        limits.stopped = True
        signal.signal(number, before[signal.Signals(number)])
        print("ends with the cases under way; once more ends it at once", flush=True)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _count(text: str) -> int:
    count = int(text.replace(",", ""))
    if count < 0:
        raise argparse.ArgumentTypeError("must not be less than 0")
    return count


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=_count, default=-1, metavar="N", help="at most so many; about 2,200 by default")
    parser.add_argument(
        "--faults", type=_count, default=-1, metavar="N", help="one at each call by default; 200,000: all"
    )
    parser.add_argument("--cuts", type=_count, default=5000, metavar="N", help="at most so many power cuts; 5,000")
    parser.add_argument("--days", type=_count, default=DAYS, metavar="N", help="on a simulated vCenter; 200")
    parser.add_argument("--minutes", type=float, default=10**6, metavar="M", help="at most, all in all")
    parser.add_argument("--scenes", nargs="+", choices=cases.RECORDED, metavar="SCENE", help="only these")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    for what in ("kill", "fault", "system-call", "cut"):
        parser.add_argument(f"--{what}", metavar="SCENE/CASE", help="only this one")
    parser.add_argument("--day", metavar="VMS/SEED", help="only this one")
    return parser.parse_args(argv)


def _only(arguments: argparse.Namespace) -> str:
    said = vars(arguments)
    options = [option for options in PARTS.values() for option in options]
    one = [f"{option} {said[option[2:].replace('-', '_')]}" for option in options if said[option[2:].replace("-", "_")]]
    return one[0] if one else ""


def main(argv: list[str] | None = None) -> int:
    """Run, and tell."""
    logging.disable(logging.CRITICAL)
    arguments = _arguments(argv)
    tally, limits = Tally(arguments.seed), Limits(time.monotonic() + arguments.minutes * 60)
    with in_memory() as folder, ended_by_signals(limits):
        print(f"soak, seed {arguments.seed}, below {folder}", flush=True)
        only = _only(arguments)
        with _pool(folder, 1 if only else arguments.processes) as pool:
            found = [only] if only else prepared(pool, arguments, tally, limits)
            if only:
                tally.planned[part_of(only)] = 1
            figures = ", ".join(f"{count:,} {part}" for part, count in tally.planned.items())
            print(f"plays {figures} on {arguments.processes} processes", flush=True)
            play_all(pool, iter(found), 2 * arguments.processes, tally, limits)
    tally.sum_up(limits)
    return 1 if tally.failed else 130 if limits.stopped else 0


def _pool(folder: Path, processes: int) -> ProcessPoolExecutor:
    begin: Callable[..., None] = cases.begin
    stages = cases.set_up_all(folder)
    # Not forked: DuckDB has threads in this process by now.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=begin, initargs=(folder, stages))


if __name__ == "__main__":
    sys.exit(main())
