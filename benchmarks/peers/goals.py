"""Backstay against its peers: each goal as a ratio with what it must reach and what it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.records import Records, Spread

OURS, OURS_ENCRYPTED, BOUND, BEST_TUNED = "backstay", "backstay-encrypted", "bound", "borg-tuned"
PEERS = ("restic", "borg", BEST_TUNED, "benji")
DEFAULTS = ("restic", "borg", "benji")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Goal:
    """One line. `at_most` says that small is good."""

    work: str
    must: float
    stretch: float
    value: Spread
    at_most: bool = False
    digits: int = 2

    @property
    def verdict(self) -> str:
        """stretch, met or MISSED."""
        reached = [
            self.value.median <= n if self.at_most else self.value.median >= n for n in (self.must, self.stretch)
        ]
        return "stretch" if reached[1] else "met" if reached[0] else "MISSED"


def goals(records: Records, sizes: Mapping[str, int]) -> list[Goal]:
    """Every goal for which there are figures. restic always encrypts, so that it is met by ours with and without."""
    found: list[Goal] = []
    for disk in records.names(lambda record: record.disk):
        found += _against_peers(records, disk)
        found += _encryption(records, disk)
    peers = {tool: size for tool, size in sizes.items() if tool in PEERS}
    for tool in (OURS, OURS_ENCRYPTED):
        if peers and tool in sizes:
            smallest = min(peers, key=lambda name: peers[name])
            share = sizes[tool] / peers[smallest]
            work = f"stored bytes of three fulls and two next days, {tool} against {smallest}, the smallest peer"
            found.append(Goal(work, 0.92, 0.85, Spread(share, share, share), at_most=True))
    if private := records.peak((OURS, OURS_ENCRYPTED), "peak_private_bytes"):
        mib = private / MIB
        found.append(Goal("resident private memory, MiB", 300, 150, Spread(mib, mib, mib), at_most=True, digits=0))
    return found


def fastest(records: Records, disk: str, step: str, tools: Sequence[str] = PEERS) -> str | None:
    """The tool with the least median."""
    timed = {tool: wall.median for tool in tools if (wall := records.wall(disk, step, tool)) is not None}
    return min(timed, key=lambda tool: timed[tool]) if timed else None


def _against_peers(records: Records, disk: str) -> list[Goal]:
    wanted: list[tuple[str, float, float, tuple[str, str], tuple[str, str]]] = []
    wanted += [
        (f"full backup, {ours} against {peer}", 3.5, 5, ("full", peer), ("full", ours))
        for peer in DEFAULTS
        for ours in _alike(peer)
    ]
    wanted.append(("full backup, backstay against the best-tuned peer", 2, 2.5, ("full", BEST_TUNED), ("full", OURS)))
    wanted.append(("full backup, the compression bound against backstay", 0.65, 0.9, ("full", BOUND), ("full", OURS)))
    for ours in _alike("restic"):
        work = f"next day without hints, {ours} against restic"
        wanted.append((work, 3.5, 6, ("next day", "restic"), ("next day", ours)))
    for ours in _alike("restic"):
        work = f"next day with changed extents, {ours} against restic, which takes none"
        wanted.append((work, 6, 15, ("next day", "restic"), ("hinted", ours)))
    work = "next day with changed extents, backstay against benji"
    wanted.append((work, 2.5, 5, ("hinted", "benji"), ("hinted", OURS)))
    for step, must, stretch in (("restore", 2.0, 3.5), ("verify", 2.0, 4.0)):
        if (peer := fastest(records, disk, step)) is not None:
            for ours in _alike(peer):
                work = f"{step}, {ours} against {peer}, the fastest peer"
                wanted.append((work, must, stretch, (step, peer), (step, ours)))
    return [
        Goal(f"{disk}: {work}", must, stretch, ratio)
        for work, must, stretch, slow, fast in wanted
        if (ratio := records.ratio(disk, slow, fast)) is not None
    ]


def _alike(peer: str) -> tuple[str, ...]:
    return (OURS, OURS_ENCRYPTED) if peer == "restic" else (OURS,)


def _encryption(records: Records, disk: str) -> list[Goal]:
    return [
        Goal(f"{disk}: {step}, encrypted against plain", 1.15, 1.05, ratio, at_most=True)
        for step in ("full", "restore", "verify")
        if (ratio := records.ratio(disk, (step, OURS_ENCRYPTED), (step, OURS))) is not None
    ]
