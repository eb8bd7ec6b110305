"""Off this machine only with TLS and a login; secrets come from files and show up nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.errors import ConnectorError, LoginRefused
from connectors.nats_login import BusSettings, read_login


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("canary\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("host", ["nats.example.com", "192.0.2.7", "[2001:db8::1]", "0.0.0.0"])
def test_no_server_off_this_machine_without_tls(host: str, secret: Path) -> None:
    with pytest.raises(ConnectorError, match="with TLS only"):
        read_login(BusSettings((f"nats://{host}:4222",), token_file=secret))


def test_no_server_off_this_machine_without_a_login() -> None:
    with pytest.raises(ConnectorError, match="with a login only"):
        read_login(BusSettings(("tls://nats.example.com:4222",)))


def test_one_server_off_this_machine_is_enough_to_ask_for_tls() -> None:
    with pytest.raises(ConnectorError, match="with TLS only"):
        read_login(BusSettings(("nats://127.0.0.1:4222", "nats://nats.example.com:4222")))


@pytest.mark.parametrize("server", ["nats://127.0.0.1:4222", "nats://localhost:4222", "nats://[::1]:4222"])
def test_on_this_machine_neither_is_needed(server: str) -> None:
    login = read_login(BusSettings((server,)))
    assert login.tls is None
    assert not login.must_encrypt


def test_off_this_machine_with_both(secret: Path) -> None:
    login = read_login(BusSettings(("tls://nats.example.com:4222",), token_file=secret))
    assert login.must_encrypt
    assert login.token == "canary"
    assert "canary" not in repr(login)


@pytest.mark.parametrize(
    "server",
    [
        "127.0.0.1",
        "nats://127.0.0.1",
        "http://127.0.0.1:4222",
        "nats://127.0.0.1:port",
        "nats://:4222",
        "ws://127.0.0.1:80",
    ],
)
def test_an_address_is_a_scheme_a_host_and_a_port(server: str) -> None:
    with pytest.raises(ConnectorError, match="write nats://"):
        read_login(BusSettings((server,)))


def test_a_secret_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConnectorError, match="holds a secret") as refused:
        read_login(BusSettings(("nats://engine:canary@127.0.0.1:4222",)))
    assert "canary" not in str(refused.value)


def test_two_ways_to_log_in_are_one_too_many(secret: Path) -> None:
    with pytest.raises(ConnectorError, match="more than one way"):
        read_login(BusSettings(("nats://127.0.0.1:4222",), token_file=secret, nkey_file=secret))


def test_a_user_needs_a_password_file() -> None:
    with pytest.raises(ConnectorError, match="password file"):
        read_login(BusSettings(("nats://127.0.0.1:4222",), user="engine"))


def test_a_missing_or_empty_secret_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for file in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(LoginRefused, match=file.name):
            read_login(BusSettings(("nats://127.0.0.1:4222",), token_file=file))


@pytest.mark.parametrize("text", ["SU", "x", "SUAAAA", "S" + "A" * 57, "ÄÖ"])
def test_what_is_no_seed_is_refused_without_repeating_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "seed").write_text(text, encoding="utf-8")
    with pytest.raises(LoginRefused, match="nkey seed"):
        read_login(BusSettings(("nats://127.0.0.1:4222",), nkey_file=tmp_path / "seed"))


def test_what_is_no_credentials_file_is_refused(secret: Path) -> None:
    with pytest.raises(LoginRefused, match="credentials file"):
        read_login(BusSettings(("nats://127.0.0.1:4222",), credentials_file=secret))


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, secret: Path) -> None:
    with pytest.raises(ConnectorError, match=r"absent\.pem"):
        read_login(BusSettings(("tls://nats.example.com:4222",), token_file=secret, tls_ca=tmp_path / "absent.pem"))
