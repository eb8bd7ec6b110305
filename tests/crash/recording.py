"""Every change that a process makes below a folder, in order, as strace saw it: ours and DuckDB's alike.

What a power cut may leave is made from this, by `tests.crash.powerloss`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = 0
"""The number of the recorded folder itself."""

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,ftruncate,"
    "truncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,lseek,mmap,sync,syncfs"
)
ACKS = "acks"
"""A file beside the recorded folder: a line written to it is something that the process was told is so."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file, by its number."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file's new length."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Name:
    """A file got a name in a folder, or a folder was made there."""

    folder: int
    name: str
    file: int
    makes_folder: bool = False


@dataclass(frozen=True, slots=True)
class Unname:
    """A name went. `after` is the place of the `Name` without which it did not go, when both are one rename."""

    folder: int
    name: str
    after: int = -1


@dataclass(frozen=True, slots=True)
class Move:
    """A rename within one folder, which happens as one."""

    folder: int
    old: str
    new: str
    file: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What was done to a file, or to a folder's names, up to a place in the record is durable."""

    file: int
    covers: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The process was told this."""

    said: str


Operation = Write | Truncate | Name | Unname | Move | Sync | Ack


@dataclass
class Recording:
    """What was there before, and what happened. Folders and files have numbers; `contents` has those of files."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)


class CannotTrace(Exception):
    """strace is missing, or may not trace here."""


@cache
def check_tracing() -> None:
    """CannotTrace, with what to do, unless strace can follow a process here."""
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=openat", "-o", os.devnull, "true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CannotTrace("strace is not installed, and power cuts need what it records: make setup") from None
    if tried.returncode:
        raise CannotTrace(
            f"strace may not trace a process here, and power cuts need what it records: {tried.stderr.strip()}"
            "\nIn a container, allow ptrace: docker run --cap-add=SYS_PTRACE --security-opt seccomp=unconfined …"
            "\nOn a machine: sysctl kernel.yama.ptrace_scope must be below 3."
        )


def record(command: list[str], folder: Path) -> Recording:
    """Run a command to its end and record what it does below a folder. CannotTrace where that is not possible."""
    check_tracing()
    recording = Recording()
    _take(recording, folder)
    trace, acks = folder.with_name(folder.name + ".trace"), folder.with_name(ACKS)
    acks.touch()
    strace = ["strace", "-f", "-qq", "-v", "-y", "-xx", "-s", str(1 << 26), "--seccomp-bpf", "-e", f"trace={CALLS}"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([*strace, "-o", str(trace), *command], check=True, env=environment)
    with trace.open(encoding="ascii") as lines:
        _Reader(recording, folder, acks).read(lines)
    trace.unlink()
    return recording


def python(*arguments: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", *arguments]


def _take(recording: Recording, folder: Path) -> int:
    number = len(recording.folders) + len(recording.contents)
    names = recording.folders[number] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            names[path.name] = _take(recording, path)
        else:
            file = len(recording.folders) + len(recording.contents)
            recording.contents[file] = path.read_bytes()
            names[path.name] = file
    return number


LINE = re.compile(r"^(\d+)\s+(.*)$")
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|\?)")


def _bytes(quoted: str) -> bytes:
    """The bytes of a string that strace prints in hexadecimal."""
    return bytes.fromhex(quoted.strip('"').replace("\\x", ""))


def _fd(text: str) -> int:
    return int(text.partition("<")[0])


class _Reader:
    """Turns strace's lines into operations, and follows which descriptor and which name means which file."""

    def __init__(self, recording: Recording, folder: Path, acks: Path) -> None:
        self._recording = recording
        self._folder = str(folder)
        self._acks = str(acks)
        self._folders = {number: dict(names) for number, names in recording.folders.items()}
        self._sizes = {number: len(data) for number, data in recording.contents.items()}
        self._next = len(self._folders) + len(self._sizes)
        self._open: dict[int, int] = {}
        self._ends: dict[int, int] = {}  # append position by descriptor, where write() goes
        self._ack_fds: set[int] = set()
        self._begun: dict[str, tuple[str, int]] = {}

    def read(self, lines: Iterator[str]) -> None:
        for line in lines:
            found = LINE.match(line)
            if not found:
                continue
            process, text = found[1], found[2]
            if resumed := RESUMED.match(text):
                begun, covers = self._begun.pop(process)
                self._done(begun + resumed[2], covers)
            elif text.endswith("<unfinished ...>"):
                text = text.removesuffix("<unfinished ...>").rstrip()
                if text.startswith("close("):
                    self._close(_fd(text.removeprefix("close(")))
                self._begun[process] = text, len(self._recording.operations)
            else:
                self._done(text, len(self._recording.operations))

    def _done(self, text: str, covers: int) -> None:
        found = CALL.match(text)
        if not found or found[3] == "?":
            return
        name, arguments, result = found[1], found[2], int(found[3])
        if result >= 0:
            self._call(name, _split(arguments), result, covers)

    def _call(self, name: str, arguments: list[str], result: int, covers: int) -> None:
        handlers: dict[str, Callable[[], None]] = {
            "open": lambda: self._opened(None, arguments[0], arguments[1], result),
            "openat": lambda: self._opened(arguments[0], arguments[1], arguments[2], result),
            "creat": lambda: self._opened(None, arguments[0], "O_CREAT|O_TRUNC", result),
            "close": lambda: self._close(_fd(arguments[0])),
            "write": lambda: self._write(_fd(arguments[0]), _bytes(arguments[1])[:result], None),
            "writev": lambda: self._write(_fd(arguments[0]), _vector(arguments[1])[:result], None),
            "pwrite64": lambda: self._write(_fd(arguments[0]), _bytes(arguments[1])[:result], int(arguments[3])),
            "pwritev": lambda: self._write(_fd(arguments[0]), _vector(arguments[1])[:result], int(arguments[3])),
            "pwritev2": lambda: self._write(_fd(arguments[0]), _vector(arguments[1])[:result], int(arguments[3])),
            "lseek": lambda: self._seek(_fd(arguments[0]), result),
            "ftruncate": lambda: self._truncate(self._open.get(_fd(arguments[0])), int(arguments[1])),
            "truncate": lambda: self._truncate(self._find(None, arguments[0]), int(arguments[1])),
            "fallocate": lambda: self._allocate(_fd(arguments[0]), *arguments[1:]),
            "fsync": lambda: self._sync(_fd(arguments[0]), covers),
            "fdatasync": lambda: self._sync(_fd(arguments[0]), covers),
            "rename": lambda: self._rename(None, arguments[0], None, arguments[1]),
            "renameat": lambda: self._rename(*arguments[:4]),
            "renameat2": lambda: self._rename(*arguments[:4]),
            "link": lambda: self._link(None, arguments[0], None, arguments[1]),
            "linkat": lambda: self._link(*arguments[:4]),
            "unlink": lambda: self._unlink(None, arguments[0]),
            "unlinkat": lambda: self._unlink(arguments[0], arguments[1]),
            "rmdir": lambda: self._unlink(None, arguments[0]),
            "mkdir": lambda: self._mkdir(None, arguments[0]),
            "mkdirat": lambda: self._mkdir(arguments[0], arguments[1]),
        }
        if name in handlers:
            handlers[name]()
        elif name == "mmap":
            if "PROT_WRITE" in arguments[2] and "MAP_SHARED" in arguments[3] and _fd(arguments[4]) in self._open:
                raise NotImplementedError("a file is written through a mapping, which cannot be recorded")
        elif any(argument.partition("<")[0] in map(str, self._open) for argument in arguments):
            raise NotImplementedError(f"{name} is not recorded yet")

    # --- names ---

    def _path(self, at: str | None, quoted: str) -> str:
        path = os.fsdecode(_bytes(quoted))
        if not path.startswith("/") and at is not None:
            path = f"{os.fsdecode(_bytes(at.partition('<')[2].removesuffix('>')))}/{path}"
        return os.path.normpath(path)

    def _place(self, at: str | None, quoted: str) -> tuple[int, str] | None:
        """(folder, name) of a path below the recorded folder; None for any other."""
        path = self._path(at, quoted)
        if not path.startswith(self._folder + "/"):
            return None
        *above, name = path[len(self._folder) + 1 :].split("/")
        folder = ROOT
        for part in above:
            folder = self._folders[folder][part]
        return folder, name

    def _find(self, at: str | None, quoted: str) -> int | None:
        if self._path(at, quoted) == self._folder:
            return ROOT
        place = self._place(at, quoted)
        return self._folders[place[0]].get(place[1]) if place else None

    def _add(self, operation: Operation) -> None:
        self._recording.operations.append(operation)

    def _opened(self, at: str | None, quoted: str, flags: str, fd: int) -> None:
        self._close(fd)
        if self._path(at, quoted) == self._acks:
            self._ack_fds.add(fd)
            return
        file = self._find(at, quoted)
        place = self._place(at, quoted)
        if file is None:
            if place is None:
                return
            file = self._new(*place)
            self._sizes[file] = 0
        elif "O_TRUNC" in flags:
            self._truncate(file, 0)
        self._open[fd] = file
        self._ends[fd] = -1 if "O_APPEND" in flags else 0

    def _new(self, folder: int, name: str, *, makes_folder: bool = False) -> int:
        file, self._next = self._next, self._next + 1
        self._folders[folder][name] = file
        self._add(Name(folder, name, file, makes_folder))
        return file

    def _mkdir(self, at: str | None, quoted: str) -> None:
        place = self._place(at, quoted)
        if place is not None:
            self._folders[self._new(*place, makes_folder=True)] = {}

    def _link(self, old_at: str | None, old: str, new_at: str | None, new: str) -> None:
        file, place = self._find(old_at, old), self._place(new_at, new)
        if place is not None:
            assert file is not None, "a link from elsewhere"
            self._folders[place[0]][place[1]] = file
            self._add(Name(*place, file))

    def _rename(self, old_at: str | None, old: str, new_at: str | None, new: str) -> None:
        source, target = self._place(old_at, old), self._place(new_at, new)
        if source is None and target is None:
            return
        assert source is not None and target is not None, "a rename across the border of the recording"
        file = self._folders[source[0]].pop(source[1])
        assert file not in self._folders, "a renamed folder is not recorded yet"
        self._folders[target[0]][target[1]] = file
        if source[0] == target[0]:
            self._add(Move(source[0], source[1], target[1], file))
        else:
            self._add(Name(*target, file))
            self._add(Unname(*source, after=len(self._recording.operations) - 1))

    def _unlink(self, at: str | None, quoted: str) -> None:
        place = self._place(at, quoted)
        if place is not None:
            self._folders[place[0]].pop(place[1])
            self._add(Unname(*place))

    # --- contents ---

    def _close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._ack_fds.discard(fd)

    def _write(self, fd: int, data: bytes, offset: int | None) -> None:
        if fd in self._ack_fds:
            for said in data.decode().splitlines():
                self._add(Ack(said))
            return
        file = self._open.get(fd)
        if file is None or not data:
            return
        if offset is None:
            at = self._ends[fd]
            offset = self._sizes[file] if at < 0 else at
            if at >= 0:
                self._ends[fd] = offset + len(data)
        self._sizes[file] = max(self._sizes[file], offset + len(data))
        self._add(Write(file, offset, data))

    def _seek(self, fd: int, position: int) -> None:
        if self._ends.get(fd, -1) >= 0:
            self._ends[fd] = position

    def _truncate(self, file: int | None, size: int) -> None:
        if file is not None:
            self._sizes[file] = size
            self._add(Truncate(file, size))

    def _allocate(self, fd: int, mode: str, offset: str, length: str) -> None:
        file = self._open.get(fd)
        if file is not None and mode == "0" and int(offset) + int(length) > self._sizes[file]:
            self._truncate(file, int(offset) + int(length))

    def _sync(self, fd: int, covers: int) -> None:
        file = self._open.get(fd)
        if file is not None:
            self._add(Sync(file, covers))


def _split(arguments: str) -> list[str]:
    """The arguments of a call: what lies between commas outside brackets. Strings hold no comma, being hexadecimal."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[\[\]{}<>,]", arguments):
        if found[0] in "[{<":
            depth += 1
        elif found[0] in "]}>":
            depth -= 1
        elif not depth:
            parts.append(arguments[start : found.start()].strip())
            start = found.end()
    return [*parts, arguments[start:].strip()]


def _vector(text: str) -> bytes:
    return b"".join(_bytes(found) for found in re.findall(r'iov_base=("[^"]*")', text))
