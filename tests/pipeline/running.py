"""A whole engine over the hypervisor in memory, with timers short enough to watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from engine import config as configuration
from engine import sections
from engine.config import Config
from engine.connecting import connect
from engine.control import Controls
from engine.parts import Parts
from engine.ports import Hypervisor
from engine.service import Opener, Service
from engine.startup import assemble, recover
from engine.state import State
from engine.threads import Threads, settled
from metrics.registry import Metrics
from storage.repository import create, open_repository
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory

EVERYTHING = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.everything.trigger]]
on = ["vm.migrated", "vm.powered_off"]
"""


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Running:
    """A running engine. `until` waits for a claim to become true."""

    parts: Parts
    service: Service
    control: Controls

    async def until(self, claim: Callable[[], object], *, seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while not claim():  # noqa: ASYNC110  the claim is about the whole engine, which has no event for it
                await asyncio.sleep(0.02)

    async def finished(self, task: str) -> dict[str, object]:
        while True:
            report = await self.control.task(task, 5.0)
            if report.final:
                return {
                    "state": report.state.value,
                    "exit": report.exit_code,
                    "sentence": report.sentence,
                    **report.result,
                }

    async def event_keys(self) -> list[str]:
        """The keys of the journal, in order."""
        return await settled(self.parts.threads.state, self.parts.state.event_keys)

    async def until_journaled(self, keys: set[str]) -> None:
        """Wait until all these events are in the journal."""
        async with asyncio.timeout(60):
            while not keys <= set(await self.event_keys()):  # noqa: ASYNC110  nor has the journal
                await asyncio.sleep(0.05)

    async def until_written(self, statement: str) -> None:
        """Wait until the state has a row for this statement; it is asked where the engine asks it, in one thread."""
        async with asyncio.timeout(60):
            while not await settled(self.parts.threads.state, self.parts.state.rows, statement):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def points_of(self, name: str) -> int:
        return sum(len(self.parts.world.points.get(vm, ())) for vm in self.parts.world.named(name))


def configure(root: Path, policies: str = EVERYTHING, *, more: str = "") -> Config:
    (root / "policies").mkdir(parents=True, exist_ok=True)
    if not list((root / "policies").iterdir()):
        (root / "policies" / "all.toml").write_text(policies)
    if not (root / "repo").exists():
        create(root / "repo", now=now())
    (root / "password").write_text("secret")
    text = f"""
schema = 1
name = "test-engine"
state_dir = "state"
policies = "policies"
repository.path = "repo"
[vcenter.lab]
host = "nowhere.invalid"
user = "backup"
password = "file:password"
[timers]
clock = "1s"
policies = "1s"
{more}
"""
    return configuration.parse(text, root / "backstay.toml")


@asynccontextmanager
async def running(
    root: Path, hypervisor: HypervisorInMemory, config: Config, *, grace: float = 0.3, owner: str = "test"
) -> AsyncIterator[Running]:
    """The engine over a hypervisor in memory, stopped as by SIGTERM at the end of the block."""

    async def opened(name: str, vcenter: sections.VCenter, config: Config) -> Hypervisor:
        return hypervisor

    async with engine_of(config, opened, grace=grace, owner=owner) as engine:
        yield engine


@asynccontextmanager
async def engine_of(
    config: Config, opener: Opener = connect, *, grace: float = 0.3, owner: str = "test"
) -> AsyncIterator[Running]:
    """The engine of a configuration in this process, stopped as by SIGTERM at the end of the block."""
    with ExitStack() as held:
        state = State(config.state_dir, now=now())
        held.callback(state.close)
        repository = held.enter_context(open_repository(config.place, now=now, owner=owner))
        threads = Threads()
        held.callback(threads.close)
        parts = assemble(
            config,
            state=state,
            repository=repository,
            threads=threads,
            metrics=Metrics(version="test", now=now),
            now=now,
            version="test",
            reconcile_grace=timedelta(seconds=grace),
        )
        await recover(parts)
        service = Service(parts, open_hypervisor=opener)
        async with asyncio.TaskGroup() as group:
            run: Awaitable[None] = group.create_task(service.run())
            await service.ready.wait()
            try:
                yield Running(parts, service, Controls(parts))
            finally:
                service.stopping.set()
                await run
