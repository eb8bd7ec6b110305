"""`backstay check` tells what is wrong with the bus before the engine does."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import pytest

from connectors.errors import LoginRefused, Unreachable
from connectors.nats_client import try_login
from connectors.nats_login import BusSettings
from engine.cli.check import check_bus
from engine.credentials import Secret
from engine.failures import BadInput, NotReachable
from engine.sections import Bus
from tests.lab.nats import nats_server


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return f"nats://127.0.0.1:{port}"


async def test_a_server_that_accepts_connections_and_says_nothing_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"nats://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unreachable):
            await try_login(BusSettings((address,), connect_seconds=0.2))


def test_nobody_there_is_told(closed: str) -> None:
    with pytest.raises(NotReachable, match="no server accepts connections"):
        check_bus(Bus(servers=(closed,)))


def test_the_login_is_tried_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    words = {name: tmp_path / name for name in ("right", "wrong")}
    for word, file in words.items():
        file.write_text(word)
        file.chmod(0o600)
    configuration = 'authorization { users = [ { user: "engine", password: "right" } ] }'
    with nats_server(tmp_path / "nats", configuration=configuration) as server:
        asked = partial(Bus, servers=(server.url,), user="engine")
        said = check_bus(asked(password=Secret("file", str(words["right"]))))
        assert said.startswith(f"logged in at 127.0.0.1:{server.port} (nats-server 2.")
        with pytest.raises(LoginRefused, match="did not accept the login"):
            check_bus(asked(password=Secret("file", str(words["wrong"]))))


def test_a_login_that_cannot_be_read_is_told_before_anybody_is_asked(closed: str, tmp_path: Path) -> None:
    with pytest.raises(LoginRefused, match=r"none\.creds"):
        check_bus(Bus(servers=(closed,), credentials=tmp_path / "none.creds"))
    with pytest.raises(BadInput, match=r"bus\.token"):
        check_bus(Bus(servers=(closed,), token=Secret("env", "TOKEN")))
