"""What keeps a catalog from being believed, and what only keeps it from being written."""

from __future__ import annotations

FULL = ("No space left", "Disk quota exceeded", "File too large")
TROUBLE = ("Read-only file system", "Permission denied", "Could not set lock", "Too many open files")


class Doubtful(Exception):
    """The catalog does not explain itself. `kind` is one word for the metric."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def is_full(error: Exception) -> bool:
    """Whether the store has no room. DuckDB tells only in words."""
    return any(words in str(error) for words in FULL)


def is_trouble(error: Exception) -> bool:
    """Whether the store is to blame, and not what the catalog holds."""
    return any(words in str(error) for words in (*FULL, *TROUBLE))
