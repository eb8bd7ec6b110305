"""Whether the work that is due can be done by its deadlines, and if not, whose goals are kept. Pure.

Deadlines are seen in steps of five minutes: what lies within one step is equally urgent, and so is everything whose
deadline is in this step or past.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

STEP_SECONDS = 300
LATE = -1
"""The step of everything whose deadline is not after the present step."""

NO_GOAL = 1 << 40
"""The step of what has no deadline: after all others."""

TYPICAL_RUN = timedelta(minutes=5)
"""How long a backup is taken to run as long as nobody has measured it."""

CATCH_UP_SECONDS = 3600
"""Late backups that take longer than this, with all places busy, are an overload and not a delay."""

Cell = tuple[int, int]
"""Priority and step."""


def step_of(deadline: datetime | None) -> int:
    """The step that a deadline lies in."""
    return NO_GOAL if deadline is None else int(deadline.timestamp() // STEP_SECONDS)


def step_at(now: datetime) -> int:
    """The present step."""
    return int(now.timestamp() // STEP_SECONDS)


@dataclass(frozen=True, slots=True)
class Load:
    """What is ready to start, and how it gets by.

    Backups of a priority below `cut` wait behind the others; None when all that is not late yet can be done in time.
    `top` is the highest priority that is ready. A cut above it means that not even that one keeps all its goals.
    """

    ready: int = 0
    late: int = 0
    places: int = 0
    cut: int | None = None
    top: int = 0
    overloaded: bool = False

    @property
    def sentence(self) -> str:
        """What the load comes to; empty without an overload."""
        if not self.overloaded:
            return ""
        words = f"overload: {_are_due(self.ready)}, places for {self.places}"
        if self.cut is None:
            return f"{words}, and {self.late} are late"
        if self.cut > self.top:
            return f"{words}; not even priority {self.top} keeps all its goals"
        return f"{words}; what has a priority below {self.cut} waits"

    def waits(self, priority: int) -> str:
        """Why a ready backup of this priority waits, as far as the load is the reason; else empty."""
        if self.cut is None or priority >= self.cut or priority == self.top:
            return self.sentence
        words = f"overload: {_are_due(self.ready)}, places for {self.places}"
        return f"{words}; priority {priority} waits behind {min(self.cut, self.top)}"


def _are_due(number: int) -> str:
    return "1 backup is due" if number == 1 else f"{number} backups are due"


def judge(cells: Mapping[Cell, int], places: int, now: datetime, typical: timedelta) -> Load:
    """The load of so many ready backups of each priority and step (those of the past are in step LATE)."""
    if not cells:
        return Load(places=places)
    found = weigh(cells, places, now, typical)
    late = sum(number for (_, step), number in cells.items() if step == LATE)
    overloaded = found.cut is not None or late * seconds_of(typical) > places * CATCH_UP_SECONDS
    return Load(sum(cells.values()), late, places, found.cut, max(priority for priority, _ in cells), overloaded)


def seconds_of(typical: timedelta) -> int:
    """How long a run takes, in whole seconds."""
    return max(1, round(typical.total_seconds()))


@dataclass(frozen=True, slots=True)
class Weighed:
    """The cut, and how far it is from being another one, in seconds of work.

    The cut stays as long as what became ready since and the time that passed, in every place, need no more than
    `spare`, and what started since needed less than `lacking`; with the same step, and no new priority or step.
    """

    cut: int | None
    spare: int
    lacking: int


_PLENTY = 1 << 50


def weigh(cells: Mapping[Cell, int], places: int, now: datetime, typical: timedelta) -> Weighed:
    """The lowest priority that keeps its goals together with all above; None when the lowest of all does.

    A priority keeps its goals when it and all above it, the late ones first, are done by the end of each step, if
    every place is busy and each run takes the typical time.
    """
    at, each = int(now.timestamp()), seconds_of(typical)
    priorities = sorted({priority for priority, _ in cells}, reverse=True)
    steps = sorted({step for _, step in cells if step != NO_GOAL})
    needed = dict.fromkeys(steps, 0)
    cut, spare = priorities[0] + 1, _PLENTY
    for priority in priorities:
        work, least = 0, _PLENTY
        for step in steps:
            needed[step] += cells.get((priority, step), 0)
            work += needed[step] * each
            if step != LATE and needed[step]:
                least = min(least, places * ((step + 1) * STEP_SECONDS - at) - work)
        if least < 0:
            return Weighed(cut, spare, -least)
        cut, spare = priority, min(spare, least)
    return Weighed(None, spare, _PLENTY)


class Scales:
    """How many ready backups there are of each priority and step, and their cut, weighed again where it may change.

    Steps up to the present one are LATE.
    """

    def __init__(self) -> None:
        self.cells: Counter[Cell] = Counter()
        self._step = LATE
        self._weighed: Weighed | None = None
        self._at = self._added = self._removed = 0

    def cell(self, priority: int, step: int) -> Cell:
        """Where a backup of this priority and step counts now."""
        return (priority, LATE if step <= self._step else step)

    def count(self, cell: Cell, change: int) -> None:
        """One more, or one less."""
        number = self.cells[cell] + change
        if number and number != change:
            self.cells[cell] = number
            self._added += change > 0
            self._removed += change < 0
            return
        self._weighed = None
        if number:
            self.cells[cell] = number
        else:
            del self.cells[cell]

    def step(self, step: int) -> bool:
        """The present step; whether it is a later one than before."""
        if step <= self._step:
            return False
        self._step = step
        before, self.cells = self.cells, Counter()
        for (priority, then), number in before.items():
            self.cells[self.cell(priority, then)] += number
        self._weighed = None
        return True

    def forget(self) -> None:
        """Weigh again the next time."""
        self._weighed = None

    def cut(self, places: int, now: datetime, typical: timedelta) -> int | None:
        """The cut of `weigh`."""
        each, at = seconds_of(typical), int(now.timestamp())
        known = self._weighed
        if (
            known is None
            or self._added * each + (at - self._at) * places > known.spare
            or self._removed * each >= known.lacking
        ):
            known = self._weighed = weigh(self.cells, places, now, typical)
            self._at, self._added, self._removed = at, 0, 0
        return known.cut
