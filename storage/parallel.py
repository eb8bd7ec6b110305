"""The same work for many items, on a few threads; other work beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sized
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(items: Iterable[Item], worker: Callable[[], Callable[[Item], None]], threads: int) -> None:
    """Give every item to one of `threads` workers, of which the caller's thread is one.

    `worker` makes the work of one thread, with buffers of its own. Items are taken one by one, never ahead.
    The first error stops the other threads after their item and is raised. Where `items` has a length, no thread is
    started that would find none left.
    """
    if isinstance(items, Sized):
        threads = min(threads, len(items))
    source, lock = iter(items), threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work = worker()
            while True:
                with lock:
                    if failures:
                        return
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                work(item)
        except BaseException as error:  # raised in the caller's thread
            with lock:
                failures.append(error)

    others = [threading.Thread(target=run, name=f"worker {n}", daemon=True) for n in range(1, threads)]
    for other in others:
        other.start()
    run()
    for other in others:
        other.join()
    if failures:
        raise failures[0]


class Aside(Generic[Result]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # raised by `result` in the caller's thread
            self._error = error

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def result(self) -> Result:
        """What it came to, once it has ended; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]
