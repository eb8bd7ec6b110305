"""Files that a package does not bring: pages of a database, logs. From a seed alone."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE = 8192
_SYLLABLES = ("ka", "to", "mi", "ren", "sol", "ve", "dar", "lin", "os", "pra", "qui", "tem", "bor", "hal", "ne", "wys")


class Prose:
    """Words, names and log lines."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)
        self._words = ["".join(self.chance.choices(_SYLLABLES, k=self.chance.randint(1, 4))) for _ in range(4000)]

    def words(self, count: int) -> str:
        """So many words, blank between."""
        return " ".join(self.chance.choices(self._words, k=count))

    def page(self, number: int, change: int = 0) -> bytes:
        """A page of a table: a header, then rows of numbers and text."""
        rows = [struct.pack("<QQII", number, change, PAGE, self.chance.getrandbits(32))]
        size = len(rows[0])
        while size < PAGE:
            key, amount, at = self.chance.getrandbits(40), self.chance.getrandbits(24), 1_700_000_000 + number
            row = struct.pack("<QIId", key, amount, at, self.chance.random()) + self.words(9).encode() + b"\0"
            rows.append(row)
            size += len(row)
        return b"".join(rows)[:PAGE]

    def log(self, size: int) -> bytes:
        """Lines as a system log has them."""
        lines: list[str] = []
        at = 0.0
        written = 0
        while written < size:
            at += self.chance.expovariate(3)
            who = f"{self.chance.choice(self._words[:40])}[{self.chance.randint(300, 9000)}]"
            where = ".".join(str(self.chance.randint(1, 254)) for _ in range(4))
            line = f"Jan {1 + int(at // 86400) % 28:2d} {at % 86400:012.6f} host {who}: {self.words(7)} from {where}\n"
            lines.append(line)
            written += len(line)
        return "".join(lines).encode()[:size]


def write_table(path: Path, pages: int, prose: Prose) -> None:
    """A database's file of so many pages."""
    with path.open("wb") as file:
        for number in range(pages):
            file.write(prose.page(number))


def changed_pages(pages: int, count: int, prose: Prose) -> Iterator[tuple[int, bytes]]:
    """Random pages written anew: (offset in the file, page), in the order of the file."""
    for number in sorted(prose.chance.sample(range(pages), count)):
        yield number * PAGE, prose.page(number, change=1)
