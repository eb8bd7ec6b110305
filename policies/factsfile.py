"""Facts as a JSON document and back: the state that plans, simulations and tests of policies are made from.

Only what differs from its default is written, and a VM record needs only its name, a disk of it nothing, so that
people can write inventories by hand. An id that is left out is the VM's name. A point's `vm` and the keys of `history`
are ids of VMs; points may belong to VMs that are gone. Instants have a time zone; they are read as UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from policies.closest import closest
from policies.errors import PolicyError, Problem, Unusable, quoted
from policies.facts import Address, Disk, Facts, RestorePoint, Vm, VmHistory, VmId

FORMAT = 1
"""A document with a higher number was written by a newer Backstay."""

KEYS = ("format", "now", "policies", "vms", "points", "history", "fired", "left", "copies", "unseen_copies")
"""What a document may hold. `policies` are the files in force, by name; facts do not carry them."""

PAIRS = ("history", "left")
"""The tables whose records are by the id of a VM."""

MOST_PROBLEMS = 20
"""How many problems of one document are told, as of a file of policies; what is wrong with many records is one."""

YEARS = (1970, 9000)
"""Instants of these years, without the last: what is added to them, a century at most, is an instant too."""

_Record = TypeVar("_Record")
_Decode = Callable[[object], Any]
_Encode = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Nested(Exception):
    """A problem below a value: where, as ".key" or "[3]", and what is unusable there."""

    path: str
    unusable: Unusable


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
    yield "history", ((vm, _encode(_HISTORY, history)) for vm, history in facts.history.items())
    yield (
        "fired",
        (
            {"policy": policy, "rule": rule, "vm": vm, "at": instant_text(at)}
            for (policy, rule, vm), at in facts.fired.items()
        ),
    )
    yield (
        "copies",
        (
            {"copy": copy, **_point_as_json(point, facts)}
            for copy, by_vm in facts.copies.items()
            for points in by_vm.values()
            for point in points
        ),
    )
    yield "unseen_copies", facts.unseen_copies


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
    instant = problems.read("now", _to_instant, data.get("now", now if now is not None else ""))
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
    copies = {copy: _points(records, problems, vms) for copy, records in copied.items()}
    unseen = problems.read("unseen_copies", _to_names, data.get("unseen_copies", ()))
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
        if (at := problems.read(f"left.{vm}", _to_instant, record)) is not None
    }
    problems.finish()
    return Facts(instant or _NOW, vms, history, points, fired, left, copies, unseen or ())


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
        except _Nested as error:
            self.add(f"{place}{error.path}", error.unusable.what, error.unusable.instead)
        return None

    def unknown(self, place: str, data: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in data:
            if key not in known:
                unusable = _unknown(key, known)
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


class _Shape:
    """How a dataclass is written and read, made from its fields."""

    def __init__(self, kind: type[Any], **instead: tuple[_Encode, _Decode]) -> None:
        hints = get_type_hints(kind)
        self.kind = kind
        self.encoders: list[tuple[str, Any, _Encode | None]] = []
        self.decoders: dict[str, _Decode] = {}
        self.required: list[str] = []
        for field in fields(kind):
            encode, decode = instead.get(field.name) or _codec(hints[field.name])
            default: Any = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            self.encoders.append((field.name, default, None if encode is _plain else encode))
            self.decoders[field.name] = decode
            if default is MISSING:
                self.required.append(field.name)

    def decode(self, value: object) -> Any:
        return self.kind(**self.arguments(value))

    def arguments(self, value: object, optional: Iterable[str] = ()) -> dict[str, Any]:
        """The constructor's arguments; those of `optional` may be missing although they have no default."""
        if type(value) is not dict and not isinstance(value, Mapping):
            raise Unusable(f"is {quoted(value)}", "write a table")
        arguments: dict[str, Any] = {}
        for key, one in value.items():
            decode = self.decoders.get(key)
            if decode is None:
                raise _unknown(key, self.decoders)
            try:
                arguments[key] = decode(one)
            except Unusable as error:
                raise _Nested(f".{key}", error) from None
            except _Nested as error:
                raise _Nested(f".{key}{error.path}", error.unusable) from None
        for key in self.required:
            if key not in arguments and key not in optional:
                raise Unusable(f"has no {key}", f"write its {key}")
        return arguments


def _unknown(key: object, known: Iterable[str]) -> Unusable:
    guess = closest(str(key), known)
    return Unusable(
        f"has an unknown key {quoted(key)}", f"write {guess}" if guess else f"write one of {', '.join(known)}"
    )


def _encode(shape: _Shape, record: object) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, default, encode in shape.encoders:
        value = getattr(record, name)
        if value != default:
            written[name] = encode(value) if encode else value
    return written


def _plain(value: Any) -> object:
    return value


def _codec(kind: Any) -> tuple[_Encode, _Decode]:
    if isinstance(kind, NewType):
        return _codec(kind.__supertype__)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        encode, decode = _codec(next(one for one in arguments if one is not NoneType))
        return encode, lambda value: None if value is None else decode(value)
    if origin is tuple and arguments[1:] == (...,):
        return _list_codec(*_codec(arguments[0]), tuple)
    if origin is frozenset:
        encode, decode = _list_codec(*_codec(arguments[0]), frozenset)
        return lambda value: sorted(value), decode
    if origin is Mapping:
        return _table_codec(*_codec(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda value: value.value, _choice(kind)
    shape = _Shape(kind)
    return lambda value: _encode(shape, value), shape.decode


def _list_codec(encode: _Encode, decode: _Decode, build: Callable[[Iterable[Any]], Any]) -> tuple[_Encode, _Decode]:
    def read(value: object) -> Any:
        if not isinstance(value, list | tuple):
            raise Unusable(f"is {quoted(value)}", "write a list")
        found = []
        for number, one in enumerate(value):
            try:
                found.append(decode(one))
            except Unusable as error:
                raise _Nested(f"[{number}]", error) from None
            except _Nested as error:
                raise _Nested(f"[{number}]{error.path}", error.unusable) from None
        return build(found)

    return lambda value: [encode(one) for one in value], read


def _table_codec(encode: _Encode, decode: _Decode) -> tuple[_Encode, _Decode]:
    def read(value: object) -> Any:
        if not isinstance(value, Mapping):
            raise Unusable(f"is {quoted(value)}", "write a table")
        found = {}
        for key, one in value.items():
            try:
                found[key] = decode(one)
            except Unusable as error:
                raise _Nested(f".{key}", error) from None
        return found

    return lambda value: {key: encode(one) for key, one in value.items()}, read


def _choice(kind: type[StrEnum]) -> _Decode:
    values = {one.value: one for one in kind}

    def read(value: object) -> StrEnum:
        found = values.get(value) if isinstance(value, str) else None
        if found is None:
            raise Unusable(f"is {quoted(value)}", f"write one of {', '.join(values)}")
        return found

    return read


def instant_text(at: datetime) -> str:
    """An instant as the document has it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _to_instant(value: object) -> datetime:
    at = value if isinstance(value, datetime) else None
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
    if at is None or at.tzinfo is None:
        raise Unusable(f"is {quoted(value)}", "write an instant with its time zone, such as 2026-11-23T02:00:00Z")
    if not YEARS[0] <= at.year < YEARS[1]:
        raise Unusable(f"is {quoted(value)}", f"write an instant of the years {YEARS[0]} to {YEARS[1] - 1}")
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _to_number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Unusable(f"is {quoted(value)}", "write a whole number, 0 or more")
    return value


def _of(kind: type[Any], instead: str) -> _Decode:
    def read(value: object) -> Any:
        if type(value) is not kind:
            raise Unusable(f"is {quoted(value)}", instead)
        return value

    return read


_SIMPLE: dict[Any, tuple[_Encode, _Decode]] = {
    str: (_plain, _of(str, "write a text")),
    int: (_plain, _to_number),
    bool: (_plain, _of(bool, "write true or false")),
    datetime: (instant_text, _to_instant),
}
_to_names = _list_codec(_plain, _of(str, "write a text"), tuple)[1]
_NOW = datetime(1970, 1, 1, tzinfo=UTC)  # Only ever in facts that are refused.
_DISK = _Shape(Disk)
_UNSAID = {"capacity_bytes": 0, "datastore": "", "file_name": "", "mode": "persistent"}
_VM = _Shape(
    Vm,
    disks=_list_codec(lambda disk: _encode(_DISK, disk), lambda value: _DISK.arguments(value, _DISK.required), tuple),
)
_POINT = _Shape(RestorePoint)
_HISTORY = _Shape(VmHistory)
_FIRED = _Shape(_Fired)


def _vm_as_json(vm: Vm) -> dict[str, Any]:
    written = _encode(_VM, vm)
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
    written = _encode(_POINT, point)
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
