"""backstay run"""

from __future__ import annotations

import asyncio

from engine.cli.options import Config
from engine.config import load
from engine.service import run_service


def run(*, config: Config = None) -> None:
    """Run the engine until it is told to stop: follow vCenter, back up as the policies say, serve the API."""
    asyncio.run(run_service(load(config)))
