"""The archive of what a restore point keeps of a VM beside its disks."""

import zipfile
from io import BytesIO

import pytest

from connectors.errors import Rejected
from connectors.kept_vm import KeptVm, pack, unpack

KEPT = KeptVm(b"<obj/>", b"\x00nvram\xff" * 1000, {"name": "web", "tags": ["a=b"]})


def test_what_is_packed_is_unpacked_and_equal_parts_are_equal_bytes() -> None:
    assert unpack(pack(KEPT)) == KEPT
    assert pack(KEPT) == pack(KEPT)


def test_a_common_tool_reads_it() -> None:
    with zipfile.ZipFile(BytesIO(pack(KEPT))) as archive:
        assert archive.namelist() == ["nvram", "configuration.xml", "summary.json"]


def test_an_older_restore_point_s_bare_configuration_is_read() -> None:
    assert unpack(b"<obj/>") == KeptVm(b"<obj/>")
    assert unpack(b"") == KeptVm(b"")


def test_the_nvram_lies_at_the_same_place_whatever_the_configuration_is() -> None:
    other = KeptVm(b"<obj>longer</obj>", KEPT.nvram, {})
    assert pack(other)[: len(KEPT.nvram)] == pack(KEPT)[: len(KEPT.nvram)]


@pytest.mark.parametrize("cut", [10, 200, 7000])
def test_a_broken_archive_is_refused(cut: int) -> None:
    with pytest.raises(Rejected):
        unpack(pack(KEPT)[:cut])


@pytest.mark.parametrize("at", [50, 6100])
def test_a_changed_byte_is_seen(at: int) -> None:
    data = bytearray(pack(KEPT))
    data[at] ^= 1
    with pytest.raises(Rejected):
        unpack(bytes(data))


def test_an_archive_of_something_else_is_refused() -> None:
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(Rejected, match="not an archive of ours"):
        unpack(held.getvalue())
