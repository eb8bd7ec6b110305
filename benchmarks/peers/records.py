"""What was measured, and the figures that follow from it: medians, ranges, ratios. Pure but for reading and writing."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DISTURBED = 0.25
"""So much of one core beside a measured process is more than the kernel needs to write its files back."""


@dataclass(frozen=True, slots=True)
class Record:
    """One process of one tool in one round. `disk` is the image that the round is about."""

    round: int
    disk: str
    step: str
    tool: str
    wall_seconds: float
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_private_bytes: int = 0
    others_cpu_seconds: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether something else ran beside it: such a time is kept but does not count."""
        return self.others_cpu_seconds > DISTURBED * self.wall_seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the greatest."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 2) -> str:
        """Such as 3.59 [3.19–3.84]."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}–{self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Records:
    """All of a benchmark."""

    all: tuple[Record, ...]

    def values(self, disk: str, step: str, tool: str) -> dict[int, float]:
        """Wall seconds by round; of disturbed ones only where there is nothing else."""
        found = [r for r in self.all if (r.disk, r.step, r.tool) == (disk, step, tool)]
        return {r.round: r.wall_seconds for r in [r for r in found if not r.disturbed] or found}

    def wall(self, disk: str, step: str, tool: str) -> Spread | None:
        """Wall seconds; None when that was not measured."""
        found = self.values(disk, step, tool)
        return spread(list(found.values())) if found else None

    def ratio(self, disk: str, slow: tuple[str, str], fast: tuple[str, str]) -> Spread | None:
        """How many times faster the second (step, tool) is: by medians; least and greatest round by round."""
        a, b = self.values(disk, *slow), self.values(disk, *fast)
        if not a or not b:
            return None
        paired = [a[number] / b[number] for number in a if number in b] or [0.0]
        return Spread(statistics.median(a.values()) / statistics.median(b.values()), min(paired), max(paired))

    def names(self, part: Callable[[Record], str], of: Iterable[Record] | None = None) -> list[str]:
        """The distinct values of a field, in order of appearance."""
        return list(dict.fromkeys(part(record) for record in (self.all if of is None else of)))

    def peak(self, tools: Sequence[str], field: str) -> int:
        """The largest resident size of any step of these tools."""
        return max((int(getattr(record, field)) for record in self.all if record.tool in tools), default=0)


def read_results(path: Path) -> dict[str, Any]:
    """An earlier run's results; nothing when there are none."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def records_of(results: dict[str, Any]) -> Records:
    """The records of a results file."""
    return Records(tuple(Record(**entry) for entry in results.get("records", [])))


def plain(records: Records) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [dataclasses.asdict(record) for record in records.all]


def medians(records: Records) -> list[dict[str, Any]]:
    """Median, least and greatest of each disk, step and tool."""
    keys = dict.fromkeys((record.disk, record.step, record.tool) for record in records.all)
    found = [(key, records.wall(*key), len(records.values(*key))) for key in keys]
    return [
        {"disk": key[0], "step": key[1], "tool": key[2], "rounds": count, **dataclasses.asdict(wall)}
        for key, wall, count in found
        if wall is not None
    ]
