"""What a vCenter tells about itself and about what this engine may and can do there. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from connectors.privileges import Place


@dataclass(frozen=True, slots=True)
class Gap:
    """A privilege that the account lacks on some objects of a place: their names, and of how many."""

    privilege: str
    place: Place
    names: tuple[str, ...]
    asked: int


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """What stands for and against hot-add here. `trouble` is why there is no proxy, or why it takes no disk at all.

    `unseen` are the datastores with VMs that its host does not see. `tells_uuids` is disk.EnableUUID, None where it
    is not set. `moved_by` is the cluster whose DRS may move it, empty where none may.
    """

    trouble: str
    name: str = ""
    edition: str = ""
    controllers: tuple[str, ...] = ()
    free_places: int = 0
    attached: int = 0
    unseen: tuple[str, ...] = ()
    tells_uuids: bool | None = None
    moved_by: str = ""


@dataclass(frozen=True, slots=True)
class NbdTools:
    """What there is for NBD on this machine. `trouble` is what keeps it from working; empty when all is there."""

    trouble: str
    hint: str = ""
    nbdkit: str = ""
    library: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One vCenter as it answers a doctor's questions.

    `skew_seconds` is by how much its clock is before ours. `unknown` are privileges that it does not know: those of
    newer versions. `proxy` is None where hot-add is not configured. `hosts` are the ESXi hosts' names.
    """

    product: str
    api_type: str
    skew_seconds: float
    gaps: tuple[Gap, ...]
    unknown: tuple[str, ...]
    proxy: ProxyReport | None
    hosts: tuple[str, ...]
