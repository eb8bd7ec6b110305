"""TLS and logins against a real nats-server with our own authority, nkeys and JWTs."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from connectors.bus import open_bus
from connectors.errors import ConnectorError, LoginRefused
from connectors.nats_login import BusSettings, public_nkey
from metrics.registry import Metrics
from tests.lab.certificates import Certificates, make_certificates
from tests.lab.nats import NatsServer, nats_server

OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def tls(certificates: Certificates) -> str:
    return f'tls {{ cert_file: "{certificates.certificate}", key_file: "{certificates.key}" }}'


async def reaches(settings: BusSettings) -> bool:
    bus = await open_bus(settings, Metrics())
    try:
        return bus.connected
    finally:
        await bus.aclose()


@pytest.fixture
def secured(tmp_path: Path, certificates: Certificates) -> Iterator[NatsServer]:
    configuration = tls(certificates) + '\nauthorization { users = [ { user: "engine", password: "right" } ] }'
    (tmp_path / "password").write_text("right", encoding="utf-8")
    with nats_server(tmp_path / "nats", configuration=configuration, tls=True) as server:
        yield server


async def test_tls_by_our_own_authority_and_a_password_from_a_file(
    secured: NatsServer, tmp_path: Path, certificates: Certificates
) -> None:
    login = BusSettings(
        (secured.url,), user="engine", password_file=tmp_path / "password", tls_ca=certificates.authority
    )
    assert await reaches(login)


async def test_a_certificate_of_a_stranger_is_refused(secured: NatsServer, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path / "stranger")
    with pytest.raises(ConnectorError, match="certificate is not accepted") as refused:
        await reaches(
            BusSettings((secured.url,), user="engine", password_file=tmp_path / "password", tls_ca=stranger.authority)
        )
    assert not refused.value.retry


async def test_a_server_without_tls_is_sent_nothing_when_tls_was_asked_for(
    tmp_path: Path, certificates: Certificates
) -> None:
    (tmp_path / "token").write_text("canary-token", encoding="utf-8")
    with nats_server(tmp_path / "nats", configuration="debug: true\ntrace: true", tls=True) as plain:
        with pytest.raises(ConnectorError, match="offers no TLS"):
            await reaches(BusSettings((plain.url,), token_file=tmp_path / "token", tls_ca=certificates.authority))
        assert "CONNECT {" not in plain.log()


async def test_an_nkey_logs_in_without_any_secret_on_the_wire(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "seed").write_text(seed(key, USER), encoding="utf-8")
    (tmp_path / "other").write_text(seed(Ed25519PrivateKey.generate(), USER), encoding="utf-8")
    users = f"authorization {{ users = [ {{ nkey: {public_nkey(key)} }} ] }}"
    with nats_server(tmp_path / "nats", configuration=users) as server:
        assert await reaches(BusSettings((server.url,), nkey_file=tmp_path / "seed"))
        with pytest.raises(LoginRefused):
            await reaches(BusSettings((server.url,), nkey_file=tmp_path / "other"))


async def test_a_credentials_file_logs_in(tmp_path: Path) -> None:
    operator, account, user, system = (Ed25519PrivateKey.generate() for _ in range(4))
    operator_jwt = jwt(operator, name(operator, OPERATOR), "O", OPERATOR, {"type": "operator", "version": 2})
    limits = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}
    limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1, "wildcards": True}
    account_jwt = jwt(
        operator, name(account, ACCOUNT), "A", OPERATOR, {"type": "account", "version": 2, "limits": limits}
    )
    system_jwt = jwt(operator, name(system, ACCOUNT), "SYS", OPERATOR, {"type": "account", "version": 2})
    user_jwt = jwt(
        account,
        name(user, USER),
        "U",
        ACCOUNT,
        {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1},
    )
    (tmp_path / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed(user, USER)}\n------END USER NKEY SEED------\n",
        encoding="utf-8",
    )
    preload = {name(account, ACCOUNT): account_jwt, name(system, ACCOUNT): system_jwt}
    configuration = f"operator: {operator_jwt}\nsystem_account: {name(system, ACCOUNT)}\nresolver: MEMORY\n"
    configuration += f"resolver_preload: {json.dumps(preload)}\n"
    with nats_server(tmp_path / "nats", configuration=configuration) as server:
        assert await reaches(BusSettings((server.url,), credentials_file=tmp_path / "user.creds"))


# Keys and tokens as the nsc tool would make them


def name(key: Ed25519PrivateKey, role: int) -> str:
    raw = bytes([role]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return encoded(raw)


def seed(key: Ed25519PrivateKey, role: int) -> str:
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return encoded(bytes([(18 << 3) | role >> 5, (role & 31) << 3]) + private)


def encoded(raw: bytes) -> str:
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def jwt(issuer: Ed25519PrivateKey, subject: str, label: str, issuer_role: int, claims: dict[str, object]) -> str:
    body = {
        "jti": os.urandom(8).hex(),
        "iat": 1_700_000_000,
        "iss": name(issuer, issuer_role),
        "name": label,
        "sub": subject,
        "nats": claims,
    }
    text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body)}"
    return f"{text}.{base64.urlsafe_b64encode(issuer.sign(text.encode())).decode().rstrip('=')}"


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
