"""Takes one message, journals its key durably, and kills itself before it can acknowledge."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing

from connectors.bus import open_bus
from connectors.nats_login import BusSettings
from metrics.registry import Metrics


async def main(url: str, site: str, journal: str) -> None:
    bus = await open_bus(BusSettings((url,), site=site, ack_wait_seconds=1.0), Metrics())
    async with aclosing(bus.messages()) as messages:
        message = await anext(messages)
        descriptor = os.open(journal, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.write(descriptor, f"{message.key}\n".encode())
        os.fsync(descriptor)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
