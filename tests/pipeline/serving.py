"""A whole engine over the hypervisor in memory with its API, and the commands of a person beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.api import serve
from engine.endpoints import open_endpoints
from tests.console import Ran, backstay
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, running

CONFIGURATION = """
schema = 1
name = "test-engine"
state_dir = "state"
policies = "policies"
repository.path = "repo"
[vcenter.lab]
host = "127.0.0.1"
port = 1
user = "backup"
password = "file:password"
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A running engine with its API. `home` has a path that is short enough for a Unix socket."""

    engine: Running
    hypervisor: HypervisorInMemory
    home: Path

    async def command(self, *words: str | Path, expect: int | None = 0) -> Ran:
        where = ("--config", self.home / "backstay.toml")
        return await asyncio.to_thread(backstay, *words, *where, home=self.home, expect=expect)

    def write(self, directory: str, text: str) -> Path:
        (self.home / directory).mkdir(exist_ok=True)
        (self.home / directory / "all.toml").write_text(text)
        return self.home / directory

    async def plan(self, text: str, *words: str | Path, expect: int = 0) -> Ran:
        return await self.command("policy", "plan", self.write("new", text), *words, expect=expect)


@asynccontextmanager
async def served(home: Path, *names: str) -> AsyncIterator[Served]:
    """The engine once each of these VMs has a restore point."""
    hypervisor = HypervisorInMemory(home / "disks")
    for name in names:
        hypervisor.add(name)
    config = configure(home)
    (home / "backstay.toml").write_text(CONFIGURATION)
    endpoints = open_endpoints(config)
    try:
        async with (
            running(home, hypervisor, config, owner=f"test unix:{config.socket}") as engine,
            asyncio.TaskGroup() as group,
        ):
            server = group.create_task(serve(engine.control, endpoints, config.api))
            await engine.until(lambda: all(engine.points_of(name) == 1 for name in names))
            yield Served(engine, hypervisor, home)
            server.cancel()
    finally:
        endpoints.close()
