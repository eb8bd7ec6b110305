"""One nbdkit process that serves one disk on a Unix socket, for as long as a block lasts."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from connectors.cleanup import finish
from connectors.errors import TransportFailed

LOG_BYTES = 16 * 1024
"""How much of what nbdkit says is kept: its last words."""

POLL_SECONDS = 0.01

FOLDER_PREFIX = "backstay-"
OWNER_FILE = "owner"


def identity(pid: int) -> str:
    """A process, so that no later one with its pid is taken for it: pid and start time; empty when it is not there."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{pid} {started}"


class NbdkitProcess(asyncio.SubprocessProtocol):
    """A running nbdkit: its pid, whether it has ended, and its last words."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self.pid = 0
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.silent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.SubprocessTransport | None = None
        self._said = bytearray()
        self._secrets = [s for s in secrets if s]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport
        self.pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._said += data
        # Twice the size, so that a secret is never cut in half before it can be recognised.
        del self._said[: -2 * LOG_BYTES]

    def process_exited(self) -> None:
        code = self.transport.get_returncode() if self.transport is not None else None
        if not self.ended.done():
            self.ended.set_result(-1 if code is None else code)

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything that it said is here."""
        if not self.silent.done():
            self.silent.set_result(None)

    def last_words(self) -> str:
        """The errors that nbdkit reported, or else the end of what it said; without secrets, on one line."""
        text = self._said.decode("utf-8", "replace")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        lines = [line for line in text[-LOG_BYTES:].splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line]
        if errors and errors[-1].endswith(":"):
            errors.append(lines[-1])  # an error of several lines, which says at its end what is wrong
        told = "; ".join(line.strip() for line in (errors or lines)[-4:])
        return "".join(c if c.isprintable() else " " for c in told)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one nbdkit runs: a folder of its own, and an open file from which it reads the password once."""

    folder: Path
    password_fd: int

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.folder / "nbd"

    @property
    def pid_file(self) -> Path:
        """What it writes once it listens."""
        return self.folder / "pid"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: `command` makes the argument list when the spot is known.

    `password` goes through a pipe: it is in no argument, no variable and no file.
    """

    command: Callable[[Spot], Sequence[str]]
    password: str = field(repr=False)
    where: str
    environment: Mapping[str, str]
    scratch: Path | None
    ready_seconds: float
    stop_seconds: float


@asynccontextmanager
async def serving(launch: Launch) -> AsyncIterator[tuple[Path, NbdkitProcess]]:
    """(Unix socket, process) of an nbdkit that listens. Stopped, and its folder removed, on every way out.

    Raises TransportFailed with nbdkit's own words when it does not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=launch.scratch))
    process = NbdkitProcess([launch.password])
    try:
        (folder / OWNER_FILE).write_text(identity(os.getpid()))
        spot = await _start(process, folder, launch)
        await _ready(process, spot, launch)
        yield spot.socket, process
    finally:
        try:
            await finish(_stop(process, launch.stop_seconds), within=launch.stop_seconds + 10)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


async def _start(process: NbdkitProcess, folder: Path, launch: Launch) -> Spot:
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            pipe.write(f"{launch.password}\n")
        spot = Spot(folder, reading)
        await asyncio.get_running_loop().subprocess_exec(
            lambda: process,
            *launch.command(spot),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(reading,),
            env={"PATH": os.environ.get("PATH", os.defpath), **launch.environment},
            start_new_session=True,
        )
    except OSError as exc:
        hint = "install nbdkit, or name the program in the configuration"
        raise TransportFailed(f"nbdkit cannot be started: {exc.strerror}", where=launch.where, hint=hint) from exc
    finally:
        os.close(reading)
    return spot


async def _ready(process: NbdkitProcess, spot: Spot, launch: Launch) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + launch.ready_seconds
    while not spot.pid_file.exists():
        if process.ended.done():
            await asyncio.wait([process.silent], timeout=1)
            said = process.last_words() or f"nothing, and ended with {process.ended.result()}"
            raise TransportFailed(f"nbdkit did not start; it says: {said}", where=launch.where)
        if loop.time() > deadline:
            raise TransportFailed(
                f"nbdkit does not listen after {launch.ready_seconds:g} s: {process.last_words() or 'silent'}",
                where=launch.where,
            )
        await asyncio.wait([process.ended], timeout=POLL_SECONDS)


async def _stop(process: NbdkitProcess, within: float) -> None:
    """End the process: it is asked first, so that it can close the disk, and killed when it does not listen."""
    if process.transport is None:
        return
    for number, seconds in ((signal.SIGTERM, within), (signal.SIGKILL, 5.0)):
        if process.ended.done():
            break
        with suppress(ProcessLookupError):
            process.transport.send_signal(number)
        await asyncio.wait([process.ended], timeout=seconds)
    process.transport.close()
