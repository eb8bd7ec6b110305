"""Every byte on disk. docs/format.md tells the same in prose; neither changes without the other.

Integers are little endian. Format 1 is a candidate until it is released; from then on it is read for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from blake3 import blake3

from storage.errors import Damaged, Unsupported

VERSION = 1
ID_BYTES = 32
HASH_BLAKE3 = 1
"""The only hash kind so far. In an encrypted repository the same hash is keyed."""

FLAG_ENCRYPTED = 1
KNOWN_FLAGS = FLAG_ENCRYPTED

MAX_BLOCK_BYTES = 16 << 20
MAX_MANIFEST_BYTES_PER_DISK = 64 << 10

CONFIG_KEY = "config"
CONFIG_COPY_KEY = "config.copy"
"""The same bytes once more; on a change it is written first."""

KNOWN_FEATURES: frozenset[str] = frozenset()
"""Names in a config's `features` that this version can read and keep. It refuses a repository that has others."""


class PackKind(IntEnum):
    """What a pack holds. Nodes of block maps have their own packs, so that maps are read without the data."""

    DATA = 1
    TREE = 2


class ObjectKind(IntEnum):
    """The small objects, each in an envelope."""

    CONFIG = 1
    MANIFEST = 2
    MARK = 3
    CONDEMNATION = 4
    COMMITTING = 5
    PAGES = 6


class Codec(IntEnum):
    """How a chunk is stored."""

    RAW = 0
    ZSTD = 1


# --- packs: header, payloads without gaps, footer (one entry per chunk), trailer -----------------------------

PACK_MAGIC = b"BSTYPACK"
TRAILER_MAGIC = b"KCAPYTSB"
_HEADER = Struct("<8sHBBBBH16s16s16sIIQ32s")
_CHECK_BYTES = 16
HEADER_BYTES = _HEADER.size + _CHECK_BYTES
ENTRY = Struct("<32sIIII")
_TRAILER = Struct("<QIII4x32s8s")
TRAILER_BYTES = _TRAILER.size
MAX_PACK_CHUNKS = 1 << 16
"""A chunk's place in its pack is a 16-bit slot in the lookup index."""
MAX_PACK_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class PackHeader:
    """The first bytes of a pack."""

    kind: PackKind
    flags: int
    repository: bytes
    pack: bytes
    writer: bytes
    epoch: int
    number: int
    created: int
    salt: bytes


class Entry(NamedTuple):
    """Where a chunk lies in its pack; `check` is the CRC-32 of the stored bytes, of 0 where a GCM tag does that."""

    id: bytes
    offset: int
    stored: int
    raw: int
    codec: int
    check: int


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last bytes of a pack: where the footer is, and a digest over header, footer and trailer."""

    footer_offset: int
    footer_bytes: int
    chunks: int
    digest: bytes


def pack_header(header: PackHeader) -> bytes:
    """The header as bytes."""
    body = _HEADER.pack(
        PACK_MAGIC, VERSION, header.kind, header.flags, HASH_BLAKE3, 0, 0, header.repository, header.pack,
        header.writer, header.epoch, header.number, header.created, header.salt,
    )  # fmt: skip
    return body + blake3(body).digest(_CHECK_BYTES)


def parse_pack_header(data: bytes, where: str) -> PackHeader:
    """The header of a pack, or Damaged, or Unsupported."""
    body = data[: _HEADER.size]
    if len(data) != HEADER_BYTES or blake3(body).digest(_CHECK_BYTES) != data[_HEADER.size :]:
        raise Damaged("the pack's header is not what was written", where=where)
    magic, version, kind, flags, hash_kind, slot, reserved, repository, pack, writer, epoch, number, created, salt = (
        _HEADER.unpack(body)
    )
    if magic != PACK_MAGIC:
        raise Damaged("this is not a pack", where=where)
    check_version(version, flags, where)
    if kind not in PackKind.__members__.values():
        raise Damaged(f"there is no pack of kind {kind}", where=where)
    if hash_kind != HASH_BLAKE3 or slot or reserved:
        raise Unsupported("the pack uses a hash kind or a key slot that this version lacks", where=where)
    return PackHeader(PackKind(kind), flags, repository, pack, writer, epoch, number, created, salt)


def pack_entry(entry: Entry) -> bytes:
    """One footer entry; the codec takes the top byte of the raw length."""
    return ENTRY.pack(entry.id, entry.offset, entry.stored, entry.codec << 24 | entry.raw, entry.check)


def parse_entry(footer: bytes | bytearray, slot: int) -> Entry:
    """The entry in a slot of a footer."""
    chunk, offset, stored, raw, check = ENTRY.unpack_from(footer, slot * ENTRY.size)
    return Entry(chunk, offset, stored, raw & 0xFFFFFF, raw >> 24, check)


def _trailer_digest(header: bytes, footer: bytes, footer_offset: int, chunks: int) -> bytes:
    hasher = blake3(header)
    hasher.update(footer)
    hasher.update(_TRAILER.pack(footer_offset, len(footer), chunks, VERSION, bytes(32), TRAILER_MAGIC))
    return hasher.digest()


def pack_trailer(header: bytes, footer: bytes, footer_offset: int, chunks: int) -> bytes:
    """The trailer that closes a pack with this header and (stored) footer."""
    digest = _trailer_digest(header, footer, footer_offset, chunks)
    return _TRAILER.pack(footer_offset, len(footer), chunks, VERSION, digest, TRAILER_MAGIC)


def parse_trailer(data: bytes, where: str) -> Trailer:
    """The trailer of a pack, its digest not yet compared."""
    if len(data) != TRAILER_BYTES:
        raise Damaged("the pack is too short", where=where)
    footer_offset, footer_bytes, chunks, version, digest, magic = _TRAILER.unpack(data)
    if magic != TRAILER_MAGIC or data[20:24] != bytes(4):
        raise Damaged("the pack's trailer is not what was written; it may have been cut off", where=where)
    check_version(version, 0, where)
    return Trailer(footer_offset, footer_bytes, chunks, digest)


def check_footer(trailer: Trailer, header: bytes, footer: bytes, where: str) -> None:
    """Damaged unless header, footer and trailer are the ones that were written together."""
    if _trailer_digest(header, footer, trailer.footer_offset, trailer.chunks) != trailer.digest:
        raise Damaged("the pack's footer is not what was written", where=where)


def check_version(version: int, flags: int, where: str) -> None:
    """Unsupported when this version reads another format, or not these flags."""
    if version != VERSION or flags & ~KNOWN_FLAGS:
        raise Unsupported(
            f"written in format {version} with flags {flags:#x}; this version reads format {VERSION}",
            where=where,
            hint="use a newer Backstay" if version >= VERSION else "no released version wrote it",
        )


@dataclass(frozen=True, slots=True, order=True)
class PackName:
    """A pack's key in the blob store says its number, id and kind; all three are checked against its header."""

    number: int
    id: bytes
    kind: PackKind

    @property
    def key(self) -> str:
        """Where the pack lies."""
        suffix = "tree" if self.kind is PackKind.TREE else "data"
        return f"packs/{self.number & 0xFF:02x}/{self.number:08x}-{self.id.hex()}.{suffix}"


def parse_pack_key(key: str) -> PackName | None:
    """The name that a key stands for; None if it is not a pack's."""
    stem, _, suffix = key.rpartition("/")[2].partition(".")
    number, _, pack = stem.partition("-")
    kind = {"data": PackKind.DATA, "tree": PackKind.TREE}.get(suffix)
    try:
        name = PackName(int(number, 16), bytes.fromhex(pack), kind) if kind else None
    except ValueError:
        return None
    return name if name and len(name.id) == 16 and name.key == key else None


# --- envelopes: config, manifests, marks ---------------------------------------------------------------------

OBJECT_MAGIC = b"BSTYOBJT"
ENVELOPE = Struct("<8sHBBI16s32s")


@dataclass(frozen=True, slots=True)
class Envelope:
    """The head of a small object; the payload follows, then a BLAKE3 digest or, encrypted, nothing more."""

    kind: ObjectKind
    flags: int
    payload_bytes: int
    repository: bytes
    salt: bytes


def pack_envelope(envelope: Envelope) -> bytes:
    """The envelope's head as bytes."""
    return ENVELOPE.pack(
        OBJECT_MAGIC, VERSION, envelope.kind, envelope.flags, envelope.payload_bytes, envelope.repository, envelope.salt
    )


def parse_envelope(data: bytes, where: str) -> Envelope:
    """The head of a small object, or Damaged, or Unsupported."""
    if len(data) < ENVELOPE.size:
        raise Damaged("the object is too short", where=where)
    magic, version, kind, flags, payload_bytes, repository, salt = ENVELOPE.unpack_from(data)
    if magic != OBJECT_MAGIC:
        raise Damaged("this is not an object of a repository", where=where)
    check_version(version, flags, where)
    if kind not in ObjectKind.__members__.values():
        raise Damaged(f"there is no object of kind {kind}", where=where)
    return Envelope(ObjectKind(kind), flags, payload_bytes, repository, salt)


# --- nodes of a disk's block map ------------------------------------------------------------------------------

NODE_HEAD = Struct("<BBH4x")
COUNT_BYTES = 4
"""An inner entry is a node id and the number of mapped blocks beneath it."""
MAX_FAN_OUT = 1024
HAS_PIECED = 1
"""A leaf's flag: a second bitmap follows the first, of the slots whose id is that of a piece list."""


class Pieced(bytes):
    """In a leaf, the id of a piece list in place of a chunk's: the block is put together from parts of chunks."""

    __slots__ = ()


class Node(NamedTuple):
    """One node: `children` maps a slot to a chunk id, Pieced or a node id; `counts` has the blocks beneath each."""

    level: int
    children: dict[int, bytes]
    counts: dict[int, int]


def pack_node(level: int, fan_out: int, children: dict[int, bytes], counts: dict[int, int]) -> bytes:
    """A node as bytes: head, bitmap of used slots, ids, and above level 0 the counts. Absent slots read as zeros."""
    slots = sorted(children)
    bitmap = (1 << fan_out) - 1 if len(slots) == fan_out else sum([1 << slot for slot in slots])
    pieced = 0
    if Pieced in map(type, children.values()):
        pieced = sum([1 << slot for slot in slots if type(children[slot]) is Pieced])
    width = (fan_out + 7) // 8
    parts = [NODE_HEAD.pack(level, HAS_PIECED if pieced else 0, fan_out), bitmap.to_bytes(width, "little")]
    if pieced:
        parts.append(pieced.to_bytes(width, "little"))
    parts += [children[slot] for slot in slots]
    if level:
        parts += [counts[slot].to_bytes(COUNT_BYTES, "little") for slot in slots]
    return b"".join(parts)


def open_node(data: bytes, level: int, fan_out: int, where: str) -> tuple[int, int, int]:
    """(bitmap of used slots, of those with piece lists, where the ids begin) of a node of this level and fan-out."""
    width = (fan_out + 7) // 8
    start = NODE_HEAD.size + width
    flags = HAS_PIECED if not level and data[1:2] == bytes([HAS_PIECED]) else 0
    if data[: NODE_HEAD.size] != NODE_HEAD.pack(level, flags, fan_out) or len(data) < start + flags * width:
        raise Damaged("a node of a block map is not what its place says", where=where)
    bitmap = int.from_bytes(data[NODE_HEAD.size : start], "little")
    pieced = int.from_bytes(data[start : start + width], "little") if flags else 0
    start += flags * width
    used = bitmap.bit_count()
    entry_bytes = ID_BYTES + (COUNT_BYTES if level else 0)
    if len(data) != start + used * entry_bytes or bitmap >> fan_out or pieced & ~bitmap or (flags and not pieced):
        raise Damaged("a node of a block map has the wrong length", where=where)
    return bitmap, pieced, start


def parse_node(data: bytes, level: int, fan_out: int, where: str) -> Node:
    """A node that must be of this level and fan-out."""
    bitmap, pieced, start = open_node(data, level, fan_out, where)
    used = bitmap.bit_count()
    slots = range(fan_out) if used == fan_out else [s for s in range(fan_out) if bitmap >> s & 1]
    end = start + used * ID_BYTES
    children = dict(zip(slots, [data[i : i + ID_BYTES] for i in range(start, end, ID_BYTES)], strict=True))
    if not level:
        if pieced:
            children.update((slot, Pieced(children[slot])) for slot in slots if pieced >> slot & 1)
        return Node(0, children, {})
    counts = [int.from_bytes(data[i : i + COUNT_BYTES], "little") for i in range(end, len(data), COUNT_BYTES)]
    return Node(level, children, dict(zip(slots, counts, strict=True)))


# --- piece lists: blocks that are put together from parts of chunks --------------------------------------------

PIECES_HEAD = Struct("<BBHH2x32s")
PIECES_LEVEL = 255
"""Stands where a node of a block map has its level, so that neither passes for the other."""
PIECE = Struct("<HxxII")
MAX_PIECES = 1024


class PieceList(NamedTuple):
    """A block as a row of pieces: (which of `chunks`, offset, length in bytes); `content` is the block's chunk id."""

    content: bytes
    chunks: tuple[bytes, ...]
    pieces: tuple[tuple[int, int, int], ...]


def pack_pieces(pieces: PieceList) -> bytes:
    """A piece list as bytes."""
    head = PIECES_HEAD.pack(PIECES_LEVEL, 0, len(pieces.chunks), len(pieces.pieces), pieces.content)
    return b"".join([head, *pieces.chunks, *(PIECE.pack(*piece) for piece in pieces.pieces)])


def parse_pieces(data: bytes, where: str) -> PieceList:
    """A piece list, or Damaged. Whether each chunk is as long as a piece needs is for the reader to see."""
    if len(data) < PIECES_HEAD.size:
        raise Damaged("a piece list is too short", where=where)
    level, flags, chunks, count, content = PIECES_HEAD.unpack_from(data)
    start = PIECES_HEAD.size + chunks * ID_BYTES
    if (
        (level, flags, data[6:8]) != (PIECES_LEVEL, 0, bytes(2))
        or not 0 < chunks <= count <= MAX_PIECES
        or len(data) != start + count * PIECE.size
    ):
        raise Damaged("a piece list is not what its place says", where=where)
    pieces = tuple(PIECE.iter_unpack(data[start:]))
    lengths = [length for _, _, length in pieces]
    if {which for which, _, _ in pieces} != set(range(chunks)) or not min(lengths) or sum(lengths) > MAX_BLOCK_BYTES:
        raise Damaged("a piece list does not make a block", where=where)
    ids = tuple(data[at : at + ID_BYTES] for at in range(PIECES_HEAD.size, start, ID_BYTES))
    return PieceList(content, ids, pieces)


# --- runs of the lookup index (derived; may be deleted) --------------------------------------------------------

RUN_MAGIC = b"BSTYRUN0"
RUN_HEAD = Struct("<8sII16sQ32s8x")
RUN_PACK = Struct("<I16sB3x")
