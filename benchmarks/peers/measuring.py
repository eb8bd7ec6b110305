"""Whole processes under the clock: wall time, CPU time and resident memory, Python's start included."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run."""

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process took, and what all others did meanwhile. Private memory is no file's and not shared."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int = 0
    peak_private_bytes: int = 0
    others_cpu_seconds: float = 0.0


class Failed(Exception):
    """A process ended badly; carries the end of what it said."""


def run(command: Command, log: Path, *, synced: Path | None = None) -> Measured:
    """Run to the end; afterwards fsync a file that it wrote, on the same clock. Output goes to the log."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **command.environment}
    with log.open("ab") as out:
        out.write(f"$ {' '.join(command.argv)}\n".encode())
        out.flush()
        busy, began = busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command.argv, cwd=command.folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
        peaks = _Peaks(process.pid)
        sampler = threading.Thread(target=peaks.watch)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == 0 and synced is not None:
            sync(synced)
        wall = time.perf_counter() - began
        busy = busy_seconds() - busy
        peaks.over.set()
        sampler.join()
    if process.returncode:
        raise Failed(f"{' '.join(command.argv)} ended with {process.returncode}: {log.read_text()[-1500:]}")
    # The kernel's maximum is at least what this process had when it forked; what was sampled is the process itself.
    rss = peaks.rss or usage.ru_maxrss << 10
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(wall, cpu, rss, peaks.private, max(0.0, busy - cpu))


def busy_seconds() -> float:
    """CPU time that the whole machine has spent so far, the kernel's included."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


class _Peaks:
    """The largest resident sizes that were seen while a process ran."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.rss = self.private = 0
        self.over = threading.Event()

    def watch(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            try:
                told = self._status.read_text()
            except OSError:
                return
            self.rss = max(self.rss, status_bytes(told, "VmHWM"))
            self.private = max(self.private, status_bytes(told, "RssAnon"))


def status_bytes(text: str, key: str) -> int:
    """A size in /proc/PID/status; 0 when it is not there."""
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    return 0


def sync(path: Path) -> None:
    """Make a file and its name durable."""
    for target, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        fd = os.open(target, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def warm(*paths: Path) -> None:
    """Read files, or all files of folders, so that they lie in the page cache."""
    buffer = memoryview(bytearray(1 << 20))
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                _read(file, buffer)


def _read(file: Path, buffer: memoryview) -> None:
    with file.open("rb", buffering=0) as source:
        fd, size, at = source.fileno(), file.stat().st_size, 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return  # only a hole is left
            end = os.lseek(fd, at, os.SEEK_HOLE)
            while at < end:
                count = os.preadv(fd, [buffer[: min(len(buffer), end - at)]], at)
                if not count:
                    return
                at += count


def folder_bytes(folder: Path) -> int:
    """What the files of a folder hold."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def copy_state(source: Path, target: Path, immutable: str) -> None:
    """A second state of a tool; files below folders of this name are written once, and shared."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
        elif immutable in path.relative_to(source).parts[:-1]:
            os.link(path, to)
        else:
            shutil.copy2(path, to)
