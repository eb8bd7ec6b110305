"""The text of a condition, looked at before CEL sees it: what it names, and which parts decide.

Names, properties and functions that do not exist are refused with what to write instead, and so is what could take
long or nest deeply: regular expressions, one list inside another, tables made on the spot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from policies.closest import closest
from policies.errors import Unusable, quoted
from policies.facts import Event, Vm

LONGEST = 500
DEEPEST = 12
"""Characters, and brackets inside brackets: more is hardly meant, and both bound the time that an answer takes."""

VM_PROPERTIES: Mapping[str, Callable[[Vm], object]] = {
    "name": lambda vm: vm.name,
    "folder": lambda vm: vm.folder,
    "power": lambda vm: vm.power.value,
    "tags": lambda vm: sorted(vm.tags),
    "host": lambda vm: vm.host,
    "cluster": lambda vm: vm.cluster,
    "datacenter": lambda vm: vm.datacenter,
    "resource_pool": lambda vm: vm.resource_pool,
    "datastores": lambda vm: list(vm.datastores),
    "networks": lambda vm: list(vm.networks),
    "guest_os": lambda vm: vm.guest_os,
    "size": lambda vm: sum(disk.capacity_bytes for disk in vm.disks),
    "disks": lambda vm: len(vm.disks),
    "snapshots": lambda vm: len(vm.snapshots),
    "attributes": lambda vm: dict(vm.attributes),
}

EVENT_PROPERTIES: Mapping[str, Callable[[Event], object]] = {
    "type": lambda event: event.type.value,
    "cause": lambda event: event.cause,
    "from_host": lambda event: event.from_host,
    "to_host": lambda event: event.to_host,
    "user": lambda event: event.user,
    "source": lambda event: event.source,
    "detail": lambda event: dict(event.detail),
}

MOST_LISTS = 6
"""How often lists and whole tables of a VM or an event may be named: where one is asked in another, all are compared
with all."""

_LISTS = {"tags", "datastores", "networks"}
_PROPERTIES: Mapping[str, tuple[str, ...]] = {"vm": tuple(VM_PROPERTIES), "event": tuple(EVENT_PROPERTIES)}
_VARIABLES = ("vm", "event", "now", "last_good_age", "last_attempt_age", "failures")
_OPEN = {("vm", "attributes"), ("event", "detail")}
"""Tables whose keys a policy may name; a key that is not there reads as an empty text."""

_WORDS = {"true", "false", "null", "in"}
_FUNCTIONS = ("size", "int", "uint", "double", "string", "timestamp", "duration", "has")
_MACROS = ("exists", "all", "exists_one", "map", "filter")
_METHODS = (
    "contains", "startsWith", "endsWith", "size", *_MACROS, "getFullYear", "getMonth", "getDate", "getDayOfMonth",
    "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds",
)  # fmt: skip
_HABITS = {"and": "&&", "or": "||", "not": "!", "AND": "&&", "OR": "||", "NOT": "!", "True": "true", "False": "false"}
EXAMPLE = 'write a comparison such as last_good_age > duration("1h") or "env=prod" in vm.tags'

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<number>0[xX][0-9a-fA-F]+u?|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?u?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Named:
    """What a text refers to: variables, properties of `vm` and `event`, and keys of tables that read as empty."""

    variables: frozenset[str]
    vm: tuple[str, ...]
    event: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]


def lexed(text: str) -> list[Token]:
    if len(text) > LONGEST:
        raise Unusable(f"a condition of {len(text)} characters is too long", f"write at most {LONGEST}")
    tokens: list[Token] = []
    end = -1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "other":
            habit = match[0] == "=" and "write == to compare"
            raise wrong(text, match.start(), f"has {quoted(match[0])}", habit or "write it without")
        if kind == "text" and tokens and end == match.start() and tokens[-1].kind in ("name", "text"):
            raise wrong(text, match.start(), "has a kind of text that is not known", 'write plain quotes such as "web"')
        if kind != "space":
            tokens.append(Token(kind, match[0], match.start()))
            end = match.end()
    if not tokens:
        raise Unusable("a condition is empty", f"{EXAMPLE} or leave the key out")
    return tokens


def wrong(text: str, at: int, what: str, instead: str) -> Unusable:
    return Unusable(f"condition {quoted(text)} {what} at character {at + 1}", instead)


def named_in(text: str, tokens: list[Token]) -> Named:
    """What the text names; raises Unusable."""
    return _Reading(text, tokens).read()


class _Reading:
    """One walk over the tokens of a text, which finds what they name and refuses what is not known."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._brackets: list[str | None] = []
        self._variables: set[str] = set()
        self._properties: dict[str, dict[str, None]] = {"vm": {}, "event": {}}
        self._keys: dict[str, dict[str, None]] = {"attributes": {}, "detail": {}}
        self._asked_for: set[str] = set()
        self._lists = 0

    def read(self) -> Named:
        """What the text names; raises Unusable."""
        for index, token in enumerate(self._tokens):
            if token.kind == "sign":
                self._sign(index, token)
            elif token.kind == "name":
                self._name(index, token)
        keys = {name: tuple(found) for name, found in self._keys.items() if found and name not in self._asked_for}
        return Named(frozenset(self._variables), tuple(self._properties["vm"]), tuple(self._properties["event"]), keys)

    def _at(self, index: int) -> str:
        return self._tokens[index].text if 0 <= index < len(self._tokens) else ""

    def _sign(self, index: int, token: Token) -> None:
        if token.text in "([":
            self._brackets.append(self._bound(index) if token.text == "(" else None)
            if len(self._brackets) > DEEPEST:
                raise wrong(self._text, token.at, "is nested too deeply", f"nest at most {DEEPEST} brackets")
        elif token.text in ")]" and self._brackets:
            self._brackets.pop()
        elif token.text == "." and self._tokens[index + 1 : index + 2] and self._tokens[index + 1].kind != "name":
            raise wrong(self._text, token.at, "has a dot without a name after it", EXAMPLE)

    def _bound(self, index: int) -> str | None:
        """The variable that a macro such as exists(x, …) binds; None for any other bracket."""
        macro = self._tokens[index - 1] if index and self._at(index - 2) == "." else None
        if macro is None or macro.text not in _MACROS:
            return None
        if any(self._brackets):
            raise wrong(self._text, macro.at, f"has {macro.text}() inside another", "ask one list at a time")
        variable = self._tokens[index + 1] if index + 1 < len(self._tokens) else macro
        if variable.kind != "name" or self._at(index + 2) != "," or variable.text in (*_VARIABLES, *_WORDS):
            instead = f'write {macro.text}(x, x.startsWith("…"))'
            raise wrong(self._text, macro.at, f"has {macro.text}() without a name for the element", instead)
        return variable.text

    def _name(self, index: int, token: Token) -> None:
        before, after = self._at(index - 1), self._at(index + 1)
        if before == ".":
            if after == "(":
                self._known(token, _METHODS, "method")
        elif after == "(" and token.text != "in":
            if token.text in _HABITS:
                raise self._unknown(token, (), "word")
            self._known(token, _FUNCTIONS, "function")
        elif token.text not in _WORDS and token.text not in self._brackets:
            self._known(token, _VARIABLES, "variable")
            self._variables.add(token.text)
            if token.text in _PROPERTIES:
                self._property(index, token)

    def _known(self, token: Token, known: tuple[str, ...], noun: str) -> None:
        if token.text not in known:
            raise self._unknown(token, known, noun)

    def _unknown(self, token: Token, known: tuple[str, ...], noun: str) -> Unusable:
        if token.text == "matches":
            instead = "write startsWith, endsWith or contains: searching by pattern can take too long"
            return wrong(self._text, token.at, "has matches()", instead)
        close = _HABITS.get(token.text) or closest(token.text, known)
        instead = f"write {close}" if close else f"write one of {', '.join(known)}"
        return wrong(self._text, token.at, f"has the unknown {noun} {quoted(token.text)}", instead)

    def _property(self, index: int, owner: Token) -> None:
        known = _PROPERTIES[owner.text]
        if self._at(index + 1) != "." or index + 2 >= len(self._tokens):
            what = f"names {owner.text} without a property"
            raise wrong(self._text, owner.at, what, f"write {owner.text}.{known[0]} or the like")
        wanted = self._tokens[index + 2]
        if wanted.text not in known:
            close = closest(wanted.text, known)
            instead = f"write {owner.text}.{close}" if close else f"write one of {', '.join(known)}"
            raise wrong(self._text, wanted.at, f"has the unknown property {owner.text}.{wanted.text[:40]}", instead)
        if self._at(index + 3) == "(":
            raise wrong(self._text, wanted.at, f"calls {owner.text}.{wanted.text}", "write it without brackets")
        self._properties[owner.text][wanted.text] = None
        if (owner.text, wanted.text) in _OPEN:
            self._lists += not self._key(index, wanted.text)
        self._lists += wanted.text in _LISTS
        if self._lists > MOST_LISTS:
            raise wrong(self._text, owner.at, "asks too many lists", f"name at most {MOST_LISTS}")

    def _key(self, index: int, table: str) -> bool:
        """Note the key of a table that is read, and whether the text asks if there is one; False for a whole table."""
        if self._at(index - 1) == "in" or (self._at(index - 1) == "(" and self._at(index - 2) == "has"):
            self._asked_for.add(table)
        key = self._tokens[index + 4] if index + 4 < len(self._tokens) else None
        match self._at(index + 3), key:
            case ".", Token("name", name) if self._at(index + 5) != "(":
                self._keys[table][name] = None
            case "[", Token("text", name) if "\\" not in name:
                self._keys[table][name[1:-1]] = None
            case _:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Operand:
    """A part of a text that is an expression by itself.

    `decides` when it must be true or false. `sign` is where the == or != of a plain comparison stands, else 0.
    """

    start: int
    stop: int
    decides: bool
    sign: int


def operands(tokens: list[Token], first: int, stop: int) -> Iterator[Operand]:
    """The parts between logical operators and commas, in brackets too.

    CEL stops at the first part that decides; each is to be tried by itself so that an error in the others is found.
    What is inside a macro such as exists(x, …) is a part of the macro only.
    """
    decides = first == 0
    begin = index = first
    relations: list[Token] = []
    while index <= stop:
        token = tokens[index] if index < stop else Token("sign", "", 0)
        sign = token.text if token.kind == "sign" else ""
        if sign in ("(", "["):
            closing = _closing(tokens, index)
            if index < 2 or tokens[index - 1].text not in _MACROS:
                yield from operands(tokens, index + 1, closing)
            index = closing
        elif sign in ("==", "!=", "<", "<=", ">", ">=") or (token.kind, token.text) == ("name", "in"):
            relations.append(token)
        elif token.kind == "sign" and sign in ("&&", "||", "?", ":", ",", ""):
            if begin < index:
                last = tokens[index - 1]
                plain = len(relations) == 1 and relations[0].text in ("==", "!=")
                yield Operand(
                    tokens[begin].at,
                    last.at + len(last.text),
                    (decides and not sign) or sign in ("&&", "||", "?"),
                    relations[0].at if plain else 0,
                )
            decides = sign in ("&&", "||") or (first == 0 and sign in ("?", ":"))
            begin, relations = index + 1, []
        index += 1


def _closing(tokens: list[Token], index: int) -> int:
    """Where the bracket that opens here is closed; CEL has seen that it is."""
    depth = 0
    while True:
        if tokens[index].kind == "sign":
            depth += (tokens[index].text in "([") - (tokens[index].text in ")]")
        if not depth:
            return index
        index += 1
