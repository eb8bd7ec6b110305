"""Room for other tasks while one works through thousands of things on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

AT_ONCE_SECONDS = 0.01
"""How long work goes on before others get their turn."""

T = TypeVar("T")


async def unhurried(many: Iterable[T]) -> AsyncIterator[T]:
    """One after the other, with a pause before the next whenever some work was done in one go.

    Other tasks run meanwhile: `many` must not be a table that they change.
    """
    since = time.monotonic()
    for one in many:
        yield one
        if time.monotonic() - since >= AT_ONCE_SECONDS:
            await asyncio.sleep(0)
            since = time.monotonic()
