"""The NBD client against real nbdkit and libnbd processes."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from connectors.disk_files import FileReader
from connectors.disks import Extent, total
from connectors.errors import ReadFailed, TransportFailed, WriteFailed
from connectors.nbd import NbdDisk, NbdLimits, open_nbd
from connectors.nbd_protocol import TcpAddress, UnixAddress

MIB = 1 << 20


@pytest.fixture
def short(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="nbd") as folder:
        yield Path(folder)


@asynccontextmanager
async def nbdkit(folder: Path, *args: str) -> AsyncIterator[tuple[UnixAddress, asyncio.subprocess.Process]]:
    """A real nbdkit on a Unix socket, ready when the block begins, gone when it ends."""
    socket, pid = folder / "s", folder / "pid"
    server = await asyncio.create_subprocess_exec(
        "nbdkit", "-f", "-U", str(socket), "-P", str(pid), "--exit-with-parent", *args,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not pid.exists():
            assert server.returncode is None, "nbdkit did not start"
            await asyncio.sleep(0.005)
        yield UnixAddress(str(socket)), server
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        socket.unlink(missing_ok=True)
        pid.unlink(missing_ok=True)


def sparse_image(path: Path, capacity: int, seed: int) -> bytes:
    """A file with data in about a third of its 64 KiB blocks; its bytes."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(capacity)
        for offset in range(0, capacity, 65536):
            if rng.random() < 0.33:
                file.seek(offset)
                file.write(rng.randbytes(min(65536, capacity - offset)))
    return path.read_bytes()


async def read_all(disk: NbdDisk, request_bytes: int, depth: int = 8) -> bytes:
    """The whole disk, read by several readers at once."""
    data = bytearray(disk.capacity_bytes)
    view = memoryview(data)
    offsets = iter(range(0, disk.capacity_bytes, request_bytes))

    async def reader() -> None:
        for offset in offsets:
            await disk.read_into(offset, view[offset : offset + request_bytes])

    async with asyncio.TaskGroup() as readers:
        for _ in range(depth):
            readers.create_task(reader())
    return bytes(data)


@pytest.mark.parametrize("request_bytes", [512, 65536, 1 * MIB, 5 * MIB])
async def test_pipelined_reads_give_the_bytes_of_the_file(short: Path, request_bytes: int) -> None:
    image = short / "image"
    expected = sparse_image(image, 3 * MIB + 512, seed=1)
    async with nbdkit(short, "-r", "file", str(image)) as (address, _), open_nbd(address) as disk:
        assert disk.capacity_bytes == len(expected)
        assert await read_all(disk, request_bytes) == expected


async def test_extents_cover_all_data_and_leave_out_the_holes(short: Path) -> None:
    image = short / "image"
    expected = sparse_image(image, 64 * MIB, seed=2)
    async with nbdkit(short, "-r", "file", str(image)) as (address, _), open_nbd(address) as disk:
        extents = await disk.extents()
    rebuilt = bytearray(len(expected))
    for extent in extents:
        rebuilt[extent.offset : extent.end] = expected[extent.offset : extent.end]
    assert bytes(rebuilt) == expected
    with FileReader(image) as file:  # not by st_blocks, which counts the file system's own blocks once it is written
        assert list(extents) == file.extents()


async def test_extents_of_a_disk_larger_than_one_answer_reach_its_end(short: Path) -> None:
    image = short / "image"
    capacity = 9 << 30
    with image.open("wb") as file:
        file.truncate(capacity)
        file.seek(capacity - 65536)
        file.write(b"end" + bytes(65533))
    async with nbdkit(short, "-r", "file", str(image)) as (address, _), open_nbd(address) as disk:
        assert await disk.extents() == [Extent(capacity - 65536, 65536)]


async def test_a_server_without_block_status_means_the_whole_disk(short: Path) -> None:
    async with nbdkit(short, "-r", "--no-sr", "pattern", "size=1M") as (address, _), open_nbd(address) as disk:
        assert await disk.extents() == [Extent(0, MIB)]
        assert (await read_all(disk, 65536))[8:16] == (8).to_bytes(8, "big")


async def test_a_server_that_splits_its_answers_is_put_together(short: Path) -> None:
    """qemu-nbd answers one read in several chunks, data and holes, when holes lie inside."""
    image = short / "image"
    expected = sparse_image(image, 2 * MIB, seed=3)
    server = await asyncio.create_subprocess_exec(
        "qemu-nbd", "-f", "raw", "-r", "-e", "4", "-k", str(short / "q"), "--pid-file", str(short / "qp"), str(image),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not (short / "qp").exists():
            assert server.returncode is None, "qemu-nbd did not start"
            await asyncio.sleep(0.005)
        async with open_nbd(UnixAddress(str(short / "q"))) as disk:
            assert await read_all(disk, 2 * MIB, depth=1) == expected
            assert total(await disk.extents()) < len(expected)
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()


async def test_tcp_and_export_names_work(short: Path) -> None:
    image = short / "one"
    expected = sparse_image(image, MIB, seed=4)
    server = await asyncio.create_subprocess_exec(
        "nbdkit", "-f", "-r", "-i", "127.0.0.1", "-p", "0", "-P", str(short / "pid"), "--exit-with-parent", "-v",
        "file", f"dir={short}",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not (short / "pid").exists():
            assert server.returncode is None, "nbdkit did not start"
            await asyncio.sleep(0.005)
        port = _listening_port(server.pid)
        async with open_nbd(TcpAddress("127.0.0.1", port, "one")) as disk:
            assert await read_all(disk, 65536) == expected
        with pytest.raises(TransportFailed, match="no-such"):
            async with open_nbd(TcpAddress("127.0.0.1", port, "no-such")):
                pass
    finally:
        server.kill()
        await server.communicate()


def _listening_port(pid: int) -> int:
    inodes = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError("nbdkit does not listen")


async def test_what_is_written_is_what_qemu_img_reads(short: Path) -> None:
    source, target = short / "source", short / "target"
    expected = sparse_image(source, 8 * MIB, seed=5)
    target.write_bytes(b"\xff" * len(expected))
    async with nbdkit(short, "file", str(target)) as (address, _), open_nbd(address, writable=True) as disk:
        await disk.zero(0, disk.capacity_bytes)
        view = memoryview(bytearray(expected))

        async def write(offset: int) -> None:
            await disk.write(offset, view[offset : offset + MIB])

        async with asyncio.TaskGroup() as writers:
            for offset in range(0, len(expected), MIB):
                writers.create_task(write(offset))
        await disk.flush()
    compared = await asyncio.create_subprocess_exec(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), str(target), stdout=subprocess.PIPE
    )
    said, _ = await compared.communicate()
    assert compared.returncode == 0, said


async def test_zero_and_trim_work_with_and_without_the_server_s_help(short: Path) -> None:
    for filters in ([], ["--filter=nozero"]):
        async with (
            nbdkit(short, *filters, "memory", "4M") as (address, _),
            open_nbd(address, limits=NbdLimits(request_bytes=MIB), writable=True) as disk,
        ):
            await disk.write(0, memoryview(b"\xaa" * (4 * MIB)))
            await disk.zero(65536, 3 * MIB)
            await disk.trim(0, 4096)
            data = await read_all(disk, MIB)
            assert data[65536 : 65536 + 3 * MIB] == bytes(3 * MIB)
            assert data[65536 + 3 * MIB :] == b"\xaa" * (MIB - 65536)


async def test_a_read_only_export_is_refused_for_writing(short: Path) -> None:
    async with nbdkit(short, "-r", "memory", "1M") as (address, _):
        with pytest.raises(TransportFailed, match="read-only"):
            async with open_nbd(address, writable=True):
                pass


async def test_an_error_of_the_server_names_the_offset_and_leaves_the_connection_usable(short: Path) -> None:
    trigger = short / "trigger"
    async with (
        nbdkit(short, "--filter=error", "memory", "1M", "error-rate=1", f"error-file={trigger}", "error=EIO") as (
            address,
            _,
        ),
        open_nbd(address, writable=True) as disk,
    ):
        trigger.touch()
        with pytest.raises(ReadFailed, match=r"offset 65536.*Input/output error"):
            await disk.read_into(65536, memoryview(bytearray(512)))
        with pytest.raises(WriteFailed, match="offset 512"):
            await disk.write(512, memoryview(bytes(512)))
        trigger.unlink()
        await disk.read_into(65536, memoryview(bytearray(512)))


async def test_a_full_server_says_so_when_written_to(short: Path) -> None:
    async with (
        nbdkit(short, "--filter=error", "memory", "1M", "error-pwrite-rate=1", "error-pwrite=ENOSPC") as (address, _),
        open_nbd(address, writable=True) as disk,
    ):
        with pytest.raises(WriteFailed, match="No space left"):
            await disk.write(0, memoryview(bytes(512)))


async def test_a_server_that_dies_fails_every_waiting_read_with_its_offset(short: Path) -> None:
    async with (
        nbdkit(short, "-r", "--filter=delay", "pattern", "size=8M", "rdelay=30") as (address, server),
        open_nbd(address) as disk,
    ):

        async def failed(offset: int) -> str:
            with pytest.raises(ReadFailed) as caught:
                await disk.read_into(offset, memoryview(bytearray(4096)))
            return str(caught.value)

        async with asyncio.TaskGroup() as readers:
            waiting = [readers.create_task(failed(offset)) for offset in (0, 4096, 8192)]
            await asyncio.sleep(0)
            server.send_signal(signal.SIGKILL)
        assert [f"offset {o}" in t.result() for o, t in zip((0, 4096, 8192), waiting, strict=True)] == [True] * 3
        with pytest.raises(ReadFailed, match="offset 12288"):
            await disk.read_into(12288, memoryview(bytearray(4096)))


async def test_a_silent_server_is_given_up_after_the_limit(short: Path) -> None:
    async with (
        nbdkit(short, "-r", "--filter=delay", "pattern", "size=8M", "rdelay=30") as (address, _),
        open_nbd(address, limits=NbdLimits(answer_seconds=0.2)) as disk,
    ):
        with pytest.raises(ReadFailed, match=r"no answer for 0\.2 s"):
            await disk.read_into(0, memoryview(bytearray(4096)))


async def test_a_cancelled_read_never_touches_the_buffer_again(short: Path) -> None:
    async with (
        nbdkit(short, "-r", "--filter=delay", "pattern", "size=8M", "rdelay=100ms") as (address, _),
        open_nbd(address) as disk,
    ):
        buffer = memoryview(bytearray(MIB))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await disk.read_into(8, buffer)
        buffer[:] = b"\xee" * MIB
        later = bytearray(4096)
        await disk.read_into(4096, memoryview(later))
        assert bytes(later[:8]) == (4096).to_bytes(8, "big")
        assert bytes(buffer) == b"\xee" * MIB


async def test_nothing_larger_than_the_limit_is_asked_for(short: Path) -> None:
    log = short / "log"
    async with (
        nbdkit(short, "-r", "--filter=log", "pattern", "size=8M", f"logfile={log}") as (address, _),
        open_nbd(address, limits=NbdLimits(request_bytes=256 << 10)) as disk,
    ):
        await disk.read_into(0, memoryview(bytearray(3 * MIB)))
    counts = [int(line.split("count=")[1].split()[0], 16) for line in log.read_text().splitlines() if " Read " in line]
    assert sum(counts) == 3 * MIB
    assert max(counts) == 256 << 10


async def test_a_missing_socket_is_a_failed_transport(short: Path) -> None:
    with pytest.raises(TransportFailed, match="No such file"):
        async with open_nbd(UnixAddress(str(short / "none"))):
            pass


async def test_a_read_past_the_end_is_refused_before_it_is_sent(short: Path) -> None:
    async with nbdkit(short, "-r", "memory", "1M") as (address, _), open_nbd(address) as disk:
        with pytest.raises(ReadFailed, match="do not lie on the disk"):
            await disk.read_into(MIB - 512, memoryview(bytearray(1024)))
