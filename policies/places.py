"""Where each key and value of a TOML text stands, from its syntax tree.

tomli alone decides what is valid; this only says where. A path is the keys from the root, with a number for each
element of an array, as pydantic writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import tomli
import tree_sitter_toml
from tree_sitter import Language, Node, Parser

Path = tuple[str | int, ...]

_LANGUAGE = Language(tree_sitter_toml.language())
_KEYS = {"bare_key", "quoted_key", "dotted_key"}
_FOLDED = {"array", "inline_table"}


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column from 1; columns count characters."""

    line: int
    column: int


class Places:
    """The places of one text. Asking for an unknown path gives the place of its nearest known beginning.

    Tables and arrays are looked into when something in them is asked for: a large file has thousands of them, and
    mostly nobody asks.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.encode().split(b"\n")
        self._keys: dict[Path, Place] = {(): Place(1, 1)}
        self._values: dict[Path, Node] = {}
        self._folded: dict[Path, list[Node]] = {}
        self._counts: dict[Path, int] = {}
        self._walk([Parser(_LANGUAGE).parse(text.encode()).root_node], ())

    def key(self, path: Sequence[str | int]) -> Place:
        """Where the last key of the path is written; of a header for a table."""
        return self._nearest(tuple(path), values=False)

    def value(self, path: Sequence[str | int]) -> Place:
        """Where the value of the path begins."""
        return self._nearest(tuple(path), values=True)

    def knows(self, path: Sequence[str | int]) -> bool:
        """Whether the path itself was found."""
        return self._unfolded(tuple(path)) == tuple(path)

    def _nearest(self, path: Path, *, values: bool) -> Place:
        known = self._unfolded(path)
        missing = [part for part in path[len(known) :] if isinstance(part, str)]
        if missing:
            return self._searched(self._keys[known], missing[-1])
        return self._place(self._values[known]) if values and known in self._values else self._keys[known]

    def _unfolded(self, path: Path) -> Path:
        """The longest beginning of the path that is known, with what lies folded on its way looked into."""
        known: Path = ()
        for length in range(len(path) + 1):
            part = path[:length]
            if part in self._keys:
                known = part
            if length < len(path):
                for node in self._folded.pop(part, ()):
                    self._open(node, part)
        return known

    def _searched(self, start: Place, name: str) -> Place:
        """A key by plain search after the place of its table: for syntax that the grammar does not know."""
        lines = self._text.split("\n")
        pattern = re.compile(rf"(?<![\w-])[\"']?{re.escape(name)}[\"']?\s*(?:[=.\]])")
        for number in range(start.line - 1, len(lines)):
            found = pattern.search(lines[number], start.column - 1 if number == start.line - 1 else 0)
            if found:
                return Place(number + 1, found.start() + 1)
        return start

    def _place(self, node: Node) -> Place:
        row, column = node.start_point
        line = self._lines[row] if row < len(self._lines) else b""
        return Place(row + 1, len(line[:column].decode(errors="replace")) + 1)

    def _walk(self, nodes: Iterable[Node], path: Path) -> None:
        """Note what the nodes say of the table at the path."""
        # A stack, not recursion: nesting is as deep as a hostile file makes it.
        stack = list(reversed(list(nodes)))
        while stack:
            node = stack.pop()
            match node.type:
                case "table" | "table_array_element":
                    self._header(node)
                case "pair":
                    self._pair(node, path)
                case "array" | "inline_table":
                    self._folded.setdefault(path, []).append(node)
                case _:
                    stack.extend(reversed(node.named_children))

    def _open(self, node: Node, path: Path) -> None:
        """Look into a table or array."""
        if node.type == "array":
            for index, element in enumerate(child for child in node.named_children if child.type != "comment"):
                self._values.setdefault((*path, index), element)
                self._keys.setdefault((*path, index), self._place(element))
                self._walk([element], (*path, index))
        else:
            self._walk((child for child in node.named_children if child.type not in _KEYS), path)

    def _header(self, node: Node) -> None:
        first = (node.named_child(index) for index in range(node.named_child_count))
        keys = list(takewhile(lambda child: child is not None and child.type in _KEYS, first))
        path: Path = ()
        parts = [part for key in keys if key is not None for part in self._parts(key)]
        for number, (name, place) in enumerate(parts):
            path = (*path, name)
            self._keys.setdefault(path, place)
            last = number == len(parts) - 1
            if last and node.type == "table_array_element":
                self._counts[path] = self._counts.get(path, -1) + 1
            if path in self._counts:
                path = (*path, self._counts[path])
                self._keys.setdefault(path, place)
        self._folded.setdefault(path, []).append(node)

    def _pair(self, node: Node, path: Path) -> None:
        key, value = node.named_children[0], node.named_children[-1]
        for name, place in self._parts(key):
            path = (*path, name)
            self._keys.setdefault(path, place)
        self._values.setdefault(path, value)
        if value.type in _FOLDED:
            self._folded.setdefault(path, []).append(value)

    def _parts(self, key: Node) -> list[tuple[str, Place]]:
        """The names of a key, left to right; dotted keys nest to the left."""
        found: list[tuple[str, Place]] = []
        stack = [key]
        while stack:
            node = stack.pop()
            if node.type == "dotted_key":
                stack.extend(reversed(node.named_children))
            elif node.type in _KEYS:
                found.append((_name(node), self._place(node)))
        return found


def _name(node: Node) -> str:
    text = (node.text or b"").decode(errors="replace")
    if node.type == "bare_key":
        return text
    try:
        return next(iter(tomli.loads(f"{text} = 0")))
    except tomli.TOMLDecodeError:
        return text.strip("\"'")
