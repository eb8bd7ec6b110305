"""The bus against a real nats-server: what is acknowledged is journaled, what is not comes again."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest

from connectors.bus import NatsBus, NatsMessage, durability, open_bus
from connectors.errors import BadMessage, ConnectorError, LoginRefused, Unreachable
from connectors.messages import parse
from connectors.nats_login import BusSettings
from metrics.labels import Durability
from metrics.registry import Metrics
from policies.facts import Event, EventType
from tests.lab.nats import NatsServer, nats_server

SITE = "lab"
ROOT = Path(__file__).parents[2]
EVENTS = f"backstay.v1.{SITE}.event.test"


def announcement(vm: str, *, id: str = "1") -> bytes:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": id,
            "source": "/tests",
            "type": "io.backstay.event.v1",
            "data": {"event": "vm.powered_off", "vm": {"name": vm}},
        }
    ).encode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


def settings(server: NatsServer, **more: Any) -> BusSettings:
    return BusSettings((server.url,), site=SITE, **{"ack_wait_seconds": 1.0, **more})


@asynccontextmanager
async def bus_of(server: NatsServer, **more: Any) -> AsyncIterator[NatsBus]:
    bus = await open_bus(settings(server, **more), Metrics())
    try:
        yield bus
    finally:
        await bus.aclose()


async def tell(server: NatsServer, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Any:
    client = await nats.connect(server.url)
    try:
        return await client.jetstream().publish(subject, data, headers=headers)
    finally:
        await client.close()


async def take(bus: NatsBus, count: int, *, seconds: float = 20.0) -> list[NatsMessage]:
    taken: list[NatsMessage] = []
    async with asyncio.timeout(seconds), aclosing(bus.messages()) as messages:
        async for message in messages:
            taken.append(message)
            if len(taken) == count:
                break
    return taken


async def pending(server: NatsServer, stream: str) -> int:
    client = await nats.connect(server.url)
    try:
        info = await client.jetstream().stream_info(stream)
        return int(info.state.messages)
    finally:
        await client.close()


async def dead_letters(server: NatsServer) -> list[Any]:
    client = await nats.connect(server.url)
    try:
        manager = client.jetstream()
        state = (await manager.stream_info("BACKSTAY_LAB_DEAD")).state
        return [await manager.get_msg("BACKSTAY_LAB_DEAD", seq) for seq in range(state.first_seq, state.last_seq + 1)]
    finally:
        await client.close()


async def test_a_message_that_was_not_acknowledged_comes_again_with_the_same_key(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        await tell(server, EVENTS, announcement("web-1"), {"Nats-Msg-Id": "e-1"})
        (first,) = await take(bus, 1)
    async with bus_of(server) as bus:
        (second,) = await take(bus, 1)
        await second.done()
        assert (first.key, second.key, second.deliveries) == ("nats-id:e-1", "nats-id:e-1", 2)
    assert await pending(server, bus.streams.work) == 0


async def test_an_engine_killed_after_the_journal_and_before_the_acknowledgement_gets_it_again(
    server: NatsServer, tmp_path: Path
) -> None:
    async with bus_of(server):
        await tell(server, EVENTS, announcement("web-1", id="k"))
    journal = tmp_path / "journal"
    victim = [sys.executable, "-m", "tests.lab.bus_victim", server.url, SITE, str(journal)]
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *victim, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    async with bus_of(server) as bus:
        (again,) = await take(bus, 1)
        await again.done()
    assert journal.read_text(encoding="utf-8").splitlines() == [again.key, again.key]
    assert await pending(server, bus.streams.work) == 0


async def test_a_server_killed_between_the_work_and_the_acknowledgement_delivers_again(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        await tell(server, EVENTS, announcement("web-1", id="7"))
        (first,) = await take(bus, 1)
        server.kill()
        with pytest.raises(Unreachable):
            await first.done()
        server.start()
        (second,) = await take(bus, 1)
        await second.done()
        assert first.key == second.key == "nats-event:/tests 7"


async def test_a_message_is_gone_once_done_has_returned_whatever_happens_to_the_server(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        for number in range(20):
            await tell(server, EVENTS, announcement(f"vm-{number}", id=str(number)))
        for message in await take(bus, 20):
            await message.done()
        server.kill()
        server.start()
        assert await pending(server, bus.streams.work) == 0


async def test_the_bus_goes_on_by_itself_after_the_server_went_away(server: NatsServer) -> None:
    async with bus_of(server) as bus, asyncio.timeout(30), aclosing(bus.messages()) as messages:
        await tell(server, EVENTS, announcement("before", id="1"))
        before = await anext(messages)
        await before.done()
        server.kill()
        server.start()
        await tell(server, EVENTS, announcement("after", id="2"))
        after = await anext(messages)
        await after.done()
        assert b"after" in after.data
        assert bus.connected


async def test_a_consumer_that_somebody_deleted_is_made_again(server: NatsServer) -> None:
    async with bus_of(server) as bus, asyncio.timeout(30), aclosing(bus.messages()) as messages:
        await tell(server, EVENTS, announcement("a", id="1"))
        await (await anext(messages)).done()
        client = await nats.connect(server.url)
        await client.jetstream().delete_consumer(bus.streams.work, "engine")
        await client.jetstream().publish(EVENTS, announcement("b", id="2"))
        await client.close()
        await (await anext(messages)).done()


async def test_two_publications_of_one_message_id_are_one_message(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        await tell(server, EVENTS, announcement("web-1"), {"Nats-Msg-Id": "e-1"})
        again = await tell(server, EVENTS, announcement("web-1"), {"Nats-Msg-Id": "e-1"})
        assert again.duplicate
        assert await pending(server, bus.streams.work) == 1
        await bus.publish(bus.subjects.run("r1", "done"), b"{}", key="r1-done")
        await bus.publish(bus.subjects.run("r1", "done"), b"{}", key="r1-done")
        assert await pending(server, bus.streams.runs) == 1


async def test_a_refused_message_becomes_a_dead_letter_with_the_reason_and_never_comes_again(
    server: NatsServer,
) -> None:
    async with bus_of(server) as bus:
        await tell(server, EVENTS, b"not json\xff", {"Nats-Msg-Id": "bad"})
        (message,) = await take(bus, 1)
        with pytest.raises(BadMessage) as refused:
            parse(message.subject, message.data, key=message.key, received_at=message.received_at)
        await message.refuse(str(refused.value))
        assert await pending(server, bus.streams.work) == 0
        (letter,) = await dead_letters(server)
        assert letter.subject == f"backstay.v1.{SITE}.dlq.event.test"
        assert letter.data == b"not json\xff"
        assert "Invalid JSON" in letter.headers["Backstay-Reason"]
        assert letter.headers["Backstay-Key"] == "nats-id:bad"


async def test_a_message_that_nobody_finishes_becomes_a_dead_letter(server: NatsServer) -> None:
    async with bus_of(server, max_deliver=2, ack_wait_seconds=0.3) as bus:
        await tell(server, EVENTS, announcement("poison", id="p"))
        await take(bus, 2)
        await tell(server, EVENTS, announcement("good", id="g"))
        async with asyncio.timeout(20), aclosing(bus.messages()) as messages:
            async for message in messages:
                await message.done()
                if await pending(server, bus.streams.dead):
                    break
                await tell(server, EVENTS, announcement("good", id="another"))
        (letter,) = await dead_letters(server)
        assert b"poison" in letter.data
        assert "given up" in letter.headers["Backstay-Reason"]


async def test_each_of_two_deliveries_of_one_message_can_be_acknowledged(server: NatsServer) -> None:
    async with bus_of(server, ack_wait_seconds=0.2) as bus, asyncio.timeout(20), aclosing(bus.messages()) as messages:
        await tell(server, EVENTS, announcement("slow", id="1"))
        first = await anext(messages)
        second = await anext(messages)
        assert (first.key, first.deliveries, second.deliveries) == (second.key, 1, 2)
        await first.done()
        await second.done()
        assert await pending(server, bus.streams.work) == 0


async def test_an_in_progress_message_is_not_delivered_twice(server: NatsServer) -> None:
    async with bus_of(server, ack_wait_seconds=0.5) as bus, asyncio.timeout(20), aclosing(bus.messages()) as messages:
        await tell(server, EVENTS, announcement("slow", id="1"))
        slow = await anext(messages)
        await tell(server, EVENTS, announcement("next", id="2"))
        following = await anext(messages)
        await following.done()
        await slow.working()
        await slow.done()
        assert (slow.deliveries, following.deliveries) == (1, 1)


async def raw_publish(server: NatsServer, subject: bytes, headers: bytes, payload: bytes) -> None:
    """As a stranger with a socket would, past every check of a client library."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(payload), headers, payload))
    writer.write(b"PING\r\n")
    await writer.drain()
    while (await reader.readline()).strip() != b"PONG":
        pass
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("subject", "headers", "payload"),
    [
        (b"event.x", b"NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n", b""),
        (b"event.x", b"NATS/1.0 503\r\n\r\n", b""),
        (b"event.x", b"NATS/1.0 \xff\xfe\xfd\xfc\r\n\r\n", b"x"),
        (b"event.x", b"NATS/1.0\r\n\xff\xfe: \xff\r\nno colon\r\n: \r\n\r\n", b"x"),
        (b"event.x", b"NATS/1.0\r\n" + b"".join(b"H%d: v\r\n" % n for n in range(4000)) + b"\r\n", b"x"),
        (b"event.x", b"NATS/1.0\r\nNats-Msg-Id: " + b"k" * 50_000 + b"\r\n\r\n", b"x"),
        (b"event.\xff\xfe", b"NATS/1.0\r\n\r\n", b"x"),
        (b"cmd.expire", b"NATS/1.0\r\n\r\n", b"[" * 100_000),
        (b"cmd.backup", b"NATS/1.0\r\n\r\n", b"\x00" * 300_000),
    ],
    ids=["status", "inline-status", "status-no-text", "names", "flood", "long-id", "subject", "deep", "big"],
)
async def test_a_hostile_message_is_refused_and_the_next_one_comes_through(
    server: NatsServer, subject: bytes, headers: bytes, payload: bytes
) -> None:
    async with bus_of(server, ack_wait_seconds=30.0) as bus, asyncio.timeout(20), aclosing(bus.messages()) as messages:
        await raw_publish(server, b"backstay.v1.lab." + subject, headers, payload)
        await tell(server, EVENTS, announcement("good"))
        hostile = await anext(messages)
        with pytest.raises(BadMessage) as refused:
            parse(hostile.subject, hostile.data, key=hostile.key, received_at=hostile.received_at)
        assert len(hostile.key) < 400
        await hostile.refuse(str(refused.value))
        good = await anext(messages)
        event = parse(good.subject, good.data, key=good.key, received_at=good.received_at)
        assert isinstance(event, Event)
        assert (event.type, event.vm_name) == (EventType.POWERED_OFF, "good")
        await good.done()
        assert await pending(server, bus.streams.dead) == 1


@pytest.mark.parametrize("reply", ["$JS.ACK.a.b", "$JS.ACK.a.b.x.x.x.x.x", "$JS.ACK.a.b.1.1.1." + "9" * 40 + ".0"])
async def test_a_forged_delivery_is_passed_over(server: NatsServer, reply: str) -> None:
    watcher = await nats.connect(server.url)
    pulls = await watcher.subscribe("$JS.API.CONSUMER.MSG.NEXT.>")
    async with bus_of(server) as bus, asyncio.timeout(20), aclosing(bus.messages()) as messages:

        async def forge() -> None:
            inbox = (await pulls.next_msg(10)).reply
            await watcher.publish(inbox, b"{}", reply=reply)
            await watcher.flush()
            await tell(server, EVENTS, announcement("real"))

        async with asyncio.TaskGroup() as both:
            both.create_task(forge())
            message = await anext(messages)
        assert b"real" in message.data
        await message.done()
    await watcher.close()


async def test_a_payload_of_a_megabyte_is_refused_at_its_publisher(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        with pytest.raises(nats.js.errors.APIError):
            await tell(server, EVENTS, b"x" * 1_000_000)
        assert await pending(server, bus.streams.work) == 0


async def test_streams_and_consumer_are_made_once_and_found_again(server: NatsServer) -> None:
    async with bus_of(server), bus_of(server) as second:
        assert second.connected


async def test_a_stream_with_other_subjects_is_refused_with_what_to_do(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="BACKSTAY_LAB_WORK", subjects=["else.>"])
    await client.close()
    with pytest.raises(ConnectorError, match="BACKSTAY_LAB_WORK"):
        await open_bus(settings(server), Metrics())


async def test_a_publication_outside_the_runs_is_a_programming_error(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        with pytest.raises(ValueError, match="run subjects"):
            await bus.publish(f"backstay.v1.{SITE}.cmd.backup", b"{}", key="k")


async def test_no_server_is_unreachable_and_says_where() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(Unreachable, match=url):
            await open_bus(BusSettings((url,), site=SITE), Metrics())


async def test_what_the_server_writes_to_disk_is_asked_of_its_monitor(server: NatsServer, tmp_path: Path) -> None:
    assert await durability(server.monitor_url) is Durability.DURABLE
    with nats_server(tmp_path / "lazy", sync_always=False) as lazy:
        assert await durability(lazy.monitor_url) is Durability.NOT_DURABLE
    assert await durability(lazy.monitor_url) is Durability.UNKNOWN
    assert await durability("") is Durability.UNKNOWN


async def test_a_wrong_password_is_a_refused_login_and_does_not_show_itself(tmp_path: Path) -> None:
    accounts = 'authorization { users = [ { user: "engine", password: "right" } ] }'
    (tmp_path / "password").write_text("wrong-secret\n", encoding="utf-8")
    with nats_server(tmp_path / "nats", configuration=accounts) as server:
        with pytest.raises(LoginRefused) as refused:
            await open_bus(settings(server, user="engine", password_file=tmp_path / "password"), Metrics())
        assert "wrong-secret" not in str(refused.value)
        (tmp_path / "password").write_text("right\n", encoding="utf-8")
        async with bus_of(server, user="engine", password_file=tmp_path / "password") as bus:
            assert bus.connected


async def test_the_time_of_a_message_is_when_the_server_took_it(server: NatsServer) -> None:
    async with bus_of(server) as bus:
        await tell(server, EVENTS, announcement("web-1"))
        (message,) = await take(bus, 1)
        assert abs((datetime.now(UTC) - message.received_at).total_seconds()) < 60
