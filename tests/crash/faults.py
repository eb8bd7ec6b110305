"""Faults inside the process: the n-th call to the store, or to the operating system, goes wrong."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from storage.blobs import Blobs
from storage.errors import NoSpace, StorageError, StoreFailed
from tests.crash.aftermath import after_a_crash
from tests.crash.scenes import Scene
from tests.crash.stages import Stage, clear, fresh_copy, store_of

KINDS: dict[str, Callable[[str], StorageError]] = {
    "EIO": lambda where: StoreFailed("the store reported: Input/output error", where=where),
    "ENOSPC": lambda where: NoSpace("no space left", where=where),
    "EDQUOT": lambda where: NoSpace("no space left: quota", where=where),
    "ETIMEDOUT": lambda where: StoreFailed("the store reported: Connection timed out", where=where),
    "503": lambda where: StoreFailed("the store answered 503 Slow Down", where=where),
    "short": lambda where: StoreFailed("the store took a part and failed", where=where),
}
READS = ("get", "read_into", "read_at", "size", "age_stamp", "list", "free_bytes", "clock")
NEVER_FAILS = ("abandon",)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when: the n-th call. `late`: after its effect. `once`: later calls go well again.

    `reads` says whether calls that change nothing count and fail too.
    """

    nth: int
    kind: str
    once: bool = False
    late: bool = False
    reads: bool = False

    def __str__(self) -> str:
        words = [self.kind, "late" * self.late, "once" * self.once, "reads" * self.reads]
        return "-".join([str(self.nth), *(word for word in words if word)])


def fault_of(text: str) -> Fault:
    """The fault that prints like this."""
    nth, kind, *words = text.split("-")
    return Fault(int(nth), kind, once="once" in words, late="late" in words, reads="reads" in words)


class Trouble:
    """Counts calls, from any thread, and tells which go wrong."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0
        self.fired = False
        self._lock = threading.Lock()

    def strikes(self) -> bool:
        """Whether this call is one that fails."""
        with self._lock:
            self.calls += 1
            struck = self.calls == self.fault.nth or (self.calls > self.fault.nth and not self.fault.once)
            self.fired |= struck
            return struck


class FailingStore:
    """Any store, or a writer of it, whose calls fail as a fault says."""

    def __init__(self, inner: object, trouble: Trouble) -> None:
        self._inner = inner
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name.startswith("_") or name in NEVER_FAILS:
            return found
        if name in READS and not self._trouble.fault.reads:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            fault = self._trouble.fault
            if self._trouble.strikes():
                if fault.kind == "short" and name == "write_at":
                    offset, buffers = arguments
                    found(offset, [bytes(memoryview(buffers[0])[: len(buffers[0]) // 2])])
                elif fault.late:
                    found(*arguments, **named)
                raise KINDS[fault.kind](f"{name} {arguments[0] if arguments else ''}")
            answer = found(*arguments, **named)
            if name == "writer":
                return FailingStore(answer, self._trouble)
            return iter(list(answer)) if name == "list" else answer

        return call


def faults(nth: int, *, reads: bool) -> Iterator[Fault]:
    """Every way in which the n-th call can go wrong."""
    for kind, once, late in itertools.product(KINDS, (False, True), (False, True)):
        yield Fault(nth, kind, once, late, reads)


def one_fault(nth: int, *, reads: bool) -> Fault:
    """One of them, each n another."""
    ways = list(faults(nth, reads=reads))
    return ways[nth * 7 % len(ways)]


def injected(stage: Stage, scene: Scene, fault: Fault, location: Path, *, thorough: bool = False) -> bool:
    """Play a scene on a copy of the stage with a fault, and look at what is left; False if no call was the n-th."""
    fresh_copy(stage, location, scene.prepare)
    trouble = Trouble(fault)
    done = _played(scene, location, cast(Blobs, FailingStore(store_of(location), trouble)))
    after_a_crash(location, stage, scene, least=len(scene.made) if done else 0, most=len(scene.made), thorough=thorough)
    clear(location)
    return trouble.fired


def _played(scene: Scene, location: Path, blobs: Blobs | None) -> bool:
    """Whether it went through; an error that is not ours passes."""
    try:
        scene.play(location, blobs)
    except StorageError:
        return False
    return True


# --- the operating system ---

CALLS = ("open", "pwritev", "fsync", "fdatasync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "preadv")
CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.EROFS, errno.EMFILE)


@contextmanager
def system_calls_fail(trouble: Trouble) -> Iterator[None]:
    """While this lasts, the n-th call from Python to change a file goes wrong; `short` writes a part and says so."""
    fault = trouble.fault
    me = os.getpid()

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if os.getpid() != me or not trouble.strikes():
                return real(*arguments, **named)
            if fault.kind == "short":
                if name == "pwritev":
                    return _short_write(real, *arguments)
                return real(*arguments, **named)
            if fault.late:
                answer = real(*arguments, **named)
                if name == "open":
                    os.close(answer)
            code = getattr(errno, fault.kind)
            raise OSError(code, os.strerror(code), str(arguments[0]))

        return call

    with ExitStack() as stack:
        for name in CALLS:
            if fault.reads or name != "preadv":
                stack.enter_context(patch.object(os, name, failing(name)))
        yield


def _short_write(real: Callable[..., int], fd: int, buffers: Sequence[Any], offset: int) -> int:
    first = memoryview(buffers[0]).cast("B")
    return real(fd, [first[: max(1, len(first) // 2)]], offset)


def system_call_fails(stage: Stage, scene: Scene, fault: Fault, location: Path, *, thorough: bool = False) -> bool:
    """As `injected`, beneath the local store."""
    fresh_copy(stage, location, scene.prepare)
    trouble = Trouble(fault)
    with system_calls_fail(trouble):
        done = _played(scene, location, None)
    assert done or fault.kind != "short", "a short write is no error"
    after_a_crash(location, stage, scene, least=len(scene.made) if done else 0, most=len(scene.made), thorough=thorough)
    clear(location)
    return trouble.fired


def system_faults(nth: int) -> Iterator[Fault]:
    """Every way in which the n-th system call can go wrong."""
    for kind, once, late in itertools.product(
        (*map(errno.errorcode.get, CODES), "short"), (False, True), (False, True)
    ):
        if kind is not None and not (kind == "short" and late):
            yield Fault(nth, kind, once, late)


def one_system_fault(nth: int) -> Fault:
    """One of them, each n another."""
    ways = list(system_faults(nth))
    return ways[nth * 7 % len(ways)]


def count_calls(scene: Scene, location: Path, *, reads: bool = False, beneath: bool = False) -> int:
    """How many calls a scene makes that could fail: to the store, or beneath it to the operating system."""
    trouble = Trouble(Fault(10**9, "EIO", once=True, reads=reads))
    if beneath:
        with system_calls_fail(trouble):
            scene.play(location, None)
    else:
        scene.play(location, cast(Blobs, FailingStore(store_of(location), trouble)))
    return trouble.calls
