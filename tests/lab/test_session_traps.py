"""What pyVmomi lets go wrong without a word: pins, time-outs, shared collectors, threads, and sessions left behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from pyVmomi import SoapStubAdapter, vim, vmodl

from connectors.errors import LoginRefused, Unreachable
from connectors.hypervisor import InventoryUpdate
from connectors.vsphere.hypervisor import VCenter
from connectors.vsphere.session import Session
from tests.lab.connect import connected, session_settings, until, vcenter_settings
from tests.lab.relay import Relay
from tests.lab.vcenter import MIB, Lab

Start = Callable[..., Lab]


async def test_another_certificate_than_the_pinned_one_is_refused_by_every_connection_not_only_by_the_first(
    lab: Lab, fresh_lab: Start
) -> None:
    other = await asyncio.to_thread(fresh_lab, vms=1, disk_bytes=MIB, content=False)
    settings = session_settings(lab, ca_file=lab.root / "server.pem")
    async with (
        Relay((lab.host, lab.port)) as relay,
        await Session.open(replace(settings, host="127.0.0.1", port=relay.port)) as session,
    ):
        await session.call(session.now)
        relay.target = (other.host, other.port)
        relay.cut()
        for _ in range(3):
            with pytest.raises(LoginRefused, match="certificate of the server is not trusted"):
                await session.call(session.now)
        assert session.tls.verify_mode is ssl.CERT_REQUIRED
        relay.target = (lab.host, lab.port)
        await session.call(session.now)


async def test_a_vcenter_that_takes_calls_and_never_answers_is_unreachable_in_time(lab: Lab) -> None:
    settings = replace(session_settings(lab), answer_seconds=1.0)
    async with Relay((lab.host, lab.port)) as relay:
        session = await Session.open(replace(settings, host="localhost", port=relay.port))
        relay.target = None
        relay.cut()
        async with asyncio.timeout(20):
            with pytest.raises(Unreachable):
                await session.call(session.now)
            await session.aclose()
            with pytest.raises(Unreachable):
                await Session.open(replace(settings, host="localhost", port=relay.port))


async def test_however_many_calls_there_are_at_once_a_session_has_few_connections(lab: Lab) -> None:
    lab.inject("CurrentTime", times=40, delay_seconds=0.02)
    try:
        async with Relay((lab.host, lab.port)) as relay:
            settings = replace(session_settings(lab), host="localhost", port=relay.port, threads=4)
            async with await Session.open(settings) as session:
                await until(lambda: relay.open <= 1)
                relay.most = relay.open
                await asyncio.gather(*(session.call(session.now) for _ in range(40)))
                assert relay.most <= 4
                before = relay.accepted
                await asyncio.gather(*(session.call(session.now) for _ in range(8)))
                assert relay.accepted == before, "connections are kept and used again"
    finally:
        lab.heal()


async def test_waiting_for_changes_and_events_takes_no_thread_from_the_calls(lab: Lab) -> None:
    settings = vcenter_settings(lab)
    vcenter = await VCenter.connect(replace(settings, session=replace(settings.session, threads=1)))
    try:
        async with aclosing(vcenter.watch()) as updates, aclosing(vcenter.events(None)) as events:
            await anext(updates)
            await anext(events)
            waiting = asyncio.ensure_future(anext(updates))
            async with asyncio.timeout(6):  # less than the waits for changes take that would be in between
                for _ in range(3):
                    await vcenter.inventory()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    finally:
        await vcenter.aclose()


async def test_a_quiet_inventory_is_waited_for_no_longer_than_a_connection_may_be_silent(lab: Lab) -> None:
    settings = vcenter_settings(lab)
    session = replace(settings.session, answer_seconds=3.0)
    vcenter = await VCenter.connect(replace(settings, session=session, tags_every_seconds=300.0))
    try:
        async with aclosing(vcenter.watch()) as updates:
            assert (await anext(updates)).complete
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3.6):
                    await anext(updates)  # a broken connection would lead to a second complete one
    finally:
        await vcenter.aclose()


async def test_two_who_watch_share_no_collector(fresh_lab: Start) -> None:
    lab = await asyncio.to_thread(fresh_lab, vms=2, disk_bytes=MIB, content=False)

    def told(update: InventoryUpdate, name: str) -> bool:
        return any(vm.name == name for vm in update.present)

    async with connected(lab) as vcenter, aclosing(vcenter.watch()) as one:
        assert len((await anext(one)).present) == 2
        async with aclosing(vcenter.watch()) as other:
            assert len((await anext(other)).present) == 2
            await asyncio.to_thread(lab.rename, "web-01", "first")
            async with asyncio.timeout(10):
                for updates in (one, other):
                    while not told(await anext(updates), "first"):
                        pass
        await asyncio.to_thread(lab.rename, "first", "second")
        async with asyncio.timeout(10):
            while not told(await anext(one), "second"):
                pass


async def test_who_stops_watching_leaves_neither_a_collector_nor_a_view_behind(lab: Lab) -> None:
    made, ended = ("CreatePropertyCollector", "CreateContainerView"), ("DestroyPropertyCollector", "DestroyView")

    def counted(names: tuple[str, ...]) -> list[int]:
        calls = lab.calls()
        return [calls.get(name, 0) for name in names]

    async with connected(lab) as vcenter:
        before, gone = counted(made), counted(ended)
        async with aclosing(vcenter.watch()) as updates:
            await anext(updates)
        assert [n - m for n, m in zip(counted(ended), gone, strict=True)] == [
            n - m for n, m in zip(counted(made), before, strict=True)
        ]
        assert counted(made) != before


async def test_a_closed_session_is_gone_from_vcenter(lab: Lab) -> None:
    session = await Session.open(session_settings(lab))
    trusted = ssl.create_default_context(cafile=str(lab.ca_file))
    stub = SoapStubAdapter(host=lab.host, port=lab.port, sslContext=trusted)
    stub.cookie = session.cookie

    def name_of_root() -> str:
        return str(vim.Folder(session.content.rootFolder._moId, stub).name)

    try:
        assert await asyncio.to_thread(name_of_root)
        await session.aclose()
        with pytest.raises(vmodl.fault.SecurityError):
            await asyncio.to_thread(name_of_root)
    finally:
        stub.DropConnections()
