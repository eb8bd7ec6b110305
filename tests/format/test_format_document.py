"""docs/format.md says what storage/format.py does."""

from __future__ import annotations

import re
from pathlib import Path

from storage import catalog, format
from storage.catalog_rows import TABLES
from storage.marks import MarkKind

DOCUMENT = Path("docs/format.md").read_text(encoding="utf-8")


def test_the_document_gives_every_magic_and_length() -> None:
    for magic in (format.PACK_MAGIC, format.TRAILER_MAGIC, format.OBJECT_MAGIC, format.RUN_MAGIC):
        assert f"`{magic.decode()}`" in DOCUMENT
    lengths = {"header": format.HEADER_BYTES, "trailer": format.TRAILER_BYTES}
    for part, length in lengths.items():
        assert f"| {part} | {length} |" in DOCUMENT
    assert f"| footer | {format.ENTRY.size} for each payload" in DOCUMENT
    assert f"| {format.ENVELOPE.size} | | payload |" in DOCUMENT


def test_the_document_names_every_kind_of_mark_and_table_and_the_versions() -> None:
    for kind in MarkKind:
        assert re.search(rf"\b{kind.value}\b", DOCUMENT)
    for table in TABLES:
        assert f"`{table}`" in DOCUMENT
    assert f"format {format.VERSION}\n" in DOCUMENT
    assert f"schema {catalog.SCHEMA}:" in DOCUMENT
    assert catalog.STORAGE_VERSION in DOCUMENT
