"""Blocking work beside the event loop: a bounded pool per kind of work, and waits that a cancellation cannot tear.

A thread cannot be recalled. `settled` therefore waits for its end even when the caller is cancelled meanwhile, so
that nobody closes a file or abandons a restore point under a thread that still writes to it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def settled(executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of work in the executor. A cancellation meanwhile is let through when the thread has ended."""
    return await _wait(executor, lambda: work(*args, **kwargs), lambda: None)


async def interruptible(executor: Executor, stop: threading.Event, work: Callable[[], T]) -> T:
    """As `settled`, but a cancellation sets `stop`, on which the work ends early."""
    return await _wait(executor, work, stop.set)


async def hurried(executor: Executor, hurry: Callable[[], None], work: Callable[[], T]) -> T:
    """As `settled`, but a cancellation calls `hurry`, on which the work may end early."""
    return await _wait(executor, work, hurry)


async def _wait(executor: Executor, work: Callable[[], T], on_cancel: Callable[[], None]) -> T:
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        if not future.cancelled() and (failure := future.exception()) is not None:
            cancelled.add_note(f"the work in its thread ended with: {failure!r}")
        raise cancelled
    return future.result()


def _pool(workers: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=workers, thread_name_prefix=name)


@dataclass(frozen=True, slots=True)
class Threads:
    """The engine's pools. `state` has one thread, which alone touches the state's DuckDB file.

    `repository` serves short calls (list, commit, hold); `copying` hashes, compresses and packs; `long` is for work
    of minutes (blocking reads of a disk, verify, reclaim) that must not hold the others up; `planning` is for
    seconds of thought about policies.
    """

    state: ThreadPoolExecutor = field(default_factory=lambda: _pool(1, "state"))
    repository: ThreadPoolExecutor = field(default_factory=lambda: _pool(2, "repository"))
    copying: ThreadPoolExecutor = field(default_factory=lambda: _pool(max(2, os.cpu_count() or 1), "copying"))
    long: ThreadPoolExecutor = field(default_factory=lambda: _pool(8, "long"))
    planning: ThreadPoolExecutor = field(default_factory=lambda: _pool(1, "planning"))

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        for pool in (self.long, self.planning, self.copying, self.repository, self.state):
            pool.shutdown(wait=True, cancel_futures=True)
