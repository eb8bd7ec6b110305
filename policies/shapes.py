"""How records of values are written to JSON and read back, made from the fields of their dataclasses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.facts import instant_text

YEARS = (1970, 9000)
"""Instants of these years, without the last: what is added to them, a century at most, is an instant too."""


Decode = Callable[[object], Any]
Encode = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Nested(Exception):
    """A problem below a value: where, as ".key" or "[3]", and what is unusable there."""

    path: str
    unusable: Unusable


class Shape:
    """How a dataclass is written and read, made from its fields."""

    def __init__(self, kind: type[Any], **instead: tuple[Encode, Decode]) -> None:
        hints = get_type_hints(kind)
        self.kind = kind
        self.encoders: list[tuple[str, Any, Encode | None]] = []
        self.decoders: dict[str, Decode] = {}
        self.required: list[str] = []
        for field in fields(kind):
            encode, decode = instead.get(field.name) or _codec(hints[field.name])
            default: Any = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            self.encoders.append((field.name, default, None if encode is plain else encode))
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
                raise unknown_key(key, self.decoders)
            try:
                arguments[key] = decode(one)
            except Unusable as error:
                raise Nested(f".{key}", error) from None
            except Nested as error:
                raise Nested(f".{key}{error.path}", error.unusable) from None
        for key in self.required:
            if key not in arguments and key not in optional:
                raise Unusable(f"has no {key}", f"write its {key}")
        return arguments


def unknown_key(key: object, known: Iterable[str]) -> Unusable:
    guess = closest(str(key), known)
    return Unusable(
        f"has an unknown key {quoted(key)}", f"write {guess}" if guess else f"write one of {', '.join(known)}"
    )


def encoded(shape: Shape, record: object) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, default, encode in shape.encoders:
        value = getattr(record, name)
        if value != default:
            written[name] = encode(value) if encode else value
    return written


def plain(value: Any) -> object:
    return value


def _codec(kind: Any) -> tuple[Encode, Decode]:
    if isinstance(kind, NewType):
        return _codec(kind.__supertype__)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        encode, decode = _codec(next(one for one in arguments if one is not NoneType))
        return encode, lambda value: None if value is None else decode(value)
    if origin is tuple and arguments[1:] == (...,):
        return list_codec(*_codec(arguments[0]), tuple)
    if origin is frozenset:
        encode, decode = list_codec(*_codec(arguments[0]), frozenset)
        return lambda value: sorted(value), decode
    if origin is Mapping:
        return _table_codec(*_codec(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda value: value.value, _choice(kind)
    shape = Shape(kind)
    return lambda value: encoded(shape, value), shape.decode


def list_codec(encode: Encode, decode: Decode, build: Callable[[Iterable[Any]], Any]) -> tuple[Encode, Decode]:
    def read(value: object) -> Any:
        if not isinstance(value, list | tuple):
            raise Unusable(f"is {quoted(value)}", "write a list")
        found = []
        for number, one in enumerate(value):
            try:
                found.append(decode(one))
            except Unusable as error:
                raise Nested(f"[{number}]", error) from None
            except Nested as error:
                raise Nested(f"[{number}]{error.path}", error.unusable) from None
        return build(found)

    return lambda value: [encode(one) for one in value], read


def _table_codec(encode: Encode, decode: Decode) -> tuple[Encode, Decode]:
    def read(value: object) -> Any:
        if not isinstance(value, Mapping):
            raise Unusable(f"is {quoted(value)}", "write a table")
        found = {}
        for key, one in value.items():
            try:
                found[key] = decode(one)
            except Unusable as error:
                raise Nested(f".{key}", error) from None
        return found

    return lambda value: {key: encode(one) for key, one in value.items()}, read


def _choice(kind: type[StrEnum]) -> Decode:
    values = {one.value: one for one in kind}

    def read(value: object) -> StrEnum:
        found = values.get(value) if isinstance(value, str) else None
        if found is None:
            raise Unusable(f"is {quoted(value)}", f"write one of {', '.join(values)}")
        return found

    return read


def to_instant(value: object) -> datetime:
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


def exactly(kind: type[Any], instead: str) -> Decode:
    def read(value: object) -> Any:
        if type(value) is not kind:
            raise Unusable(f"is {quoted(value)}", instead)
        return value

    return read


_SIMPLE: dict[Any, tuple[Encode, Decode]] = {
    str: (plain, exactly(str, "write a text")),
    int: (plain, _to_number),
    bool: (plain, exactly(bool, "write true or false")),
    datetime: (instant_text, to_instant),
}
_to_names = list_codec(plain, exactly(str, "write a text"), tuple)[1]
