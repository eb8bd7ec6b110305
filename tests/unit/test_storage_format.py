from __future__ import annotations

import json

import pytest
from blake3 import blake3

from policies.facts import PointId, VmId
from storage import format as fmt
from storage.blockmap import Root
from storage.errors import Damaged, Unsupported
from storage.format import (
    Entry,
    Envelope,
    ObjectKind,
    PackHeader,
    PackKind,
    PackName,
    pack_entry,
    pack_envelope,
    pack_header,
    pack_node,
    pack_trailer,
    parse_entry,
    parse_envelope,
    parse_node,
    parse_pack_header,
    parse_pack_key,
    parse_trailer,
)
from storage.manifest import DiskHead, DiskRecord, Manifest, PointHead, decode, encode
from tests.storage_kit import NOW

HEADER = PackHeader(PackKind.TREE, 1, b"r" * 16, b"p" * 16, b"w" * 16, 7, 42, 1_700_000_000, b"s" * 32)


def _again(data: bytearray) -> bytes:
    """The header with a right check over changed fields."""
    return bytes(data[:112]) + blake3(bytes(data[:112])).digest(16)


def test_a_pack_header_comes_back_and_has_its_documented_places() -> None:
    data = pack_header(HEADER)
    assert len(data) == fmt.HEADER_BYTES == 128
    assert parse_pack_header(data, "x") == HEADER
    assert (data[:8], data[10], data[11], data[12]) == (b"BSTYPACK", 2, 1, 1)
    assert (data[16:32], data[80:112]) == (b"r" * 16, b"s" * 32)
    assert int.from_bytes(data[68:72], "little") == 42


def test_headers_that_are_cut_changed_foreign_or_newer_are_told_apart() -> None:
    data = bytearray(pack_header(HEADER))
    with pytest.raises(Damaged, match="not what was written"):
        parse_pack_header(bytes(data[:100]), "x")
    for place, value, error in (
        (0, 0, Damaged),
        (10, 3, Damaged),
        (8, 0, Unsupported),
        (8, fmt.VERSION + 1, Unsupported),
        (11, 0x80, Unsupported),
        (12, 2, Unsupported),
        (13, 1, Unsupported),
        (14, 1, Unsupported),
    ):
        broken = bytearray(data)
        broken[place] = value
        with pytest.raises(Damaged):
            parse_pack_header(bytes(broken), "x")
        with pytest.raises(error):
            parse_pack_header(_again(broken), "x")


def test_an_entry_comes_back_from_its_slot() -> None:
    entries = [Entry(bytes([n]) * 32, 128 + n, 1000 + n, 65536, n % 2, 0xDEADBEEF) for n in range(3)]
    footer = b"".join(map(pack_entry, entries))
    assert [parse_entry(footer, slot) for slot in range(3)] == entries
    assert len(footer) == 3 * 48


def test_a_trailer_binds_header_and_footer() -> None:
    trailer = pack_trailer(b"h" * 128, b"f" * 48, 5000, 1)
    parsed = parse_trailer(trailer, "x")
    assert (parsed.footer_offset, parsed.footer_bytes, parsed.chunks) == (5000, 48, 1)
    fmt.check_footer(parsed, b"h" * 128, b"f" * 48, "x")
    for header, footer in ((b"H" * 128, b"f" * 48), (b"h" * 128, b"F" * 48)):
        with pytest.raises(Damaged):
            fmt.check_footer(parsed, header, footer, "x")
    for broken in (trailer[:-1], trailer[:-1] + b"?", trailer[:20] + b"\1" + trailer[21:]):
        with pytest.raises(Damaged):
            parse_trailer(broken, "x")
    with pytest.raises(Unsupported):
        parse_trailer(trailer[:16] + b"\2" + trailer[17:], "x")


@pytest.mark.parametrize("kind", list(PackKind))
def test_a_pack_s_key_says_number_id_and_kind(kind: PackKind) -> None:
    name = PackName(0x1FF, bytes(range(16)), kind)
    assert name.key.startswith("packs/ff/000001ff-000102")
    assert parse_pack_key(name.key) == name


@pytest.mark.parametrize(
    "key",
    [
        "packs/ff/notes.txt",
        "packs/01/00000001-zz.data",
        "packs/02/00000001-" + "00" * 16 + ".data",
        "packs/01/00000001-" + "00" * 15 + ".data",
        "packs/01/00000001-" + "00" * 16 + ".blob",
        "packs/01/00000001-" + "00" * 16 + ".data.data",
    ],
)
def test_other_files_are_not_taken_for_packs(key: str) -> None:
    assert parse_pack_key(key) is None


def test_an_envelope_comes_back_and_nothing_else_is_one() -> None:
    envelope = Envelope(ObjectKind.MARK, 0, 5, b"r" * 16, bytes(32))
    data = pack_envelope(envelope)
    assert len(data) == 64
    assert parse_envelope(data + b"hello", "x") == envelope
    for broken in (data[:63], b"X" + data[1:], data[:10] + b"\x09" + data[11:]):
        with pytest.raises(Damaged):
            parse_envelope(broken, "x")
    for other in (data[:8] + b"\xff" + data[9:], data[:9] + b"\xff" + data[10:], data[:11] + b"\2" + data[12:]):
        with pytest.raises(Unsupported, match="use a newer Backstay"):
            parse_envelope(other, "x")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("slots", [[], [0], [63], list(range(64)), [1, 5, 40]])
def test_a_node_comes_back(level: int, slots: list[int]) -> None:
    children = {slot: bytes([slot]) * 32 for slot in slots}
    counts = {slot: slot + 1 for slot in slots} if level else {}
    data = pack_node(level, 64, children, counts)
    node = parse_node(data, level, 64, "x")
    assert (node.level, node.children, node.counts) == (level, children, counts)
    assert len(data) == 16 + len(slots) * (36 if level else 32)


def test_a_node_of_another_place_or_length_is_damage() -> None:
    data = pack_node(0, 60, {3: b"c" * 32}, {})
    for broken, level, fan_out in (
        (data, 1, 60),
        (data, 0, 64),
        (data + b"x", 0, 60),
        (data[:-1], 0, 60),
        (data[:9], 0, 60),
        (data[:8] + bytes(7) + b"\xf0" + data[16:] + b"c" * 96, 0, 60),
    ):
        with pytest.raises(Damaged):
            parse_node(broken, level, fan_out, "x")


@pytest.mark.parametrize("value", [None, True, -1, 1 << 70, 1.5, "", "\ud800", [], {}, [1], {"a": 1}, "zz"])
def test_a_manifest_with_any_other_value_in_any_place_is_damaged_or_one_that_says_what_one_says(value: object) -> None:
    head = PointHead(VmId("vm"), "web", NOW, aliases={"moref": "vm-1"}, attributes={"policy": "gold"})
    disk = DiskRecord(DiskHead("Hard disk 1", 4096, uuid="u"), Root(bytes(32), 1, 1))
    good = Manifest(
        PointId("p"), head, NOW, "w", 1, 64, 65536, (disk,), (("Hard disk 2", "independent"),), (bytes(32),)
    )
    document = json.loads(encode(good))
    places = [(document, key) for key in document] + [(document["disks"][0], key) for key in document["disks"][0]]
    for table, key in places:
        before, table[key] = table[key], value
        try:
            read = decode(json.dumps(document).encode(), "manifests/p")
        except Damaged:
            pass
        else:
            assert decode(encode(read), "manifests/p") == read
            assert all(0 <= one.head.capacity_bytes < 1 << 62 and 1 <= one.root.levels <= 62 for one in read.disks)
        table[key] = before
