"""docs/format.md says what storage/format.py does."""

from __future__ import annotations

import re
from pathlib import Path

from storage import (
    blobs,
    catalog,
    catalog_file,
    commitment,
    condemned,
    creation,
    distrust,
    expiry,
    following,
    format,
    keeping,
    keyderivation,
    keyslots,
    locking,
    manifest,
    marks,
    numbering,
    objects,
    readings,
)
from storage.catalog_rows import TABLES
from storage.marks import MarkKind
from storage.repository import open_repository
from storage.verify import verify
from tests.format import example
from tests.storage_kit import read_back

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
    assert catalog_file.STORAGE_VERSION in DOCUMENT


def test_the_document_names_kinds_features_and_the_head_of_a_key_file() -> None:
    kinds = re.search(r"\| 10 \| 1 \| kind: (1 config.*) \|", DOCUMENT)
    assert kinds is not None and re.findall(r"\d", kinds[1]) == [str(kind.value) for kind in format.ObjectKind]
    assert f"`{keyderivation.KEY_FILE_HEAD}:`" in DOCUMENT
    for name in (keyslots.KEY_FILE, keyslots.PASSPHRASE, *format.KNOWN_FEATURES):
        assert f"`{name}`" in DOCUMENT


def test_the_document_names_every_key() -> None:
    keys = {
        format.CONFIG_KEY, format.CONFIG_COPY_KEY, "packs/", manifest.PREFIX, marks.PREFIX, condemned.CONDEMNED,
        condemned.FREEING, commitment.COMMITTING, numbering.PREFIX, objects.CLOCK_KEY, creation.PROBE,
        keeping.KEEPER_FILE, blobs.RESERVE, distrust.KEY, expiry.EXPIRIES_KEY, following.FOLLOWED, locking.KNOWN_KEY,
        readings.KEY, *(f"{name}/" for name in creation.FOLDERS),
    }  # fmt: skip
    for key in keys:
        assert f"`{key}" in DOCUMENT, key


def test_the_document_shows_a_repository_as_the_code_makes_it() -> None:
    assert example.documented() == example.made(), "make it again: python -m tests.format.example --write"


def test_what_the_document_shows_is_a_repository(tmp_path: Path) -> None:
    location = tmp_path / "from the document"
    (location / "spool").mkdir(parents=True)
    for key, data in example.parse(example.documented()).items():
        path = location / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (location / "config.copy").write_bytes((location / "config").read_bytes())
    (location / "index").mkdir()
    with open_repository(location, now=example.MOMENT) as repo:
        (point,) = repo.points()
        assert read_back(repo, point.id) == example.DISK
        assert repo.mark_state(point.id).holds == ("court",)
        assert verify(repo, now=example.MOMENT).sound
