"""backstay run"""

from __future__ import annotations

import asyncio
import threading

from engine.cli.options import Config
from engine.cli.output import say
from engine.config import load
from engine.failures import Exit


def run(*, config: Config = None) -> None:
    """Run the engine until it is told to stop: follow vCenter, back up as the policies say, serve the API."""
    configuration = load(config)
    from engine.service import run_service  # loaded late: a second that a wrong configuration is told without

    started = threading.Event()
    try:
        asyncio.run(run_service(configuration, on_start=started.set))
    except KeyboardInterrupt:
        if not started.is_set():
            raise
        say("Told once more to stop, before everything was put away.")
        raise SystemExit(Exit.INTERRUPTED) from None
