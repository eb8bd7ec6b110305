"""Where the NATS server is and how to log in: off loopback only with TLS and a login, secrets only from files.

A NATS user may be a name with a password, a token, an nkey (a seed file), or a credentials file (a JWT with its seed).
Files are read at each connection, so that rotated secrets are taken up.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from connectors.errors import ConnectorError, LoginRefused
from connectors.messages import SITE_NAME

NKEY_SEED_PREFIX = 18 << 3
NKEY_USER_PREFIX = 20 << 3


@dataclass(frozen=True, slots=True)
class BusSettings:
    """One NATS account at one site. At most one way to log in.

    `ack_wait_seconds`: how long a message may stay unacknowledged before it comes again.
    `max_deliver`: a message that came so often without an acknowledgement becomes a dead letter.
    `monitor_url`: the server's monitoring address, only to learn whether it writes to disk before it acknowledges.
    """

    servers: tuple[str, ...]
    site: str = "main"
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    nkey_file: Path | None = None
    credentials_file: Path | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    monitor_url: str = ""
    ack_wait_seconds: float = 60.0
    max_deliver: int = 5
    replicas: int = 1
    connect_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Login:
    """What a connection needs; the secrets in it stay out of its repr."""

    tls: ssl.SSLContext | None
    must_encrypt: bool
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    nkey: str = ""
    jwt: bytes = field(default=b"", repr=False)
    sign: Callable[[str], bytes] | None = None


def read_login(settings: BusSettings) -> Login:
    """Check the settings and read the secrets. Raises ConnectorError where TLS or a login is missing, or a file is."""
    places = [_place(server) for server in settings.servers]
    if not places:
        raise ConnectorError("no NATS server is configured", hint="set bus.servers")
    if not SITE_NAME.fullmatch(settings.site):
        raise ConnectorError(f"{settings.site!r} is no site name", hint="use a to z, 0 to 9, - and _")
    remote = [place for place in places if not _is_loopback(place.hostname or "")]
    ways = [
        bool(settings.user or settings.password_file),
        settings.token_file is not None,
        settings.nkey_file is not None,
        settings.credentials_file is not None,
    ]
    if sum(ways) > 1:
        raise ConnectorError("more than one way to log in to NATS is configured", hint="keep one")
    for place in remote:
        if place.scheme != "tls":
            raise ConnectorError(
                "NATS off this machine is reached with TLS only",
                where=_shown(place),
                hint="write tls:// and give its authority",
            )
        if not any(ways) and settings.tls_certificate is None:
            raise ConnectorError(
                "NATS off this machine is reached with a login only",
                where=_shown(place),
                hint="give a credentials file, an nkey, a token, or a user and a password",
            )
    encrypted = (
        any(place.scheme == "tls" for place in places)
        or settings.tls_ca is not None
        or settings.tls_certificate is not None
    )
    tls = _tls(settings) if encrypted else None
    return _with_secrets(settings, tls, must_encrypt=encrypted)


def _with_secrets(settings: BusSettings, tls: ssl.SSLContext | None, *, must_encrypt: bool) -> Login:
    if settings.credentials_file is not None:
        jwt, key = _credentials(settings.credentials_file)
        return Login(tls, must_encrypt, jwt=jwt, sign=_signer(key))
    if settings.nkey_file is not None:
        key = _seed(_secret(settings.nkey_file), settings.nkey_file)
        return Login(tls, must_encrypt, nkey=public_nkey(key), sign=_signer(key))
    if settings.token_file is not None:
        return Login(tls, must_encrypt, token=_secret(settings.token_file))
    if settings.user or settings.password_file:
        if not (settings.user and settings.password_file):
            raise ConnectorError("a NATS user needs a password file, and the other way round")
        return Login(tls, must_encrypt, user=settings.user, password=_secret(settings.password_file))
    return Login(tls, must_encrypt)


def public_nkey(key: Ed25519PrivateKey) -> str:
    """The name of a user by its key: U…"""
    raw = bytes([NKEY_USER_PREFIX]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b32encode(raw + _crc(raw)).decode().rstrip("=")


def _place(server: str) -> SplitResult:
    try:
        place = urlsplit(server)
        port = place.port
    except ValueError:
        raise ConnectorError("a NATS server's address cannot be read", hint="write nats://127.0.0.1:4222") from None
    if place.username is not None or place.password is not None:
        raise ConnectorError(
            "a NATS address holds a secret", where=_shown(place), hint="put it into a file and name that"
        )
    if place.scheme not in ("nats", "tls") or not place.hostname or port is None:
        raise ConnectorError(
            "a NATS server's address is a scheme, a host and a port",
            where=_shown(place),
            hint="write nats://127.0.0.1:4222 or tls://nats.example.com:4222",
        )
    return place


def _shown(place: SplitResult) -> str:
    return f"{place.scheme}://{place.hostname or ''}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(settings: BusSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.tls_certificate is not None:
            context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(f) for f in (settings.tls_ca, settings.tls_certificate, settings.tls_key) if f)
        raise ConnectorError(f"NATS certificates cannot be read: {error}", where=files) from error
    return context


def _secret(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise LoginRefused(f"the secret cannot be read: {reason}", where=str(file)) from None
    if not text:
        raise LoginRefused("the secret is empty", where=str(file))
    return text


def _credentials(file: Path) -> tuple[bytes, Ed25519PrivateKey]:
    blocks = re.findall(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s*(\S+)\s*-{3,}END \1-{3,}", _secret(file))
    parts = dict(blocks)
    if "NATS USER JWT" not in parts or "USER NKEY SEED" not in parts:
        raise LoginRefused("not a NATS credentials file", where=str(file), hint="it holds a user JWT and an nkey seed")
    return parts["NATS USER JWT"].encode("ascii", "replace"), _seed(parts["USER NKEY SEED"], file)


def _seed(text: str, file: Path) -> Ed25519PrivateKey:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raw = b""
    user_seed = (
        len(raw) == 36 and raw[0] & 0xF8 == NKEY_SEED_PREFIX and (raw[0] & 7) << 5 | raw[1] >> 3 == NKEY_USER_PREFIX
    )
    if not user_seed or _crc(raw[:-2]) != raw[-2:]:
        raise LoginRefused("not a user's nkey seed", where=str(file), hint="it starts with SU")
    return Ed25519PrivateKey.from_private_bytes(raw[2:34])


def _signer(key: Ed25519PrivateKey) -> Callable[[str], bytes]:
    return lambda nonce: base64.b64encode(key.sign(nonce.encode()))


def _crc(data: bytes) -> bytes:
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
