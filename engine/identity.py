"""Which VM is this? Backstay's own id for what the inventory shows, by what it had on earlier sights. Pure.

The address (vCenter, moRef) is asked first, then the instance UUID, then the BIOS UUID together with a disk that both
have. Where two answers are possible, none is given: a new id and an alert, never a guess that would continue a
foreign history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from policies.facts import Address, Vm, VmId


@dataclass(frozen=True, slots=True)
class Traits:
    """What a VM is recognised by. Empty where it is not known."""

    address: Address | None
    name: str = ""
    instance_uuid: str = ""
    bios_uuid: str = ""
    disk_uuids: frozenset[str] = frozenset()


def traits_of(vm: Vm) -> Traits:
    """The traits that the inventory shows."""
    return Traits(
        address=vm.address,
        name=vm.name,
        instance_uuid=vm.instance_uuid.lower(),
        bios_uuid=vm.bios_uuid.lower(),
        disk_uuids=frozenset(d.uuid.lower() for d in vm.disks if d.uuid),
    )


@dataclass(frozen=True, slots=True)
class Known:
    """This is that VM."""

    vm: VmId
    by: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """No VM that we know. `alert` is a sentence when it resembles `candidates` too much to go unmentioned."""

    alert: str = ""
    candidates: tuple[VmId, ...] = ()


class Book:
    """Every VM ever seen, with its latest traits."""

    def __init__(self, entries: Iterable[tuple[VmId, Traits]] = ()) -> None:
        self._traits: dict[VmId, Traits] = {}
        self._addresses: dict[Address, VmId] = {}
        self._instances: dict[str, set[VmId]] = {}
        self._bios: dict[str, set[VmId]] = {}
        for vm, traits in entries:
            self.note(vm, traits)

    def __contains__(self, vm: VmId) -> bool:
        return vm in self._traits

    def __len__(self) -> int:
        return len(self._traits)

    def traits(self, vm: VmId) -> Traits:
        """The latest traits of a known VM."""
        return self._traits[vm]

    def at(self, address: Address) -> VmId | None:
        """Who was last seen at this address."""
        return self._addresses.get(address)

    def note(self, vm: VmId, traits: Traits) -> None:
        """Remember how this VM looks now. Empty traits do not erase known ones."""
        old = self._traits.get(vm)
        if old is not None:
            self._forget(vm, old, traits)
            traits = Traits(
                address=traits.address or old.address,
                name=traits.name or old.name,
                instance_uuid=traits.instance_uuid or old.instance_uuid,
                bios_uuid=traits.bios_uuid or old.bios_uuid,
                disk_uuids=traits.disk_uuids or old.disk_uuids,
            )
        self._traits[vm] = traits
        if traits.address is not None:
            self._addresses[traits.address] = vm
        if traits.instance_uuid:
            self._instances.setdefault(traits.instance_uuid, set()).add(vm)
        if traits.bios_uuid:
            self._bios.setdefault(traits.bios_uuid, set()).add(vm)

    def drop(self, vm: VmId) -> None:
        """Know this VM no more."""
        traits = self._traits.pop(vm, None)
        if traits is None:
            return
        if traits.address is not None and self._addresses.get(traits.address) == vm:
            del self._addresses[traits.address]
        self._instances.get(traits.instance_uuid, set()).discard(vm)
        self._bios.get(traits.bios_uuid, set()).discard(vm)

    def match(self, seen: Traits, present_elsewhere: Callable[[VmId], bool]) -> Known | Unknown:
        """Who this is. `present_elsewhere` tells whether a known VM stands at another address right now."""
        here = self._addresses.get(seen.address) if seen.address is not None else None
        if here is not None and not _contradict(self._traits[here], seen):
            return Known(here, "address")
        for by, candidates in (
            ("instance UUID", self._by_instance(seen)),
            ("BIOS UUID and a disk", self._by_bios_and_disk(seen)),
        ):
            free = [vm for vm in candidates if not present_elsewhere(vm)]
            if len(free) == 1 and len(candidates) == 1:
                return Known(free[0], by)
            if candidates:
                names = ", ".join(sorted(self._traits[vm].name or vm for vm in candidates))
                return Unknown(
                    f"{seen.name or seen.address} has the {by} of {names} and may be a copy: it gets a history of its "
                    f"own, which begins with a full read; if it is no copy: backstay vm relink OLD NEW",
                    tuple(candidates),
                )
        return Unknown()

    def _forget(self, vm: VmId, old: Traits, new: Traits) -> None:
        if (
            old.address is not None
            and new.address not in (None, old.address)
            and self._addresses.get(old.address) == vm
        ):
            del self._addresses[old.address]
        if new.instance_uuid and old.instance_uuid != new.instance_uuid:
            self._instances.get(old.instance_uuid, set()).discard(vm)
        if new.bios_uuid and old.bios_uuid != new.bios_uuid:
            self._bios.get(old.bios_uuid, set()).discard(vm)

    def _by_instance(self, seen: Traits) -> list[VmId]:
        return sorted(self._instances.get(seen.instance_uuid, ())) if seen.instance_uuid else []

    def _by_bios_and_disk(self, seen: Traits) -> list[VmId]:
        if not seen.bios_uuid:
            return []
        return sorted(vm for vm in self._bios.get(seen.bios_uuid, ()) if self._traits[vm].disk_uuids & seen.disk_uuids)


def _contradict(known: Traits, seen: Traits) -> bool:
    """Whether an address was given to another VM: every trait that both have differs."""
    pairs = [(known.instance_uuid, seen.instance_uuid), (known.bios_uuid, seen.bios_uuid)]
    both = [a != b for a, b in pairs if a and b]
    if known.disk_uuids and seen.disk_uuids:
        both.append(not known.disk_uuids & seen.disk_uuids)
    return bool(both) and all(both)
