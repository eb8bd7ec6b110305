"""backstay run"""

from __future__ import annotations

import asyncio

from engine.cli.options import Config
from engine.config import load


def run(*, config: Config = None) -> None:
    """Run the engine until it is told to stop: follow vCenter, back up as the policies say, serve the API."""
    configuration = load(config)
    from engine.service import run_service  # loaded late: a second that a wrong configuration is told without

    asyncio.run(run_service(configuration))
