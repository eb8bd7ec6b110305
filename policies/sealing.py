"""Frozen values made in a third of the time, for those who make millions of them. Pure."""

from __future__ import annotations

from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, TypeVar, cast

_Kind = TypeVar("_Kind")


def maker(kind: type[_Kind]) -> type[_Kind]:
    """Called as the class is, it gives the same value of the class. For frozen dataclasses with slots.

    A frozen class sets each of its fields around its own lock. This fills an open twin of the same layout, which
    then becomes a value of the class.
    """

    def seal(self: Any) -> None:
        self.__class__ = kind

    parts = []
    for one in fields(cast(Any, kind)):
        made = one.default_factory
        parts.append((one.name, Any, field(default=one.default) if made is MISSING else field(default_factory=made)))
    return cast(type[_Kind], make_dataclass(kind.__name__, parts, namespace={"__post_init__": seal}, slots=True))
