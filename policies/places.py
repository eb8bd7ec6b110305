"""Where each key and value of a TOML text stands, from its syntax tree.

tomli alone decides what is valid; this only says where. A path is the keys from the root, with a number for each
element of an array, as pydantic writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import tomli
import tree_sitter_toml
from tree_sitter import Language, Node, Parser

Path = tuple[str | int, ...]

_LANGUAGE = Language(tree_sitter_toml.language())
_KEYS = {"bare_key", "quoted_key", "dotted_key"}


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column from 1; columns count characters."""

    line: int
    column: int


class Places:
    """The places of one text. Asking for an unknown path gives the place of its nearest known beginning."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.encode().split(b"\n")
        self.keys: dict[Path, Place] = {(): Place(1, 1)}
        self.values: dict[Path, Place] = {}
        self._counts: dict[Path, int] = {}
        self._walk(Parser(_LANGUAGE).parse(text.encode()).root_node)

    def key(self, path: Sequence[str | int]) -> Place:
        """Where the last key of the path is written; of a header for a table."""
        return self._nearest(tuple(path), values=False)

    def value(self, path: Sequence[str | int]) -> Place:
        """Where the value of the path begins."""
        return self._nearest(tuple(path), values=True)

    def _nearest(self, path: Path, *, values: bool) -> Place:
        known = path
        while known not in self.keys:
            known = known[:-1]
        missing = [part for part in path[len(known) :] if isinstance(part, str)]
        if missing:
            return self._searched(self.keys[known], missing[-1])
        return self.values.get(known, self.keys[known]) if values else self.keys[known]

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

    def _walk(self, root: Node) -> None:
        # A stack, not recursion: nesting is as deep as a hostile file makes it.
        stack: list[tuple[Node, Path]] = [(root, ())]
        while stack:
            node, path = stack.pop()
            match node.type:
                case "table" | "table_array_element":
                    stack.extend(self._header(node))
                case "pair":
                    stack.extend(self._pair(node, path))
                case "array":
                    elements = [child for child in node.named_children if child.type != "comment"]
                    for index, element in enumerate(elements):
                        self._keep(self.values, (*path, index), self._place(element))
                        self._keep(self.keys, (*path, index), self._place(element))
                        stack.append((element, (*path, index)))
                case _:
                    stack.extend((child, path) for child in reversed(node.named_children))

    def _header(self, node: Node) -> list[tuple[Node, Path]]:
        keys = [child for child in node.named_children if child.type in _KEYS]
        path: Path = ()
        parts = [part for key in keys for part in self._parts(key)]
        for number, (name, place) in enumerate(parts):
            path = (*path, name)
            self._keep(self.keys, path, place)
            last = number == len(parts) - 1
            if last and node.type == "table_array_element":
                index = self._counts.get(path, -1) + 1
                self._counts[path] = index
            if path in self._counts:
                path = (*path, self._counts[path])
                self._keep(self.keys, path, place)
        return [(child, path) for child in reversed(node.named_children) if child not in keys]

    def _pair(self, node: Node, path: Path) -> list[tuple[Node, Path]]:
        key, value = node.named_children[0], node.named_children[-1]
        for name, place in self._parts(key):
            path = (*path, name)
            self._keep(self.keys, path, place)
        self._keep(self.values, path, self._place(value))
        return [(value, path)]

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

    @staticmethod
    def _keep(into: dict[Path, Place], path: Path, place: Place) -> None:
        into.setdefault(path, place)


def _name(node: Node) -> str:
    text = (node.text or b"").decode(errors="replace")
    if node.type == "bare_key":
        return text
    try:
        return next(iter(tomli.loads(f"{text} = 0")))
    except tomli.TOMLDecodeError:
        return text.strip("\"'")
