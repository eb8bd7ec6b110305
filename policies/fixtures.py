"""Tests of policies, ready to run: VMs, restore points and events as values, each expectation with its place. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from policies.closest import closest
from policies.errors import PolicyError, Problem, quoted
from policies.facts import Address, Consistency, Disk, EventType, Facts, PointId, PowerState, RestorePoint, Vm, VmId
from policies.factsfile import facts_from_json
from policies.fixture_tables import (
    DiskFixture,
    EventFixture,
    Expectation,
    Fixture,
    PlanExpectation,
    PointFixture,
    VmChanges,
    moment,
)
from policies.policy import Source
from policies.policyset import PolicySet
from policies.reading import WrittenTest
from policies.units import LONGEST, parse_duration

USUAL_START = datetime(2026, 1, 5, 12, tzinfo=UTC)
"""When a test begins that does not say so: a Monday at noon."""

NOTHING = timedelta()
CREATIONS = frozenset({EventType.CREATED, EventType.CLONED, EventType.REGISTERED})

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Happening:
    """One event of a test, `at` from its beginning. `clock` is what the clock shows from then on, if it jumps."""

    at: timedelta
    table: EventFixture
    vm: VmId | None
    type: EventType | None
    clock: datetime | None


@dataclass(frozen=True, slots=True)
class Case:
    """One test. `late` are VMs that are not there before an event makes them; `facts` has them all.

    `expected` has what the test calls the VM, too. `runs` tells whether the clock goes on at all; without it the
    test looks at one instant.
    """

    name: str
    source: Source
    facts: Facts
    late: frozenset[VmId]
    happenings: tuple[Happening, ...]
    lasts: timedelta
    backup_takes: timedelta
    runs: bool
    expected: Mapping[VmId, tuple[str, Expectation]]
    plan: PlanExpectation | None
    place: Callable[[Path], Source]


def inventory_of(document: Mapping[str, Any], name: str) -> Facts:
    """The facts of the file that tests name as their inventory; raises PolicyError."""
    return facts_from_json(document, name, now=USUAL_START)


def case_of(written: WrittenTest, policies: PolicySet, inventory: Facts | None = None) -> Case:
    """The test that a table means; `inventory` has the facts of the file that it names.

    Raises PolicyError with every name that is unknown and everything that cannot be.
    """
    return _Builder(written, policies, inventory).case()


class _Builder:
    def __init__(self, written: WrittenTest, policies: PolicySet, inventory: Facts | None) -> None:
        self.written = written
        self.table: Fixture = written.table
        self.policies = policies
        self.problems: list[Problem] = []
        self.stored = inventory if inventory is not None else Facts(USUAL_START, {})
        self.now = self.stored.now if self.table.now is None else moment(self.table.now).astimezone(UTC)
        self.vms: dict[VmId, Vm] = dict(self.stored.vms)

    def case(self) -> Case:
        for number, vm in enumerate(self.table.vm or ()):
            if VmId(vm.name) in self.vms or self._named(vm.name):
                self.problem(("vm", number, "name"), f"there is a VM {quoted(vm.name)} already", "write another name")
            self.vms[VmId(vm.name)] = changed(_new(vm.name), vm)
        happenings = tuple(self._happening(number, one) for number, one in enumerate(self.table.event or ()))
        points = self._points()
        expected = {
            vm_id: (name, one)
            for name, one in (self.table.expect or {}).items()
            if (vm_id := self._vm(name, ("expect", name)))
        }
        for name, one in (self.table.expect or {}).items():
            self._check_names(one, name)
        if self.table.plan is not None:
            self._known_policies(self.table.plan.without, ("plan", "without"))
            for name in self.table.plan.loses or ():
                self._vm(name, ("plan", "loses"))
        asked = [one for _, one in expected.values()]
        if not asked and self.table.plan is None and not self.problems:
            self.problem((), "the test expects nothing", "write [test.expect.VM] or [test.plan]")
        if self.problems:
            raise PolicyError(self.problems)
        ordered = tuple(sorted(happenings, key=lambda one: one.at))
        return Case(
            name=self.table.name,
            source=self.written.place(()),
            facts=replace(self.stored, now=self.now, vms=self.vms, points=points),
            late=_late(ordered),
            happenings=ordered,
            lasts=self._lasts(ordered),
            backup_takes=parse_duration(self.table.backup_takes) if self.table.backup_takes else NOTHING,
            runs=bool(ordered)
            or self.table.for_ is not None
            or any(_about_backups(one) for _, one in expected.values()),
            expected=expected,
            plan=self.table.plan,
            place=self.written.place,
        )

    def problem(self, path: Path, what: str, instead: str) -> None:
        source = self.written.place(path)
        self.problems.append(Problem(source.file, source.line, source.column, what, instead))

    def _named(self, name: str) -> list[VmId]:
        return [vm.id for vm in self.vms.values() if vm.name == name]

    def _vm(self, name: str, path: Path) -> VmId | None:
        if VmId(name) in self.vms:
            return VmId(name)
        found = self._named(name)
        if len(found) == 1:
            return found[0]
        if found:
            self.problem(path, f"{len(found)} VMs are called {quoted(name)}", f"write an id such as {quoted(found[0])}")
            return None
        close = closest(name, [vm.name for vm in self.vms.values()])
        instead = f'write "{close}"' if close else "write it as [[test.vm]], or name an inventory that has it"
        self.problem(path, f"there is no VM {quoted(name)} in the test", instead)
        return None

    def _happening(self, number: int, event: EventFixture) -> Happening:
        at = parse_duration(event.at) if event.at else NOTHING
        path: Path = ("event", number)
        if event.clock is not None:
            if event.type is not None or event.vm is not None:
                self.problem(path, "an event is either something of a VM or a jump of the clock", "write two events")
            return Happening(at, event, None, None, moment(event.clock).astimezone(UTC))
        if event.type is None or event.vm is None:
            self.problem(path, "the event does not say what happens to which VM", "write its type and its vm")
            return Happening(at, event, None, None, None)
        kind = EventType(event.type)
        if kind in CREATIONS and VmId(event.vm) not in self.vms and not self._named(event.vm):
            self.vms[VmId(event.vm)] = _new(event.vm)
        return Happening(at, event, self._vm(event.vm, (*path, "vm")), kind, None)

    def _points(self) -> dict[VmId, tuple[RestorePoint, ...]]:
        found = {vm: [*points] for vm, points in self.stored.points.items()}
        ids = {point.id for points in found.values() for point in points}
        for number, table in enumerate(self.table.point or ()):
            vm = self._vm(table.vm, ("point", number, "vm"))
            if vm is None:
                continue
            if _reach(table) > LONGEST:
                self.problem(("point", number), "the points go back more than a century", "write fewer or closer ones")
                continue
            for point in _series(table, self.vms[vm], self.now, number):
                if point.id in ids:
                    what = f"there is a restore point {quoted(point.id)} already"
                    self.problem(("point", number), what, "write another id")
                ids.add(point.id)
                found.setdefault(vm, []).append(point)
        return {vm: tuple(sorted(points, key=lambda one: one.taken_at)) for vm, points in found.items()}

    def _check_names(self, expected: Expectation, vm: str) -> None:
        named = [("policies", one) for one in expected.policies or ()]
        named += [(key, one) for key in ("policy", "backup_policy") if (one := getattr(expected, key)) is not None]
        for key, name in named:
            self._known_policies([name], ("expect", vm, key))

    def _known_policies(self, names: Iterable[str], path: Path) -> None:
        known = [policy.name for policy in self.policies.policies]
        for name in names:
            if name not in known:
                close = closest(name, known)
                instead = f'write "{close}"' if close else "write the name of a policy of this directory"
                self.problem(path, f"there is no policy {quoted(name)}", instead)

    def _lasts(self, happenings: Iterable[Happening]) -> timedelta:
        if self.table.for_ is not None:
            return parse_duration(self.table.for_)
        named = [
            parse_duration(text)
            for one in (self.table.expect or {}).values()
            for text in (one.backup_by, one.backup_after)
            if text is not None
        ]
        return max([*named, *(one.at for one in happenings)], default=NOTHING)


def _late(happenings: Iterable[Happening]) -> frozenset[VmId]:
    first: dict[VmId, EventType] = {}
    for one in happenings:
        if one.vm is not None and one.type is not None:
            first.setdefault(one.vm, one.type)
    return frozenset(vm for vm, kind in first.items() if kind in CREATIONS)


def _about_backups(expected: Expectation) -> bool:
    keys = ("no_backup", "backups", "backup_by", "backup_after", "backup_policy", "backup_rule", "reason")
    return any(getattr(expected, key) is not None for key in keys)


def _new(name: str) -> Vm:
    return Vm(VmId(name), Address("", name), name, power=PowerState.ON)


def changed(vm: Vm, table: VmChanges | None) -> Vm:
    """The VM with what a table says of it."""
    if table is None:
        return vm
    known = {field.name for field in fields(Vm)}
    said: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key in type(table).model_fields
        if key in known and key not in ("name", "tags", "power", "disks") and (value := getattr(table, key)) is not None
    }
    if table.tags is not None:
        said["tags"] = frozenset(table.tags)
    if table.power is not None:
        said["power"] = PowerState(table.power)
    if table.disks is not None:
        said["disks"] = tuple(_disk(number, disk) for number, disk in enumerate(table.disks))
    return replace(vm, **said)


def _disk(number: int, table: DiskFixture) -> Disk:
    return Disk(
        key=2000 + number,
        label=table.label or f"Hard disk {number + 1}",
        capacity_bytes=table.capacity_bytes or 0,
        uuid=f"disk-{number}",
        datastore=table.datastore or "",
        file_name="",
        mode="persistent",
    )


def _reach(table: PointFixture) -> timedelta:
    return parse_duration(table.age or "0s") + ((table.count or 1) - 1) * parse_duration(table.every or "1d")


def _series(table: PointFixture, vm: Vm, now: datetime, number: int) -> Iterable[RestorePoint]:
    """Newest first."""
    apart = parse_duration(table.every or "1d")
    newest = now - parse_duration(table.age or "0s")
    count = table.count or 1
    name = table.id or f"{vm.name}-point-{number + 1}"
    for index in range(count):
        taken = newest - index * apart
        yield RestorePoint(
            id=PointId(name if table.count is None else f"{name}-{index + 1}"),
            vm=vm.id,
            vm_name=vm.name,
            taken_at=taken,
            complete=table.complete is not False,
            consistency=Consistency(table.consistency or Consistency.APPLICATION),
            damaged=bool(table.damaged),
            holds=(table.hold,) if table.hold else (),
            locked_until=taken + parse_duration(table.lock) if table.lock else None,
            expiring_since=now - parse_duration(table.marked) if table.marked else None,
            policy=table.policy or "",
        )
