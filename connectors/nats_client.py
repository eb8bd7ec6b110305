"""nats-py, made safe against servers that offer no TLS and against headers and subjects that are not text.

What is overridden here is private to nats-py 2.x; tests/lab/test_bus.py holds it against a real server. The client
never reconnects by itself: the bus does, so that there is one way to connect, and it can be watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

from nats.aio.client import Client
from nats.errors import AuthorizationError, Error, NoServersError
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from connectors.errors import ConnectorError, LoginRefused, NotPermitted, Unreachable
from connectors.nats_login import BusSettings, Login, read_login

Foreign = (Error, OSError, asyncio.TimeoutError)
"""What a call of nats-py may raise."""

SHUT_SECONDS = 2.0
INBOX_PREFIX = "_INBOX_backstay"
"""Where the server's answers go; a prefix of its own keeps other accounts from listening in."""


class GuardedClient(Client):  # type: ignore[misc]
    """One connection to one server, as it was configured; closed for good when it breaks."""

    def __init__(self, login: Login) -> None:
        super().__init__()
        self._login = login
        self._public_nkey = login.nkey or None
        self.noted: BaseException | None = None

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # nats-py sends the login in clear text to a server that does not ask for TLS.
        if self._login.must_encrypt and not info.get("tls_required"):
            raise Error("the server offers no TLS")
        # A server may name others to go to; only those that were configured are gone to.
        await super()._process_info(
            {key: value for key, value in info.items() if key != "connect_urls"}, initial_connection
        )

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        # An exception here would end the task that reads, and every redelivery would end it again.
        try:
            headers_or_none: dict[str, str] | None = await super()._process_headers(headers)
        except (ValueError, IndexError):
            return None
        return headers_or_none

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        return super()._build_message(sid, subject.decode("utf-8", "replace").encode(), reply, data, headers)

    async def note(self, error: BaseException) -> None:
        """nats-py's error callback."""
        self.noted = error


async def connect(settings: BusSettings, login: Login) -> GuardedClient:
    """One attempt at each configured server. Raises Unreachable, LoginRefused or ConnectorError."""
    client = GuardedClient(login)
    where = ", ".join(settings.servers)
    try:
        async with asyncio.timeout(settings.connect_seconds):
            await client.connect(
                list(settings.servers),
                name="backstay",
                inbox_prefix=INBOX_PREFIX,
                error_cb=client.note,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,
                connect_timeout=max(1, int(settings.connect_seconds)),
                ping_interval=20,
                max_outstanding_pings=2,
                dont_randomize=True,
                tls=login.tls,
                user=login.user or None,
                password=login.password or None,
                token=login.token or None,
                signature_cb=login.sign,
                user_jwt_cb=(lambda: login.jwt) if login.jwt else None,
            )
    except Foreign as error:
        cause = client.noted if isinstance(error, NoServersError) and client.noted else error
        await shut(client)
        raise ours(cause, where) from error
    except asyncio.CancelledError:
        await shut(client)
        raise
    return client


async def try_login(settings: BusSettings) -> str:
    """Log in and out again; the server that took the login, with its version. Raises what `connect` does."""
    client = await connect(settings, read_login(settings))
    try:
        version = client.connected_server_version
        return f"{client.connected_url.netloc} (nats-server {version.major}.{version.minor}.{version.patch})"
    finally:
        await shut(client)


async def shut(client: GuardedClient) -> None:
    """Disconnect. After a failed TLS handshake nats-py waits for an end that never comes: not longer than this."""
    with contextlib.suppress(*Foreign):
        async with asyncio.timeout(SHUT_SECONDS):
            await client.close()


def ours(error: BaseException, where: str) -> ConnectorError:
    """The one place where an exception of nats-py becomes one of ours."""
    text = str(error).removeprefix("nats: ").strip("'\"")
    match error:
        case ConnectorError():
            return error
        case AuthorizationError():
            return LoginRefused("NATS did not accept the login", where=where)
        case ssl.SSLCertVerificationError():
            return ConnectorError(
                f"the NATS server's certificate is not accepted: {error.verify_message}",
                where=where,
                hint="give the authority that signed it",
            )
        case ssl.SSLError():
            return ConnectorError(f"no TLS with the NATS server: {text}", where=where)
        case ServiceUnavailableError():
            return Unreachable(
                "NATS answers, but its JetStream does not", where=where, hint="start nats-server with -js"
            )
        case NotFoundError():
            return ConnectorError("the stream or consumer is not there", where=where)
        case APIError():
            return ConnectorError(f"JetStream refused: {error.description or text}", where=where)
        case _ if "authorization" in text.lower() or "authentication" in text.lower():
            return LoginRefused("NATS did not accept the login", where=where)
        case _ if "permissions violation" in text.lower():
            return NotPermitted(f"the NATS account may not do this: {text}", where=where)
        case _ if "no TLS" in text:
            return ConnectorError("the NATS server offers no TLS", where=where, hint="nothing secret was sent")
        case TimeoutError() | asyncio.TimeoutError():
            return Unreachable("NATS does not answer", where=where)
        case _:
            return Unreachable(text or type(error).__name__, where=where)
