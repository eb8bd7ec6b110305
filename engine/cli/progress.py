"""How far a long command is: a bar on a terminal, a line now and then elsewhere, nothing with --json."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from engine.cli.output import printable, say
from engine.units import show_size
from policies.units import counted

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Progress(Protocol):
    """Told by the work, from any thread. It counts bytes, or what `progress` was given a noun for."""

    def begin(self, title: str, total_bytes: int) -> None:
        """A new part of the work, of so many bytes."""
        ...

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        ...


class Steps:
    """For work that tells how much is done so far: turned into steps. Called from any thread."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._done = 0

    def __call__(self, done_bytes: int) -> None:
        with self._lock:
            step = max(0, done_bytes - self._done)
            self._done += step
        self._bar.advance(step)


@contextmanager
def progress(*, quiet: bool = False, noun: str = "") -> Iterator[Progress]:
    """Progress on stderr for as long as the block runs, in bytes or in what the noun names."""
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        with _bar(noun) as bar:
            yield bar
    else:
        yield _Lines(noun)


class _Silent:
    def begin(self, title: str, total_bytes: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass


class _Lines:
    def __init__(self, noun: str = "") -> None:
        self._noun = noun
        self._lock = threading.Lock()
        self._title, self._total, self._done = "", 0, 0
        self._next = 0.0

    def begin(self, title: str, total_bytes: int) -> None:
        with self._lock:
            self._title, self._total, self._done = printable(title), total_bytes, 0
            self._next = time.monotonic() + LINE_SECONDS

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + LINE_SECONDS
                if self._noun:
                    say(f"{self._title}: {self._done} of {counted(self._total, self._noun)}")
                else:
                    say(f"{self._title}: {show_size(self._done)} of {show_size(self._total)}")


@contextmanager
def _bar(noun: str) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        *(
            (rich.MofNCompleteColumn(), rich.TextColumn(f"{noun}s"))
            if noun
            else (rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn())
        ),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

    class Bar:
        task: rich.TaskID | None = None

        def begin(self, title: str, total_bytes: int) -> None:
            if self.task is not None:
                bar.remove_task(self.task)
            self.task = bar.add_task(printable(title).replace("[", "\\["), total=total_bytes)

        def advance(self, count: int) -> None:
            if self.task is not None:
                bar.advance(self.task, count)

    with bar:
        yield Bar()
