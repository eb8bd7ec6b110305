"""How many backups may run at once, and which places one of them takes. Pure.

A place is counted by what it is a place of: the engine, a host, a datastore, a vCenter, a repository, a policy, and
each VM, which has one backup at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import NamedTuple

from policies.facts import Vm, VmId
from policies.policy import Policy, PolicyLimits
from policies.units import counted

REPOSITORY = "repository"


class Place(NamedTuple):
    """What a running backup takes one of: "host" esx-1, of all backups or, with `policy`, of that policy's alone."""

    kind: str
    name: str
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How many backups run at once: in all, with their VM on one host, with a disk on one datastore, and so on.

    Each running backup holds a snapshot open, and its removal stuns the VM and loads the datastore. `per_repository` is
    about the backups to each repository of an engine, and other work there counts with them. None is no limit of its
    own. `starts_per_minute` keeps snapshots from being made all at once where there are many free places.
    `destination_of` tells the repository that a VM's backups go to, where policies name several.
    """

    running: int = 8
    per_host: int = 4
    per_datastore: int = 4
    per_vcenter: int | None = None
    per_repository: int | None = None
    starts_per_minute: int | None = None
    policies: Mapping[str, PolicyLimits] = field(default_factory=dict)
    destination_of: Callable[[Vm], str] | None = None
    repositories: int = 1

    def of(self, place: Place) -> int | None:
        """How many of a place there are; None without a limit."""
        own = self.policies.get(place.policy) if place.policy is not None else None
        match place.kind:
            case "vm":
                return 1
            case "policy":
                return own.running if own is not None else None
            case "host" if place.policy is None:
                return self.per_host
            case "host":
                return own.per_host if own is not None else None
            case "datastore" if place.policy is None:
                return self.per_datastore
            case "datastore":
                return own.per_datastore if own is not None else None
            case "vcenter":
                return self.per_vcenter
            case _:
                return self.per_repository

    def with_those_of(self, policies: Iterable[Policy], destination_of: Callable[[Vm], str] | None = None) -> Limits:
        """The same with the limits that these policies have of their own, and with where they send what."""
        several = tuple(policies)
        own = {one.name: one.limits for one in several if one.limits is not None}
        places = {"", *(one.destination for one in several)}
        return replace(self, policies=own, destination_of=destination_of, repositories=len(places))

    @property
    def at_once(self) -> int:
        """How many backups can ever run at once."""
        if self.per_repository is None:
            return self.running
        return min(self.running, self.per_repository * self.repositories)

    @property
    def between_starts(self) -> timedelta:
        """How much time lies between two starts in the long run."""
        return timedelta(minutes=1) / self.starts_per_minute if self.starts_per_minute else timedelta()

    @property
    def burst(self) -> timedelta:
        """How far starts may run ahead of that: a sixth of a minute's starts may come at once."""
        return self.between_starts * (max(1, (self.starts_per_minute or 0) // 6) - 1)


def places_of(vm_id: VmId, vm: Vm | None, policy: str, limits: Limits) -> tuple[Place, ...]:
    """The limited places that a backup of this VM takes; a VM that is not known is on no host and no datastore."""
    places = [Place("vm", vm_id)]
    if limits.per_repository is not None:
        sends = limits.destination_of
        places.append(Place(REPOSITORY, "" if sends is None or vm is None else sends(vm)))
    own = limits.policies.get(policy)
    if own is not None and own.running is not None:
        places.append(Place("policy", policy, policy))
    if vm is None:
        return tuple(places)
    if vm.host:
        places.append(Place("host", vm.host))
        if own is not None and own.per_host is not None:
            places.append(Place("host", vm.host, policy))
    for store in dict.fromkeys(vm.datastores):
        places.append(Place("datastore", store))
        if own is not None and own.per_datastore is not None:
            places.append(Place("datastore", store, policy))
    if limits.per_vcenter is not None:
        places.append(Place("vcenter", vm.address.vcenter))
    return tuple(places)


def taken(place: Place, number: int) -> str:
    """The sentence for a place of which this many are taken and none is free."""
    if place.kind == "vm":
        return "a backup of this VM is running"
    if place.kind == REPOSITORY:
        use = "backup or task uses" if number == 1 else "backups and tasks use"
        return f"{number} {use} the repository{' ' if place.name else ''}{place.name}"
    whose = "" if place.policy is None else f" of policy {place.policy}"
    where = "" if place.kind == "policy" else f" {'in' if place.kind == 'vcenter' else 'on'} {_kind(place)}"
    return f"{counted(number, 'backup')}{whose} {'runs' if number == 1 else 'run'}{where}"


def _kind(place: Place) -> str:
    return f"{'vCenter' if place.kind == 'vcenter' else place.kind} {place.name}"
