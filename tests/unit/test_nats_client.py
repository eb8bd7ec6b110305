"""What strangers put into headers and subjects cannot end the task that reads; foreign errors become ours."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import AuthorizationError, ConnectionClosedError, Error, TimeoutError
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from connectors.bus import NatsBus
from connectors.errors import ConnectorError, LoginRefused, NotPermitted, Unreachable
from connectors.nats_client import GuardedClient, ours
from connectors.nats_login import BusSettings, Login
from engine.ports import Bus
from metrics.registry import Metrics

PLAIN = Login(tls=None, must_encrypt=False)


@given(st.sampled_from([b"NATS/1.0", b"NATS/1.0 ", b"NATS/1.0 404 ", b"NATS/1.0\r\n", b""]), st.binary(max_size=60))
async def test_any_header_block_is_read_or_passed_over(start: bytes, rest: bytes) -> None:
    read = await GuardedClient(PLAIN)._process_headers(start + rest)
    assert read is None or isinstance(read, dict)


async def test_a_header_status_that_is_not_text_is_passed_over() -> None:
    # Servers before 2.11 hand it on as it was published; nats-py alone would raise in the task that reads.
    assert await GuardedClient(PLAIN)._process_headers(b"NATS/1.0 \xff\xfe\xfd\r\n\r\n") is None


async def test_servers_that_a_server_names_are_not_gone_to() -> None:
    client = GuardedClient(PLAIN)
    client._setup_server_pool("nats://127.0.0.1:4222")
    client._current_server = client._server_pool[0]
    await client._process_info({"connect_urls": ["192.0.2.1:4222"]}, initial_connection=True)
    assert [server.uri.hostname for server in client._server_pool] == ["127.0.0.1"]


def test_the_bus_is_what_the_engine_asks_for() -> None:
    bus: Bus = NatsBus(BusSettings(("nats://127.0.0.1:4222",)), Metrics())
    assert bus


@pytest.mark.parametrize(
    ("foreign", "expected", "retry"),
    [
        (TimeoutError(), Unreachable, True),
        (OSError("connection refused"), Unreachable, True),
        (ConnectionClosedError(), Unreachable, True),
        (ServiceUnavailableError(), Unreachable, True),
        (AuthorizationError(), LoginRefused, False),
        (Error("nats: 'Authorization Violation'"), LoginRefused, False),
        (Error('nats: Permissions Violation for Publish to "x"'), NotPermitted, False),
        (NotFoundError(), ConnectorError, False),
        (APIError(description="no space"), ConnectorError, False),
        (ssl.SSLError("bad"), ConnectorError, False),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Exception) else None,
)
def test_foreign_errors_become_ours(foreign: Exception, expected: type[ConnectorError], retry: bool) -> None:
    error = ours(foreign, "nats://127.0.0.1:4222")
    assert type(error) is expected
    assert error.retry is retry
    assert "127.0.0.1" in str(error)
