"""What the lab itself knows and noted: comparisons are made with these, not with Backstay's own records."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LabDisk:
    key: int
    label: str
    uuid: str
    file: str
    flat: Path
    capacity_bytes: int
    mode: str
    attached: bool
    independent: bool


@dataclass(frozen=True, slots=True)
class LabVm:
    moref: str
    name: str
    instance_uuid: str
    power: str
    host: str
    host_moref: str
    datastore: str
    template: bool
    snapshots: tuple[str, ...]
    disks: tuple[LabDisk, ...]


@dataclass(frozen=True, slots=True)
class LabEvent:
    """One line of the lab's own log: what vCenter posted."""

    key: int
    type: str
    chain: int
    time: datetime
    user: str
    vm: str = ""
    vm_name: str = ""
    host: str = ""
    datastore: str = ""


@dataclass(frozen=True, slots=True)
class FrozenDisk:
    key: int
    label: str
    uuid: str
    file: str
    capacity_bytes: int
    change_id: str
    image: Path


@dataclass(frozen=True, slots=True)
class Frozen:
    """What the lab froze for one snapshot; the images stay when the snapshot goes (settings: keep_frozen)."""

    snapshot: str
    vm: str
    vm_name: str
    name: str
    description: str
    created: datetime
    quiesced: bool
    disks: tuple[FrozenDisk, ...]
    memory: bool = False
    quiesce_minutes: int = 0


def moment(text: str) -> datetime:
    """A time as Go writes it: up to nine digits of a second, where Python reads six."""
    head, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{fraction[:6]:0<6}+00:00")
