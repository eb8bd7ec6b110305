"""The NBD wire format, as far as a client needs it: what is sent is encoded here, what arrives is decoded and checked.

Pure. Every decoder raises `Malformed` for anything that a correct server would not send.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from urllib.parse import parse_qs, unquote, urlsplit

DEFAULT_PORT = 10809
"""The port that IANA gave to NBD."""

MAX_MESSAGE_BYTES = 4096
"""The longest export name, context name or error text that either side may send."""

MAX_OPTION_REPLY_BYTES = 64 * 1024
"""Longer answers during the negotiation are refused, so that a hostile server cannot fill our memory."""

MAX_STATUS_BYTES = 8 * 1024 * 1024 + 4
"""The longest block status answer that is accepted: about a million extents."""

_INIT_MAGIC = 0x4E42444D41474943
_OPTION_MAGIC = 0x49484156454F5054
_OPTION_REPLY_MAGIC = 0x0003E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_MAGIC = 0x67446698
_STRUCTURED_MAGIC = 0x668E33EF

_FIXED_NEWSTYLE = 1
_NO_ZEROES = 2
_INFO_EXPORT = 0
_INFO_BLOCK_SIZE = 3

GREETING_BYTES = 18
OPTION_REPLY_BYTES = 20
REPLY_MAGIC_BYTES = 4
SIMPLE_REST_BYTES = 12
STRUCTURED_REST_BYTES = 16

ALLOCATION = "base:allocation"
"""The metadata context that tells holes and zeros from data."""


class Malformed(Exception):
    """The server broke the protocol; the connection cannot be used any more."""


class Option(IntEnum):
    """What a client asks during the negotiation."""

    ABORT = 2
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """The answers that are not errors."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4


class Command(IntEnum):
    """What a client asks once the export is open."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Export(IntFlag):
    """What the export can do."""

    READ_ONLY = 2
    FLUSH = 4
    TRIM = 32
    WRITE_ZEROES = 64


class Chunk(IntEnum):
    """The kinds of structured reply; anything with bit 15 set is an error."""

    NONE = 0
    DATA = 1
    HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001
    ERROR_OFFSET = 0x8002


_OPTION_ERRORS = {
    1: "it does not know the option",
    2: "its policy forbids it",
    3: "it calls the request invalid",
    5: "it wants TLS, which is not supported; use a Unix socket or a TLS tunnel",
    6: "it has no such export",
    7: "it is shutting down",
    8: "it insists on block sizes",
    9: "it calls the request too big",
}


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A server behind a Unix socket."""

    path: str
    export: str = ""

    def __str__(self) -> str:
        return f"NBD export {self.export!r} at {self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A server behind a TCP port."""

    host: str
    port: int = DEFAULT_PORT
    export: str = ""

    def __str__(self) -> str:
        return f"NBD export {self.export!r} at {self.host}:{self.port}"


NbdAddress = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class OptionAnswer:
    """The head of one answer in the negotiation; `length` bytes follow it."""

    option: int
    kind: int
    length: int

    @property
    def refused(self) -> bool:
        """Whether the server said no."""
        return bool(self.kind & 0x80000000)

    @property
    def why(self) -> str:
        """What an error answer means."""
        return _OPTION_ERRORS.get(self.kind & 0x7FFFFFFF, f"it answered with error {self.kind & 0x7FFFFFFF}")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """Size and abilities of an export."""

    capacity_bytes: int
    flags: Export


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """What the server wants requests to be."""

    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """The head of one structured reply; `length` bytes follow it."""

    done: bool
    kind: int
    cookie: int
    length: int

    @property
    def is_error(self) -> bool:
        """Whether the chunk reports a failure, a kind that we do not know included."""
        return bool(self.kind & 0x8000)


@dataclass(frozen=True, slots=True)
class StatusRun:
    """So many bytes in one state of allocation."""

    length: int
    zero: bool


def parse_uri(uri: str) -> NbdAddress:
    """The address in `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; ValueError says what is wrong."""
    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    if len(export.encode()) > MAX_MESSAGE_BYTES:
        raise ValueError("the export's name is longer than NBD allows")
    if parts.scheme == "nbd":
        if not parts.hostname:
            raise ValueError("an NBD address names a host: nbd://HOST:PORT/EXPORT")
        if parts.username is not None:
            raise ValueError("NBD knows no user names")
        port = parts.port
        return TcpAddress(parts.hostname, DEFAULT_PORT if port is None else port, export)
    if parts.scheme == "nbd+unix":
        sockets = parse_qs(parts.query).get("socket", [])
        if len(sockets) != 1 or not sockets[0]:
            raise ValueError("an NBD address on a Unix socket names it: nbd+unix:///EXPORT?socket=PATH")
        return UnixAddress(sockets[0], export)
    if parts.scheme in ("nbds", "nbds+unix"):
        raise ValueError("NBD with TLS is not supported; use a Unix socket or a TLS tunnel")
    raise ValueError("an NBD address begins with nbd:// or nbd+unix://")


def check_greeting(data: memoryview) -> bytes:
    """The client's flags, to be sent back in answer to the server's greeting."""
    magic, option_magic, flags = struct.unpack(">QQH", data)
    if magic != _INIT_MAGIC:
        raise Malformed("the server does not speak NBD")
    if option_magic != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
        raise Malformed("the server speaks an NBD dialect older than fixed newstyle")
    return struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES))


def option(kind: Option, data: bytes = b"") -> bytes:
    """One option of the negotiation."""
    return struct.pack(">QII", _OPTION_MAGIC, kind, len(data)) + data


def go(export: str) -> bytes:
    """Ask for the export, with its block sizes."""
    name = export.encode()
    return option(Option.GO, struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE))


def set_meta_context(export: str) -> bytes:
    """Ask that block status tells holes and zeros."""
    name, context = export.encode(), ALLOCATION.encode()
    data = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(context)) + context
    return option(Option.SET_META_CONTEXT, data)


def option_answer(data: memoryview, asked: Option) -> OptionAnswer:
    """The head of an answer to the option that was asked."""
    magic, answered, kind, length = struct.unpack(">QIII", data)
    if magic != _OPTION_REPLY_MAGIC:
        raise Malformed("an answer of the negotiation has the wrong magic")
    if answered != asked:
        raise Malformed(f"the server answers option {answered} where {asked.name} was asked")
    if length > MAX_OPTION_REPLY_BYTES:
        raise Malformed(f"an answer of the negotiation claims {length} bytes")
    return OptionAnswer(answered, kind, length)


def info(data: bytes) -> ExportInfo | BlockSizes | None:
    """One piece of information about the export; None for a kind that we did not ask for."""
    if len(data) < 2:
        raise Malformed("an information about the export is cut off")
    (kind,) = struct.unpack_from(">H", data)
    if kind == _INFO_EXPORT:
        if len(data) != 12:
            raise Malformed("the export's size is cut off")
        _, capacity, flags = struct.unpack(">HQH", data)
        if capacity >= 1 << 63:
            raise Malformed(f"the export claims {capacity} bytes")
        return ExportInfo(capacity, Export(flags & (2 | 4 | 32 | 64)))
    if kind == _INFO_BLOCK_SIZE:
        if len(data) != 14:
            raise Malformed("the export's block sizes are cut off")
        _, minimum, _, maximum = struct.unpack(">HIII", data)
        if minimum < 1 or minimum & (minimum - 1) or maximum < minimum:
            raise Malformed(f"the export's block sizes make no sense: {minimum} to {maximum}")
        return BlockSizes(minimum, maximum)
    return None


def meta_context(data: bytes) -> int | None:
    """The number under which block status will tell about allocation; None for another context."""
    if len(data) < 4:
        raise Malformed("a metadata context is cut off")
    return int.from_bytes(data[:4], "big") if data[4:] == ALLOCATION.encode() else None


def request(command: Command, cookie: int, offset: int = 0, length: int = 0) -> bytes:
    """One request; a write's data follow it."""
    return struct.pack(">IHHQQI", _REQUEST_MAGIC, 0, command, cookie, offset, length)


def is_structured(magic: memoryview) -> bool:
    """Whether the reply that begins here is a structured one."""
    (found,) = struct.unpack(">I", magic)
    if found not in (_SIMPLE_MAGIC, _STRUCTURED_MAGIC):
        raise Malformed(f"a reply begins with {found:#010x}")
    return bool(found == _STRUCTURED_MAGIC)


def simple_reply(rest: memoryview) -> tuple[int, int]:
    """(error number, cookie) of a simple reply, behind its magic."""
    error, cookie = struct.unpack(">IQ", rest)
    return error, cookie


def chunk_head(rest: memoryview) -> ChunkHead:
    """The head of a structured reply, behind its magic."""
    flags, kind, cookie, length = struct.unpack(">HHQI", rest)
    return ChunkHead(bool(flags & 1), kind, cookie, length)


def hole(data: bytes) -> tuple[int, int]:
    """(offset, length) of a chunk that stands for zeros."""
    if len(data) != 12:
        raise Malformed("a hole in a reply is cut off")
    offset, length = struct.unpack(">QI", data)
    return offset, length


def status_runs(data: bytes, context: int) -> list[StatusRun]:
    """The runs of a block status chunk, from the requested offset on."""
    if len(data) < 12 or len(data) % 8 != 4:
        raise Malformed(f"a block status of {len(data)} bytes")
    (found,) = struct.unpack_from(">I", data)
    if found != context:
        raise Malformed(f"a block status for context {found}, which was not asked for")
    runs = [StatusRun(length, bool(flags & 2)) for length, flags in struct.iter_unpack(">II", data[4:])]
    if any(run.length == 0 for run in runs):
        raise Malformed("a block status with an empty extent")
    return runs


def error_text(data: bytes) -> str:
    """What an error chunk says: the name of the error and the server's message."""
    if len(data) < 6:
        raise Malformed("an error in a reply is cut off")
    number, length = struct.unpack_from(">IH", data)
    if length > len(data) - 6:
        raise Malformed("an error text longer than its chunk")
    message = printable(data[6 : 6 + length])
    return f"{error_name(number)}: {message}" if message else error_name(number)


def printable(data: bytes) -> str:
    """A text from the server, fit for a log line."""
    text = data[:MAX_MESSAGE_BYTES].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def error_name(number: int) -> str:
    """The words for an error number of the protocol."""
    known = {1: errno.EPERM, 5: errno.EIO, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC, 75: errno.EOVERFLOW}
    known |= {95: errno.ENOTSUP, 108: errno.ESHUTDOWN}
    return os.strerror(known[number]) if number in known else f"error {number}"
