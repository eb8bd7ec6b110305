"""What the engine's process holds while it runs: state, repository, threads, sockets, and its signals."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import TypeVar

from engine.client import Engine
from engine.config import Config
from engine.endpoints import Endpoints, open_endpoints
from engine.state import State
from engine.threads import Threads
from storage.errors import Locked
from storage.repository import Repository, open_repository

T = TypeVar("T")

BRIEFLY_HELD = timedelta(seconds=10)
"""How long a start waits for a command that has the repository open: longer than any short command takes."""


@contextmanager
def resources(config: Config, now: Callable[[], datetime]) -> Iterator[tuple[State, Repository, Threads, Endpoints]]:
    """Everything that is held by one process at a time, closed in the reverse order."""
    passphrase = config.repository.passphrase
    with ExitStack() as held:
        state = _once_free(config, lambda: State(config.state_dir, now=now()))
        held.callback(state.close)
        repository = _once_free(
            config,
            lambda: open_repository(
                config.place,
                passphrase=passphrase.read if passphrase is not None else None,
                must_be_encrypted=passphrase is not None,
                now=now,
                owner=f"engine unix:{config.socket}",
            ),
        )
        held.enter_context(repository)
        endpoints = open_endpoints(config)
        held.callback(endpoints.close)
        threads = Threads()
        held.callback(threads.close)
        yield state, repository, threads, endpoints


def _once_free(config: Config, opened: Callable[[], T]) -> T:
    """Open what a short command may hold for a moment; Locked when it stays held, or another engine has it."""
    deadline = time.monotonic() + BRIEFLY_HELD.total_seconds()
    while True:
        try:
            return opened()
        except Locked:
            if Engine(config.socket).listens() or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def signals(stopping: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event meanwhile."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
