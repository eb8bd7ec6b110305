"""`backstay check` tells what is wrong with the bus before the engine does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from connectors.errors import LoginRefused
from engine.cli.check import check_bus
from engine.credentials import Secret
from engine.failures import BadInput, NotReachable
from engine.sections import Bus


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return f"nats://127.0.0.1:{port}"


def test_a_server_that_accepts_connections_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"nats://127.0.0.1:{server.getsockname()[1]}"
        assert check_bus(Bus(servers=(address,))) == f"{address} accepts connections"


def test_nobody_there_is_told(closed: str) -> None:
    with pytest.raises(NotReachable, match="no server accepts connections"):
        check_bus(Bus(servers=(closed,)))


def test_a_login_that_cannot_be_read_is_told_before_anybody_is_asked(closed: str, tmp_path: Path) -> None:
    with pytest.raises(LoginRefused, match=r"none\.creds"):
        check_bus(Bus(servers=(closed,), credentials=tmp_path / "none.creds"))
    with pytest.raises(BadInput, match=r"bus\.token"):
        check_bus(Bus(servers=(closed,), token=Secret("env", "TOKEN")))
