"""What vCenter shows people of our work: the names of it, and the values that pass to a connector. No behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from policies.facts import Address

RESTORE_POINT = "Backstay restore point"
POLICY = "Backstay policy"
STATE = "Backstay state"

ATTRIBUTES = (RESTORE_POINT, POLICY, STATE)
"""The custom attributes of VMs that are ours. No policy sees them: what we write must not decide what we do."""


class Kind(StrEnum):
    """The events that we post, by their type ids."""

    SUCCEEDED = "backstay.backup.succeeded"
    FAILED = "backstay.backup.failed"
    UNPROTECTED = "backstay.vm.unprotected"


@dataclass(frozen=True, slots=True)
class Note:
    """One event to post at a VM."""

    kind: Kind
    vm: Address
    vm_name: str
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a vCenter is to show."""

    attributes: bool = False
    events: bool = False
    tasks: bool = False

    def __bool__(self) -> bool:
        return self.attributes or self.events or self.tasks


@dataclass(frozen=True, slots=True)
class Put:
    """What there is of ours in a vCenter, of whichever engine: attributes by name, tasks that run, the extension."""

    attributes: tuple[str, ...] = ()
    tasks: int = 0
    extension: bool = False

    def __bool__(self) -> bool:
        return bool(self.attributes or self.tasks or self.extension)
