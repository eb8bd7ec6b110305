"""Whatever bytes an NBD server sends, the client ends with one of its own errors, soon, and keeps to its buffers."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import nbd_protocol as wire
from connectors.disks import Extent, merge
from connectors.errors import ConnectorError, ReadFailed, TransportFailed
from connectors.nbd import NbdDisk, NbdLimits, open_nbd

CAPACITY = 1 << 20
LIMITS = NbdLimits(answer_seconds=0.5, connect_seconds=0.5)
GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """One answer of the negotiation."""
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(data)) + data


EXPORT = option_reply(7, 3, struct.pack(">HQH", 0, CAPACITY, 1 | 4 | 32 | 64))
ACK = 1
HANDSHAKE = (
    GREETING
    + option_reply(8, ACK)
    + option_reply(10, 4, struct.pack(">I", 7) + b"base:allocation")
    + option_reply(10, ACK)
    + EXPORT
    + option_reply(7, ACK)
)
SIMPLE_HANDSHAKE = GREETING + option_reply(8, 0x80000001) + EXPORT + option_reply(7, ACK)


def chunk(kind: int, data: bytes = b"", *, cookie: int = 1, done: bool = True, claims: int | None = None) -> bytes:
    """One structured reply."""
    length = len(data) if claims is None else claims
    return struct.pack(">IHHQI", 0x668E33EF, int(done), kind, cookie, length) + data


def data_chunk(offset: int, data: bytes, *, done: bool = True) -> bytes:
    """One structured reply with data."""
    return chunk(1, struct.pack(">Q", offset) + data, done=done)


async def served(bytes_to_send: bytes, act: Callable[[NbdDisk], Awaitable[None]], *, hang_up: bool = True) -> None:
    """Run act against a server that sends these bytes at once, whatever is asked, and then hangs up or goes silent."""
    with tempfile.TemporaryDirectory(prefix="nbd") as folder:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/s")
        listener.listen(1)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()

        async def serve() -> None:
            peer, _ = await loop.sock_accept(listener)
            with peer:
                try:
                    await loop.sock_sendall(peer, bytes_to_send)
                    if hang_up:
                        peer.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(peer, 65536):
                        pass
                except OSError:
                    pass

        try:
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(serve())
                try:
                    async with open_nbd(wire.UnixAddress(f"{folder}/s"), limits=LIMITS) as disk:
                        await act(disk)
                finally:
                    serving.cancel()
        finally:
            listener.close()


async def read_block(disk: NbdDisk) -> None:
    """Read 4 KiB between two guards that nobody may touch."""
    buffer = bytearray(b"\xee" * 12288)
    try:
        await disk.read_into(8192, memoryview(buffer)[4096:8192])
    finally:
        assert buffer[:4096] == b"\xee" * 4096
        assert buffer[8192:] == b"\xee" * 4096


async def list_extents(disk: NbdDisk) -> None:
    """Ask for the extents; whatever the server says, they must lie on the disk."""
    extents = await disk.extents()
    assert merge(extents) == extents
    assert all(e.offset >= 0 and e.end <= CAPACITY for e in extents)


def run(bytes_to_send: bytes, act: Callable[[NbdDisk], Awaitable[None]], *, hang_up: bool = True) -> str:
    """The text of the ConnectorError that came of it, or "" where all went well. Anything else is a failure."""
    said = ""
    try:
        asyncio.run(served(bytes_to_send, act, hang_up=hang_up))
    except* ConnectorError as group:
        said = str(group.exceptions[0])
    return said


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_noise_instead_of_a_greeting_is_a_failed_transport(noise: bytes) -> None:
    assert run(noise, read_block)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(18, len(HANDSHAKE)))
def test_noise_anywhere_in_the_negotiation_ends_in_our_errors(noise: bytes, at: int) -> None:
    run(HANDSHAKE[:at] + noise, read_block)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_instead_of_replies_ends_in_our_errors(noise: bytes) -> None:
    run(HANDSHAKE + noise, read_block)
    run(SIMPLE_HANDSHAKE + noise, read_block)
    run(HANDSHAKE + noise, list_extents)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_bit_or_a_cut_in_a_good_conversation_ends_in_our_errors(data: st.DataObject) -> None:
    good = HANDSHAKE + data_chunk(8192, b"a" * 1024, done=False) + data_chunk(9216, b"b" * 3072)
    if data.draw(st.booleans()):
        damaged = bytearray(good)
        bit = data.draw(st.integers(0, (len(HANDSHAKE) + 60) * 8 - 1))
        damaged[bit // 8] ^= 1 << bit % 8
        run(bytes(damaged), read_block)
    else:
        assert run(good[: data.draw(st.integers(0, len(good) - 1))], read_block)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 34), st.integers(0, 3)).map(lambda r: struct.pack(">II", r[0] % (1 << 32), r[1])),
        max_size=6,
    )
)
def test_any_block_status_gives_extents_on_the_disk_or_our_errors(runs: list[bytes]) -> None:
    run(HANDSHAKE + chunk(5, struct.pack(">I", 7) + b"".join(runs)), list_extents)


HOLE = struct.pack(">QI", 8192, 4096)


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        (data_chunk(8192, b"x" * 4096) + b"", ""),
        (chunk(2, HOLE), ""),
        (data_chunk(8192, b"x" * 1024), "answered in part only"),
        (data_chunk(8191, b"x" * 4096), "were not asked for"),
        (data_chunk(8192, b"x" * 4097), "were not asked for"),
        (data_chunk(8192, b"x" * 2048, done=False) + data_chunk(8193, b"x" * 2048), "came twice"),
        (chunk(1, struct.pack(">Q", 8192), claims=0xFFFFFFFF), "were not asked for"),
        (chunk(2, struct.pack(">QI", 8192, 0xFFFFFFFF)), "were not asked for"),
        (chunk(1, b"12345678"), "without data"),
        (chunk(0, b"", cookie=99), "request 99, which is not under way"),
        (chunk(0, b"", done=False), "empty chunk"),
        (chunk(5, struct.pack(">III", 7, 4096, 0)), "kind 5 to READ"),
        (chunk(77, b"?"), "kind 77"),
        (chunk(0x8001, claims=1 << 31), "claims 2147483648 bytes"),
        (chunk(0x8001, struct.pack(">IH", 5, 60000)), "longer than its chunk"),
        (chunk(0x8001, struct.pack(">IH", 5, 12) + b"host\x1b is gone"[:12]), "Input/output error: host  is gon"),
        (chunk(0x8fff, struct.pack(">IH", 28, 0)), "No space left"),
        (struct.pack(">IIQ", 0x67446698, 0, 1) + b"x" * 4096, "simple reply to a read"),
        (struct.pack(">IIQ", 0x67446698, 5, 1), "Input/output error"),
        (struct.pack(">IIQ", 0x11111111, 0, 1), "begins with 0x11111111"),
    ],
)  # fmt: skip
def test_each_way_to_break_a_read_is_named_with_its_offset(replies: bytes, says: str) -> None:
    said = run(HANDSHAKE + replies, read_block)
    assert says in said
    assert not says or "offset 8192" in said


@pytest.mark.parametrize(
    ("handshake", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak NBD"),
        (struct.pack(">QQQ", 0x4E42444D41474943, 0x00420281861253, 5), "older than fixed newstyle"),
        (GREETING + option_reply(8, ACK) + option_reply(8, ACK), "answers option 8"),
        (GREETING + struct.pack(">QIII", 0x0003E889045565A9, 8, 1, 1 << 31), "claims 2147483648 bytes"),
        (GREETING + option_reply(8, 0x80000001) + option_reply(7, 0x80000006, b"no disk here"), "no disk here"),
        (GREETING + option_reply(8, 0x80000001) + option_reply(7, 0x80000005), "wants TLS"),
        (GREETING + option_reply(8, 0x80000001) + option_reply(7, ACK), "did not tell the export's size"),
        (GREETING + option_reply(8, 3) * 70, "never ends its answer"),
        (GREETING, "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_each_way_to_break_the_negotiation_is_named(handshake: bytes, says: str) -> None:
    assert says in run(handshake, read_block)


def test_a_server_that_goes_silent_is_given_up() -> None:
    assert "no answer for 0.5 s" in run(GREETING, read_block, hang_up=False)
    assert "no answer for 0.5 s" in run(HANDSHAKE, read_block, hang_up=False)
    assert "no answer for 0.5 s" in run(HANDSHAKE, list_extents, hang_up=False)


def test_a_broken_read_is_a_read_failure_and_a_broken_negotiation_a_transport_failure() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(served(HANDSHAKE, read_block))
    assert caught.group_contains(ReadFailed)
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(served(GREETING, read_block))
    assert caught.group_contains(TransportFailed)


def test_a_server_without_structured_replies_is_read_by_simple_ones() -> None:
    assert run(SIMPLE_HANDSHAKE + struct.pack(">IIQ", 0x67446698, 0, 1) + b"x" * 4096, read_block) == ""


def test_a_refused_block_status_means_the_whole_disk() -> None:
    found: list[Extent] = []

    async def extents(disk: NbdDisk) -> None:
        found.extend(await disk.extents())

    assert run(HANDSHAKE + chunk(0x8001, struct.pack(">IH", 22, 0)), extents) == ""
    assert found == [Extent(0, CAPACITY)]


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://host", wire.TcpAddress("host")),
        ("nbd://host:99/disk%201", wire.TcpAddress("host", 99, "disk 1")),
        ("nbd://[::1]:99/", wire.TcpAddress("::1", 99)),
        ("nbd+unix:///?socket=/run/a%20b", wire.UnixAddress("/run/a b")),
        ("nbd+unix:///name?socket=/s", wire.UnixAddress("/s", "name")),
    ],
)
def test_addresses_are_understood(uri: str, address: wire.NbdAddress) -> None:
    assert wire.parse_uri(uri) == address


@pytest.mark.parametrize(
    "uri",
    [
        "nbd:///x",
        "nbd://user@host/",
        "nbd+unix:///x",
        "nbds://host",
        "http://host",
        "nbd://host:port/",
        "nbd://h:99999/",
    ],
)
def test_other_addresses_are_refused_with_a_sentence(uri: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ "):
        wire.parse_uri(uri)
