"""Where each key of a policy stands: in its own table, or in that of a template. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.errors import Problem
from policies.parsing import File, parse_file
from policies.policy import Policy, Source

Path = tuple[str | int, ...]


class Origins:
    """The files of a policy set, to be asked for the place of a key."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        ignored: list[Problem] = []
        self._tables: dict[tuple[str, str], File] = {}
        for name, text in sorted(texts.items()):
            file = parse_file(name, text, ignored) if name.endswith(".toml") else None
            if file is not None:
                for kind in ("policy", "template"):
                    self._tables.update({(kind, one): file for one in file.data.get(kind, {})})

    def of(self, policy: Policy, path: Path = ()) -> Source:
        """Where the key stands that counts for the policy; of the nearest table around it where it is not written."""
        for length in range(len(path), 0, -1):
            found = self._written(policy.name, path[:length])
            if found is not None:
                return found
        return policy.source

    def unused_templates(self) -> list[tuple[str, Source]]:
        """Templates that no policy is made from, each with its place."""
        used: set[tuple[str, str]] = set()
        for kind, name in self._tables:
            table = (kind, name)
            while kind == "policy" and (file := self._tables.get(table)) is not None and table not in used:
                used.add(table)
                table = ("template", file.data[table[0]][table[1]].get("template", ""))
        unused = [(table, file) for table, file in self._tables.items() if table not in used]
        return [(table[1], _source(file, table)) for table, file in unused]

    def _written(self, policy: str, path: Path) -> Source | None:
        table, seen = ("policy", policy), set[tuple[str, str]]()
        while (file := self._tables.get(table)) is not None and table not in seen:
            seen.add(table)
            if _has(file.data, (*table, *path)):
                return _source(file, (*table, *path))
            table = ("template", file.data[table[0]][table[1]].get("template", ""))
        return None


def _source(file: File, path: Path) -> Source:
    place = file.places.key(path)
    return Source(file.name, place.line, place.column)


def _has(data: Any, path: Path) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
