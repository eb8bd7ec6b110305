"""Conditions of triggers: `when = "…"`, an expression in CEL. Checked as a policy is read, total when it is asked.

A text is lexed here first: names, properties and functions that do not exist are refused with what to write instead,
and so is what could take long or nest deeply. What is left is compiled and tried on a VM like any other, so that a
comparison of a name with a number is found before an event depends on it. A text that passes ends within
milliseconds, whatever the VM.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol

from policies.errors import Unusable, printable, quoted
from policies.expressions import EVENT_PROPERTIES, EXAMPLE, VM_PROPERTIES, Named, lexed, named_in, operands, wrong
from policies.facts import Address, Event, EventType, Vm, VmId

NEVER = timedelta(days=36_500)
"""The age of what never was: a VM that was never backed up has waited longer than any condition asks for."""

_EXTENSION = "cel.cel"
_CEL_PLACE = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")
_BROKEN = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError)
"""What CEL raises for an expression that it cannot read or work out."""


class _Program(Protocol):
    def execute(self, context: Mapping[str, object]) -> object: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a condition holds. `trouble` is the sentence that says why nobody can tell; it holds then."""

    holds: bool
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """A text that `check_condition` accepts."""

    text: str

    def ask(
        self,
        vm: Vm,
        event: Event,
        now: datetime,
        *,
        last_good: datetime | None = None,
        last_attempt: datetime | None = None,
        failures: int = 0,
    ) -> Answer:
        """Whether it holds. Where it cannot be worked out it does: too much protection is the safe side."""
        program, named = _compiled(self.text)
        values: dict[str, object] = {}
        for name in named.variables:
            match name:
                case "vm":
                    values[name] = _properties(VM_PROPERTIES, named.vm, vm, named.keys)
                case "event":
                    values[name] = _properties(EVENT_PROPERTIES, named.event, event, named.keys)
                case "now":
                    values[name] = now
                case "last_good_age":
                    values[name] = _age(last_good, now)
                case "last_attempt_age":
                    values[name] = _age(last_attempt, now)
                case "failures":
                    values[name] = failures
        try:
            said = program.execute(values)
        except _BROKEN as error:
            return Answer(True, _why(error))
        return Answer(said) if isinstance(said, bool) else Answer(True, "it says neither true nor false")


def _properties(
    known: Mapping[str, Callable[[Any], object]],
    wanted: tuple[str, ...],
    of: object,
    keys: Mapping[str, tuple[str, ...]],
) -> dict[str, object]:
    found = {name: known[name](of) for name in wanted}
    for table, names in keys.items():
        if isinstance(held := found.get(table), dict):
            for name in names:
                held.setdefault(name, "")
    return found


def _age(at: datetime | None, now: datetime) -> timedelta:
    return NEVER if at is None else max(now - at, timedelta())


def check_condition(text: str) -> str:
    """The text itself when it can be used as a condition; raises Unusable."""
    _compiled(text)
    return text


@lru_cache(maxsize=4096)
def _compiled(text: str) -> tuple[_Program, Named]:
    tokens = lexed(text)
    named = named_in(text, tokens)
    program = _program(text)
    for operand in operands(tokens, 0, len(tokens)):
        said = _tried(text, operand.start, operand.stop, named)
        if operand.decides and said is not None and not isinstance(said, bool):
            part = quoted(text[operand.start : operand.stop])
            raise wrong(text, operand.start, f"takes {part} for true or false, which it is not,", EXAMPLE)
        if operand.sign:
            left = _tried(text, operand.start, operand.sign, named)
            right = _tried(text, operand.sign + 2, operand.stop, named)
            if None not in (left, right) and _kind(left) is not _kind(right):
                raise wrong(text, operand.start, "compares things of different kinds", EXAMPLE)
    if not isinstance(_tried(text, 0, len(text), named), bool | None):
        raise Unusable(f"condition {quoted(text)} says neither true nor false", EXAMPLE)
    return program, named


def _kind(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


_LIKE_ANY = Vm(
    VmId("vm"),
    Address("vc", "vm"),
    "vm",
    tags=frozenset({"a=b"}),
    datastores=("d",),
    networks=("n",),
    attributes={"": ""},
)
_SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_SOMETHING = Event("key", EventType.POWERED_ON, _SOME_DAY, "vcenter", detail={"": ""})


def _tried(text: str, start: int, stop: int, named: Named) -> object:
    """What a part says of a VM like any other; None where that depends on the VM. Raises Unusable."""
    values = {
        "vm": _properties(VM_PROPERTIES, tuple(VM_PROPERTIES), _LIKE_ANY, named.keys),
        "event": _properties(EVENT_PROPERTIES, tuple(EVENT_PROPERTIES), _SOMETHING, named.keys),
        "now": _SOME_DAY,
        "last_good_age": NEVER,
        "last_attempt_age": NEVER,
        "failures": 1,
    }
    try:
        return _compile()(text[start:stop]).execute(values)
    except (LookupError, ArithmeticError):
        return None
    except _BROKEN as error:
        raise wrong(text, start, f"cannot be worked out ({_why(error)})", EXAMPLE) from None


def _why(error: Exception) -> str:
    said = str(error)
    function = re.match(r"Function '(\w+)' error", said)
    if function:
        hint = ', which knows h, m and s: duration("24h")' if function[1] == "duration" else ""
        return f"{function[1]}() cannot read its text{hint}"
    match error:
        case KeyError():
            return f"there is no key {quoted(said.strip(chr(39)))}"
        case IndexError():
            return "a list has no such element"
        case TypeError():
            return "it puts together things of different kinds, such as a text and a number"
        case ArithmeticError():
            return "a division by zero or a number that is too large"
    name = re.search(r"Undefined variable or function: '(\w+)'", said)
    return f"{name[1]}() does not go with this kind of value" if name else printable(said.split(chr(10))[0][:100])


def _program(text: str) -> _Program:
    try:
        return _compile()(text)
    except _BROKEN as error:
        place = _CEL_PLACE.search(str(error))
        line, column, told = (int(place[1]), int(place[2]), place[3]) if place else (1, 1, _why(error))
        at = sum(len(one) + 1 for one in text.split("\n")[: line - 1]) + column - 1
        raise wrong(text, at, f"is not valid ({printable(told.partition(' expecting ')[0][:80])})", EXAMPLE) from None


@lru_cache(maxsize=1)
def _compile() -> Callable[[str], _Program]:
    """CEL's compiler. Its package brings a command line along that takes 0.4 s to import: take the extension alone."""
    module = sys.modules.get(_EXTENSION)
    if module is None:
        package = importlib.util.find_spec("cel")
        found = package and importlib.machinery.PathFinder.find_spec(_EXTENSION, package.submodule_search_locations)
        if not found or not found.loader:
            raise ModuleNotFoundError("conditions of policies need the package common-expression-language", name="cel")
        # Known under its name, as it cannot be loaded twice.
        module = sys.modules[_EXTENSION] = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    compiled: Callable[[str], _Program] = module.compile
    return compiled
