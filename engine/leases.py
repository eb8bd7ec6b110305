"""What runs hold in vCenter now: which snapshot, which disk open by which transport, since when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

SNAPSHOT = "snapshot"
DISK = "disk"
MIGRATION_LOCK = "migration lock"


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """Something of a VM that a run holds. `name` is the snapshot's, or the disk's label; `way` the transport."""

    kind: str
    name: str
    since: datetime
    way: str = ""


@dataclass(slots=True)
class Leases:
    """What one run holds, in the order of taking. Single event loop."""

    held: list[Lease] = field(default_factory=list)

    @contextmanager
    def hold(self, kind: str, name: str, way: str = "") -> Iterator[None]:
        """It is held for the length of the block."""
        lease = Lease(kind, name, datetime.now(UTC), way)
        self.held.append(lease)
        try:
            yield
        finally:
            self.held = [one for one in self.held if one is not lease]
