"""Waiting longer after each failure in a row."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Pauses that double from `first` to `last` seconds until reset() tells that something worked again."""

    first: float = 0.25
    last: float = 15.0
    pause: float = 0.0

    async def sleep(self) -> None:
        """Wait out the pause that is due."""
        self.pause = min(max(self.first, 2 * self.pause), self.last)
        await asyncio.sleep(self.pause)

    def reset(self) -> None:
        """Start again with the first pause."""
        self.pause = 0.0
