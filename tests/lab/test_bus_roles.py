"""The example server's roles, on a real server: each may do its part and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest

from connectors.bus import open_bus
from connectors.messages import Subjects
from connectors.nats_client import INBOX_PREFIX
from connectors.nats_login import BusSettings, read_login
from metrics.registry import Metrics
from tests.lab.certificates import Certificates, make_certificates
from tests.lab.nats import NatsServer, nats_server

EXAMPLE = Path(__file__).parents[2] / "examples/nats/nats-server.conf"
ROLES = ("engine", "announcer", "operator", "watcher")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "tls")


@pytest.fixture
def server(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    """The example with its addresses, store and certificates replaced by the lab's, and nothing else."""
    for role in ROLES:
        monkeypatch.setenv(f"BACKSTAY_{role.upper()}_PASSWORD", f"secret-of-{role}")
        (tmp_path / role).write_text(f"secret-of-{role}", encoding="utf-8")
    text = EXAMPLE.read_text(encoding="utf-8")
    text = re.sub(r"^(listen|http):.*$", "", text, flags=re.M)
    text = re.sub(r"^jetstream \{.*?^\}$", "", text, flags=re.M | re.S)
    text = text.replace("/etc/nats/server.pem", str(certificates.certificate))
    text = text.replace("/etc/nats/server.key", str(certificates.key))
    with nats_server(tmp_path / "nats", configuration=text, tls=True) as running:
        yield running


def settings(server: NatsServer, tmp_path: Path, certificates: Certificates, role: str) -> BusSettings:
    return BusSettings(
        (server.url,), user=role, password_file=tmp_path / role, tls_ca=certificates.authority, ack_wait_seconds=5.0
    )


@asynccontextmanager
async def client_of(role: BusSettings, denials: asyncio.Queue[str]) -> Any:
    async def note(error: Exception) -> None:
        await denials.put(str(error).lower())

    login = read_login(role)
    client = await nats.connect(
        list(role.servers), user=login.user, password=login.password, tls=login.tls, error_cb=note
    )
    try:
        yield client
    finally:
        await client.close()


def test_the_example_writes_to_disk_before_it_acknowledges() -> None:
    assert re.search(r"^\s+sync_interval: always$", EXAMPLE.read_text(encoding="utf-8"), flags=re.M)


async def test_the_engine_may_do_all_that_the_bus_does(
    server: NatsServer, tmp_path: Path, certificates: Certificates
) -> None:
    bus = await open_bus(settings(server, tmp_path, certificates, "engine"), Metrics())
    try:
        async with client_of(settings(server, tmp_path, certificates, "operator"), asyncio.Queue()) as operator:
            await operator.jetstream().publish("backstay.v1.main.cmd.backup", b"{}")
            await operator.jetstream().publish("backstay.v1.main.event.x", b"{}")
        async with asyncio.timeout(20), aclosing(bus.messages()) as messages:
            await (await anext(messages)).refuse("empty")
            await (await anext(messages)).done()
        await bus.publish(bus.subjects.run("r1", "done"), b"{}", key="r1-done")
    finally:
        await bus.aclose()


@pytest.mark.parametrize(
    ("role", "tail"),
    [
        ("announcer", "cmd.backup"),
        ("announcer", "cmd.hold"),
        ("announcer", "run.r1.done"),
        ("operator", "run.r1.done"),
        ("operator", "dlq.event.x"),
        ("operator", "cmd.expire"),
        ("watcher", "event.x"),
    ],
)
async def test_a_role_may_not_publish_what_is_not_its_part(
    role: str, tail: str, server: NatsServer, tmp_path: Path, certificates: Certificates
) -> None:
    bus = await open_bus(settings(server, tmp_path, certificates, "engine"), Metrics())
    await bus.aclose()
    denials: asyncio.Queue[str] = asyncio.Queue()
    async with client_of(settings(server, tmp_path, certificates, role), denials) as client:
        await client.publish(Subjects("main").prefix + tail, b"{}")
        async with asyncio.timeout(10):
            assert "permissions violation for publish" in await denials.get()


@pytest.mark.parametrize("role", ["announcer", "operator", "watcher"])
async def test_nobody_else_may_listen_to_what_the_engine_receives(
    role: str, server: NatsServer, tmp_path: Path, certificates: Certificates
) -> None:
    denials: asyncio.Queue[str] = asyncio.Queue()
    async with client_of(settings(server, tmp_path, certificates, role), denials) as client:
        for subject in (f"{INBOX_PREFIX}.>", "backstay.v1.main.event.>", "backstay.v1.main.cmd.>", ">"):
            await client.subscribe(subject)
            async with asyncio.timeout(10):
                assert "permissions violation for subscription" in await denials.get()
