"""The same work for many items, on a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def for_each(items: Iterable[Item], worker: Callable[[], Callable[[Item], None]], threads: int) -> None:
    """Give every item to one of `threads` workers, of which the caller's thread is one.

    `worker` makes the work of one thread, with buffers of its own. Items are taken one by one, never ahead.
    The first error stops the other threads after their item and is raised.
    """
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
