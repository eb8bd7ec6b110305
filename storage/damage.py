"""What a verification says of one thing that is not as it was written."""

from __future__ import annotations

from dataclasses import dataclass

from policies.facts import PointId


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it was written. `chunk` is empty when it is not about one chunk.

    `vms` are the names of the VMs whose restore points need it; `mended` says what was done about it already.
    """

    object: str
    chunk: str
    points: tuple[PointId, ...]
    what: str
    vms: tuple[str, ...] = ()
    mended: str = ""
