"""An nbdkit process lives as long as its block: started, watched, stopped by its own pid, its folder removed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from connectors.errors import TransportFailed
from connectors.nbd import open_nbd
from connectors.nbd_protocol import UnixAddress
from connectors.vsphere.nbdkit import Launch, NbdkitProcess, Spot, serving

PASSWORD = "correct horse battery staple"


def launch(scratch: Path, command: Callable[[Spot], Sequence[str]], **changes: float) -> Launch:
    """What to start below scratch."""
    return Launch(
        command,
        PASSWORD,
        "NBD to [ds] vm/vm.vmdk",
        {},
        scratch,
        ready_seconds=changes.get("ready_seconds", 20.0),
        stop_seconds=changes.get("stop_seconds", 5.0),
    )


def nbdkit(*plugin: str) -> Callable[[Spot], list[str]]:
    """The command line of a real nbdkit with this plugin."""
    own = ["nbdkit", "-f", "-r", "--exit-with-parent"]
    return lambda spot: [*own, "-U", str(spot.socket), "-P", str(spot.pid_file), *plugin]


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return [path.name for path in folder.iterdir()]


def alive(pid: int) -> bool:
    """Whether the process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_serves_while_the_block_lasts_and_is_gone_afterwards(tmp_path: Path) -> None:
    async with serving(launch(tmp_path, nbdkit("pattern", "size=1M"))) as (path, process):
        folder = path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        async with open_nbd(UnixAddress(str(path))) as disk:
            assert disk.capacity_bytes == 1 << 20
        assert alive(process.pid)
    assert not alive(process.pid)
    assert names_in(tmp_path) == []


async def test_the_password_goes_through_a_pipe_and_is_in_no_argument_variable_or_file(tmp_path: Path) -> None:
    def reading(spot: Spot) -> list[str]:
        script = f'read -r password <&{spot.password_fd}; echo "error: ${{#password}}" >&2; : > {spot.pid_file}'
        return ["bash", "-c", f"{script}; exec sleep 60"]

    async with serving(launch(tmp_path, reading)) as (path, process):
        assert PASSWORD.encode() not in _shown(process.pid)
        assert sorted(names_in(path.parent)) == ["owner", "pid"]
        assert PASSWORD not in (path.parent / "owner").read_text()
    assert process.last_words() == f"error: {len(PASSWORD)}"


async def test_what_nbdkit_says_is_told_when_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(TransportFailed, match="no-such-file") as caught:
        async with serving(launch(tmp_path, nbdkit("file", "/no-such-file"))):
            pass
    assert "NBD to [ds] vm/vm.vmdk" in str(caught.value)
    assert names_in(tmp_path) == []


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransportFailed, match="install nbdkit"):
        async with serving(launch(tmp_path, lambda _: ["/no/such/nbdkit"])):
            pass
    assert names_in(tmp_path) == []


async def test_secrets_in_what_it_says_are_blotted_out(tmp_path: Path) -> None:
    script = f"echo 'nbdkit: error: login with {PASSWORD} refused' >&2; exit 1"
    with pytest.raises(TransportFailed, match=r"login with \*\*\* refused") as caught:
        async with serving(launch(tmp_path, lambda _: ["sh", "-c", script])):
            pass
    assert PASSWORD not in str(caught.value)


async def test_endless_talk_is_bounded(tmp_path: Path) -> None:
    script = "yes 'nbdkit: error: again and again' >&2"
    with pytest.raises(TransportFailed, match="again and again") as caught:
        async with serving(launch(tmp_path, lambda _: ["sh", "-c", f"exec {script}"], ready_seconds=0.5)):
            pass
    assert len(str(caught.value)) < 1000


async def test_a_process_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    def deaf(spot: Spot) -> list[str]:
        return ["sh", "-c", f"trap '' TERM; : > {spot.pid_file}; while :; do read x < /dev/zero; done"]

    async with serving(launch(tmp_path, deaf, stop_seconds=0.2)) as (_, process):
        assert alive(process.pid)
    assert not alive(process.pid)


@pytest.mark.parametrize("moment", ["starting", "serving"])
async def test_a_cancellation_leaves_no_process_and_no_file(tmp_path: Path, moment: str) -> None:
    started = asyncio.Event()
    pids: list[int] = []

    def slow(spot: Spot) -> list[str]:
        asyncio.get_running_loop().call_later(0.05, started.set)
        return ["sh", "-c", "sleep 60"] if moment == "starting" else nbdkit("memory", "1M")(spot)

    async def hold() -> None:
        async with serving(launch(tmp_path, slow)) as (_, process):
            pids.append(process.pid)
            started.set()
            await asyncio.Event().wait()

    before = children_of_ours()
    task = asyncio.create_task(hold())
    await started.wait()
    children = children_of_ours() - before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children
    assert not any(alive(pid) for pid in children)
    assert names_in(tmp_path) == []


def _shown(pid: int) -> bytes:
    """What every user sees of a process, and what its owner sees."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def children_of_ours() -> set[int]:
    """The processes that this one has started and that still run."""
    return {int(name) for name in names_in(Path("/proc")) if name.isdigit() and _child_of_ours(Path("/proc", name))}


def _child_of_ours(process: Path) -> bool:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[1]) == os.getpid() and fields[0] != "Z"


async def test_one_that_was_killed_from_outside_is_noticed_and_cleaned_up(tmp_path: Path) -> None:
    async with serving(launch(tmp_path, nbdkit("memory", "1M"))) as (_, process):
        os.kill(process.pid, signal.SIGKILL)
        assert await asyncio.wait_for(asyncio.shield(process.ended), 10) == -signal.SIGKILL
    assert names_in(tmp_path) == []


async def test_the_last_words_keep_to_errors_where_there_are_some() -> None:
    process = NbdkitProcess(["s3cret"])
    process.pipe_data_received(2, b"debug: one\nnbdkit: vddk[1]: error: no s3cret access\x1b[0m\ndebug: two\n")
    assert process.last_words() == "nbdkit: vddk[1]: error: no *** access [0m"


HOLDER = """
import asyncio, sys
from pathlib import Path
from tests.unit.test_nbdkit_process import launch, nbdkit
from connectors.vsphere.nbdkit import serving

async def hold():
    async with serving(launch(Path(sys.argv[1]), nbdkit("memory", "1M"))) as (_, process):
        print(process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_it_ends_with_an_engine_that_is_killed(tmp_path: Path) -> None:
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path), stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    assert engine.stdout is not None
    pid = int(await engine.stdout.readline())
    # nbdkit holds no pipe of ours, so its end is watched where the kernel tells it.
    watched = os.pidfd_open(pid)
    engine.kill()
    try:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched, ended.set)
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        asyncio.get_running_loop().remove_reader(watched)
        os.close(watched)
    await engine.communicate()
