"""The engine as a process: it alone knows which hypervisor, bus and metrics there are, and runs every loop.

One TaskGroup holds the loops. SIGTERM and SIGINT end it: backups under way are abandoned with their snapshots
removed, their jobs wait for the next start.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from connectors.bus import open_bus
from connectors.errors import ConnectorError, LoginRefused
from connectors.shown import Wanted
from connectors.vsphere.strays import end_strays
from connectors.vsphere.transport_settings import AttachIntent
from engine import emigrants, logs, second_copies, sections, upkeep
from engine.api import serve
from engine.config import Config
from engine.connecting import bus_settings, connect
from engine.control import Controls
from engine.endpoints import Endpoints
from engine.garbage import keep_out_of_search
from engine.held import resources, signals
from engine.notifying import Notifier
from engine.parts import Parts
from engine.ports import Hypervisor
from engine.records import Intent
from engine.rehearsals import rehearse_next
from engine.sources import Patience
from engine.startup import REOPEN, add_hypervisor, assemble, policies_folder, recover, take_up
from engine.state import State
from engine.threads import Threads
from engine.worker import work
from metrics.registry import Metrics
from policies.facts import Address, VmId
from storage.errors import StorageError

log = logging.getLogger("engine.service")

METRICS_SECONDS = 5.0
"""How often metrics that are read from tables are made anew."""

T = TypeVar("T")

CLOCK_COMPARED = timedelta(seconds=20)
"""How often a vCenter's clock is compared with ours."""


def utc_now() -> datetime:
    """The clock of the process."""
    return datetime.now(UTC)


Opener = Callable[[str, sections.VCenter, Config], Awaitable[Hypervisor]]


def recorder(state: State, threads: Threads) -> Callable[[AttachIntent], None]:
    """Writes down what is about to be attached to a proxy VM, and that it is gone. Blocks until it is durable.

    A disk of which nothing could be written is not attached: StorageError. That it is gone may stay unwritten: the
    next sweep finds nothing of it and closes the intent.
    """

    def record(intent: AttachIntent) -> None:
        name = f"{intent.disk_uuid} {intent.file_name}"
        if intent.done:
            try:
                threads.state.submit(state.resolve_intent, intent.run, "attached disk", name).result()
            except StorageError as error:
                log.warning("intent stays open until the next sweep", extra={"disk": name, "why": str(error)})
            return
        proxy = Address(intent.vcenter, intent.proxy_moref)
        written = Intent(intent.run, "attached disk", proxy, VmId(""), name, utc_now())
        threads.state.submit(state.intend, written).result()

    return record


class _Stopped(Exception):
    """Ends the service's loops."""


@dataclass(slots=True)
class Service:
    """Loops over parts. `open_hypervisor` and `ready` are there for tests of the engine without a vCenter."""

    parts: Parts
    endpoints: Endpoints | None = None
    open_hypervisor: Opener = connect
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _opened: list[Hypervisor] = field(default_factory=list, init=False)

    async def run(self) -> None:
        """Until `stopping` is set."""
        parts, timers = self.parts, self.parts.config.timers
        upkeep.call_the_janitor(parts)
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._stop())
                loops.create_task(parts.dispatcher.run())
                for name, vcenter in parts.config.vcenter.items():
                    loops.create_task(self._follow(name, vcenter))
                for _ in range(parts.config.limits.total + 1):
                    loops.create_task(work(parts.crew))
                loops.create_task(parts.tasks.run())
                loops.create_task(parts.sources.tick(timers.clock))
                loops.create_task(parts.sources.watch_policies(parts.rulebook, timers.policies))
                loops.create_task(upkeep.every(parts, "retention", timers.retention, upkeep.retain))
                if len(parts.config.vcenter) > 1:
                    loops.create_task(upkeep.every(parts, "moves between vCenters", emigrants.EVERY, emigrants.follow))
                for name in ("", *parts.config.repositories):
                    loops.create_task(upkeep.reclaiming(parts, timers.reclaim, name))
                    loops.create_task(upkeep.verifying(parts, timers.verify, name))
                for _ in range(parts.config.limits.rehearsals):
                    loops.create_task(upkeep.every(parts, "rehearsals", timers.rehearsals, rehearse_next))
                loops.create_task(upkeep.every(parts, "locks", timers.locks, upkeep.renew_locks))
                if parts.config.repositories:
                    loops.create_task(upkeep.every(parts, "repositories", REOPEN, take_up))
                loops.create_task(second_copies.look(parts))
                loops.create_task(upkeep.every(parts, "copies", timers.copies, second_copies.copy_all))
                loops.create_task(self._publish())
                loops.create_task(Notifier(parts).run())
                if parts.config.bus is not None:
                    loops.create_task(self._listen(parts.config.bus))
                if self.endpoints is not None:
                    loops.create_task(serve(Controls(parts), self.endpoints, parts.config.api))
                self.ready.set()
        except* _Stopped:
            log.info("engine stopped")
        finally:
            for hypervisor in self._opened:  # runs that were cut off needed them to clean up
                await hypervisor.aclose()
            parts.repositories.close()

    async def _stop(self) -> None:
        await self.stopping.wait()
        raise _Stopped

    async def _follow(self, name: str, vcenter: sections.VCenter) -> None:
        """Connect to a vCenter, however long that takes, then follow it and clean up behind dead runs."""
        parts, patience = self.parts, Patience()
        while True:
            try:
                hypervisor = await self.open_hypervisor(name, vcenter, parts.config)
                break
            except LoginRefused:
                if not self.parts.hypervisors and len(parts.config.vcenter) == 1:
                    raise
                log.error("login refused", extra={"vcenter": name})
                parts.unreachable[name] = "the login was refused"
            except ConnectorError as error:
                if parts.unreachable.get(name) != str(error):
                    log.error("vCenter not reached", extra={"vcenter": name, "why": str(error)})
                parts.unreachable[name] = str(error)
                parts.metrics.connection("vcenter", up=False)
            await patience.wait()
        self._opened.append(hypervisor)
        add_hypervisor(parts, name, hypervisor)
        log.info("vCenter followed", extra={"vcenter": name, "uuid": hypervisor.vcenter})
        async with asyncio.TaskGroup() as loops:
            loops.create_task(upkeep.janitor(parts, hypervisor.vcenter, parts.config.timers.janitor))
            loops.create_task(upkeep.look_at_datastores(parts, hypervisor.vcenter))
            loops.create_task(parts.sources.follow_events(hypervisor))
            loops.create_task(parts.sources.watch_inventory(hypervisor))
            loops.create_task(parts.sources.reconcile(hypervisor, parts.config.timers.reconcile))
            loops.create_task(parts.sources.watch_clock(hypervisor, CLOCK_COMPARED))
            wanted = Wanted(**vcenter.show.model_dump())
            loops.create_task(parts.showing.run(hypervisor.vcenter, hypervisor.board, wanted))

    async def _listen(self, settings: sections.Bus) -> None:
        """The bus, however long it takes to be there."""
        parts, patience = self.parts, Patience()
        while True:
            try:
                bus = await open_bus(bus_settings(settings), parts.metrics)
                break
            except LoginRefused:
                raise
            except ConnectorError as error:
                parts.sources.troubles["bus"] = str(error)
                parts.metrics.connection("nats", up=False)
            await patience.wait()
        parts.sources.troubles.pop("bus", None)
        parts.bus = bus
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(parts.sources.read_bus(bus))
                if parts.announcer is not None:
                    loops.create_task(parts.announcer.run(bus))
        finally:
            await bus.aclose()

    async def _publish(self) -> None:
        while True:
            await upkeep.once(self.parts, "metrics", upkeep.publish)
            await asyncio.sleep(METRICS_SECONDS)


def _version() -> str:
    try:
        return importlib.metadata.version("backstay")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


async def run_service(config: Config, on_start: Callable[[], None]) -> None:
    """Run an engine until SIGTERM or SIGINT. Errors of the start are raised as they are, those of loops as one.

    `on_start` is called when both end it well; what they do before is for the caller.
    """
    logs.configure("json" if os.environ.get("BACKSTAY_LOG") == "json" else "text")
    policies_folder(config.policies)
    with resources(config, utc_now) as (state, repository, threads, endpoints):
        parts = assemble(
            config,
            state=state,
            repository=repository,
            threads=threads,
            metrics=Metrics(version=_version(), now=utc_now),
            now=utc_now,
            version=_version(),
        )
        parts.addresses = endpoints.addresses
        await asyncio.to_thread(end_strays)
        await recover(parts)
        keep_out_of_search()
        parts.dispatcher.noted = replace(parts.dispatcher.noted, inventoried=keep_out_of_search)
        service = Service(parts, endpoints, partial(connect, on_intent=recorder(state, threads)))
        with signals(service.stopping):
            on_start()
            log.info("engine started", extra={"pid": os.getpid(), **endpoints.addresses})
            await service.run()
