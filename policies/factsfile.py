"""Facts as a JSON document and back: the state that plans, simulations and tests of policies are made from.

Only what differs from its default is written, and a VM record needs only its name, a disk of it nothing, so that
people can write inventories by hand. An id that is left out is the VM's name. A point's `vm` and the keys of `history`
are ids of VMs; points may belong to VMs that are gone. Instants have a time zone; they are read as UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from policies.errors import PolicyError, Problem, Unusable, quoted
from policies.facts import Address, Disk, Facts, RestorePoint, Vm, VmHistory, VmId, instant_text
from policies.shapes import Nested, Shape, encoded, exactly, list_codec, plain, to_instant, unknown_key

FORMAT = 1
"""A document with a higher number was written by a newer Backstay."""

KEYS = (
    "format",
    "now",
    "policies",
    "vms",
    "points",
    "history",
    "fired",
    "left",
    "copies",
    "empty_copies",
    "unseen_copies",
    "unseen_repositories",
)
"""What a document may hold. `policies` are the files in force, by name; facts do not carry them."""

PAIRS = ("history", "left")
"""The tables whose records are by the id of a VM."""

MOST_PROBLEMS = 20
"""How many problems of one document are told, as of a file of policies; what is wrong with many records is one."""


_Record = TypeVar("_Record")


def facts_as_json(facts: Facts) -> dict[str, Any]:
    """The whole document. Large ones can be written piece by piece with `facts_pieces`."""
    document: dict[str, Any] = {"format": FORMAT, "now": instant_text(facts.now)}
    for key, records in facts_pieces(facts):
        document[key] = dict(records) if key in PAIRS else [*records]
    return document


def facts_pieces(facts: Facts) -> Iterator[tuple[str, Iterable[Any]]]:
    """Each table of the document with its records one by one; those of `history` and `left` are pairs."""
    yield "vms", (_vm_as_json(vm) for vm in facts.vms.values())
    yield "points", (_point_as_json(point, facts) for points in facts.points.values() for point in points)
    yield "left", ((vm, instant_text(at)) for vm, at in facts.left.items())
    yield "history", ((vm, encoded(_HISTORY, history)) for vm, history in facts.history.items())
    yield (
        "fired",
        (
            {"policy": policy, "rule": rule, "vm": vm, "at": instant_text(at)}
            for (policy, rule, vm), at in facts.fired.items()
        ),
    )
    if facts.copies:
        yield (
            "copies",
            (
                {"copy": copy, **_point_as_json(point, facts)}
                for copy, by_vm in facts.copies.items()
                for points in by_vm.values()
                for point in points
            ),
        )
    if empty := [copy for copy, by_vm in facts.copies.items() if not any(by_vm.values())]:
        yield "empty_copies", empty
    if facts.unseen_copies:
        yield "unseen_copies", facts.unseen_copies
    if facts.unseen_repositories:
        yield "unseen_repositories", facts.unseen_repositories


def facts_from_json(data: Mapping[str, Any], name: str, *, now: datetime | None = None) -> Facts:
    """The facts of a document that was read from JSON or TOML; PolicyError says what is wrong and where.

    `name` is what messages call the document, `now` counts when it does not say which time it is.
    """
    problems = _Problems(name)
    problems.unknown("", data, KEYS)
    found = data.get("format", FORMAT)
    if type(found) is not int or not 1 <= found <= FORMAT:
        newer = type(found) is int and found > FORMAT
        instead = f"this Backstay reads format {FORMAT}: use a newer one" if newer else f"write {FORMAT}"
        problems.add("format", f"is {quoted(found)}", instead)
        problems.finish()
    instant = problems.read("now", to_instant, data.get("now", now if now is not None else ""))
    vms: dict[VmId, Vm] = {}
    for place, record in problems.records("vms", data.get("vms", ())):
        if (vm := problems.read(place, _to_vm, record)) is not None:
            if vm.id in vms:
                problems.add(place, f"has the id {quoted(vm.id)} of another VM", "give each VM an id of its own")
            vms[vm.id] = vm
    points = _points(problems.records("points", data.get("points", ())), problems, vms)
    copied: dict[str, list[tuple[str, object]]] = {}
    for place, record in problems.records("copies", data.get("copies", ())):
        if (one := problems.read(place, _to_copied, record)) is not None:
            copied.setdefault(one[0], []).append((place, one[1]))
    for copy in problems.read("empty_copies", _to_names, data.get("empty_copies", ())) or ():
        copied.setdefault(copy, [])
    unseen = problems.read("unseen_copies", _to_names, data.get("unseen_copies", ()))
    copies = {copy: _points(records, problems, vms) for copy, records in copied.items()}
    away = problems.read("unseen_repositories", _to_names, data.get("unseen_repositories", ()))
    history = {
        VmId(vm): one
        for vm, record in problems.table("history", data.get("history", {}))
        if (one := problems.read(f"history.{vm}", _HISTORY.decode, record)) is not None
    }
    fired = {
        (one.policy, one.rule, one.vm): one.at
        for place, record in problems.records("fired", data.get("fired", ()))
        if (one := problems.read(place, _FIRED.decode, record)) is not None
    }
    left = {
        VmId(vm): at
        for vm, record in problems.table("left", data.get("left", {}))
        if (at := problems.read(f"left.{vm}", to_instant, record)) is not None
    }
    problems.finish()
    return Facts(instant or _NOW, vms, history, points, fired, left, copies, unseen or (), away or ())


def _points(
    records: Iterable[tuple[str, object]], problems: _Problems, vms: Mapping[VmId, Vm]
) -> Mapping[VmId, tuple[RestorePoint, ...]]:
    """The restore points of one repository, by VM."""
    points: dict[VmId, list[RestorePoint]] = {}
    ids: set[str] = set()
    decode = _to_point(vms)
    for place, record in records:
        if (point := problems.read(place, decode, record)) is not None:
            if point.id in ids:
                problems.add(place, f"has the id {quoted(point.id)} of another restore point", "leave one of them out")
            ids.add(point.id)
            points.setdefault(point.vm, []).append(point)
    return {vm: tuple(several) for vm, several in points.items()}


@dataclass(frozen=True, slots=True)
class _Fired:
    """The key and the value of `Facts.fired`."""

    policy: str
    rule: str
    vm: VmId
    at: datetime


class _Problems:
    """What is wrong with one document; each `read` that fails adds to it and gives None."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[Problem] = []

    def add(self, place: str, what: str, instead: str) -> None:
        self.found.append(Problem(self.name, 1, 1, f"{place} {what}" if place else what, instead))
        if len(self.found) >= MOST_PROBLEMS:
            self.finish()

    def finish(self) -> None:
        if self.found:
            raise PolicyError(self.found)

    def read(self, place: str, decode: Callable[[object], _Record], value: object) -> _Record | None:
        try:
            return decode(value)
        except Unusable as error:
            self.add(place, error.what, error.instead)
        except Nested as error:
            self.add(f"{place}{error.path}", error.unusable.what, error.unusable.instead)
        return None

    def unknown(self, place: str, data: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in data:
            if key not in known:
                unusable = unknown_key(key, known)
                self.add(place, unusable.what, unusable.instead)

    def records(self, key: str, value: object) -> Iterator[tuple[str, object]]:
        if not isinstance(value, list | tuple):
            self.add(key, f"is {quoted(value)}", "write a list of tables")
            return
        for number, record in enumerate(value):
            yield f"{key}[{number}]", record

    def table(self, key: str, value: object) -> Iterator[tuple[str, object]]:
        if not isinstance(value, Mapping):
            self.add(key, f"is {quoted(value)}", "write a table with a record for each id of a VM")
            return
        yield from value.items()


_to_names = list_codec(plain, exactly(str, "write a text"), tuple)[1]
_NOW = datetime(1970, 1, 1, tzinfo=UTC)  # Only ever in facts that are refused.
_DISK = Shape(Disk)
_UNSAID = {"capacity_bytes": 0, "datastore": "", "file_name": "", "mode": "persistent"}
_VM = Shape(
    Vm,
    disks=list_codec(lambda disk: encoded(_DISK, disk), lambda value: _DISK.arguments(value, _DISK.required), tuple),
)
_POINT = Shape(RestorePoint)
_HISTORY = Shape(VmHistory)
_FIRED = Shape(_Fired)


def _vm_as_json(vm: Vm) -> dict[str, Any]:
    written = encoded(_VM, vm)
    if vm.id == vm.name:
        del written["id"]
    if vm.address == Address("", vm.id):
        del written["address"]
    return written


def _to_vm(value: object) -> Vm:
    arguments = _VM.arguments(value, ("id", "address"))
    arguments.setdefault("id", VmId(arguments["name"]))
    arguments.setdefault("address", Address("", arguments["id"]))
    if "disks" in arguments:
        arguments["disks"] = tuple(_to_disk(number, one) for number, one in enumerate(arguments["disks"]))
    return Vm(**arguments)


def _to_disk(number: int, arguments: dict[str, Any]) -> Disk:
    """The disk at this place of its VM, with what a record need not say."""
    own = {"key": 2000 + number, "label": f"Hard disk {number + 1}", "uuid": f"disk-{number}"}
    return Disk(**{**_UNSAID, **own, **arguments})


def _point_as_json(point: RestorePoint, facts: Facts) -> dict[str, Any]:
    written = encoded(_POINT, point)
    vm = facts.vms.get(point.vm)
    if point.vm_name == (vm.name if vm else point.vm):
        del written["vm_name"]
    return written


def _to_copied(value: object) -> tuple[str, object]:
    """The copy that a restore point is in, and the rest of its record."""
    if not isinstance(value, Mapping) or not isinstance(value.get("copy"), str):
        raise Unusable("does not say in which copy it is", 'write a table with copy = "NAME"')
    return value["copy"], {key: one for key, one in value.items() if key != "copy"}


def _to_point(vms: Mapping[VmId, Vm]) -> Callable[[object], RestorePoint]:
    def read(value: object) -> RestorePoint:
        arguments = _POINT.arguments(value, ("vm_name",))
        if "vm_name" not in arguments:
            vm = vms.get(arguments["vm"])
            arguments["vm_name"] = vm.name if vm else arguments["vm"]
        return RestorePoint(**arguments)

    return read
