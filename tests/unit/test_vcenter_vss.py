"""What a manifest of VSS is taken for."""

from __future__ import annotations

import io
import zipfile

import pytest

from connectors.vsphere.vss_manifest import only_file_systems

BACKUP = '<BACKUP_COMPONENTS xmlns="x-schema:#VssComponentMetadata" version="1.2"/>'
WRITER = '<?xml version="1.0"?><WRITER_METADATA xmlns="x-schema:#VssWriterMetadataInfo" version="1.1"/>'


def archive(*documents: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as made:
        for number, document in enumerate(documents):
            made.writestr(f"document{number}", document)
    return held.getvalue()


@pytest.mark.parametrize(
    ("documents", "bare"),
    [
        ((BACKUP.encode(),), True),
        ((BACKUP.encode(), WRITER.encode()), False),
        ((BACKUP.encode("utf-16"), WRITER.encode("utf-16")), False),
        ((BACKUP.encode("utf-16-le"), b"<notes/>"), True),
        ((f"<root>{WRITER}</root>".encode(),), False),
        ((b"<notes>WRITER_METADATA</notes>", BACKUP.encode()), True),
    ],
    ids=[
        "backup alone",
        "a writer too",
        "UTF-16",
        "UTF-16 without a mark",
        "within another element",
        "named in a text",
    ],
)
def test_a_manifest_without_a_writer_s_document_is_one_of_file_systems(
    documents: tuple[bytes, ...], bare: bool
) -> None:
    assert only_file_systems(archive(*documents)) is bare


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 and no more", archive(), archive(b"<notes/>"), archive(BACKUP.encode() * 9)[:-40]],
    ids=["empty", "cut off at once", "nothing in it", "nothing of VSS", "cut off"],
)
def test_what_is_no_manifest_is_not_judged(data: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        only_file_systems(data)


def test_only_the_beginning_of_a_large_document_is_looked_at() -> None:
    large = BACKUP.encode() + b" " * (1 << 20) + WRITER.encode()
    assert only_file_systems(archive(large))
