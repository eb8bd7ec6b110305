"""Notices to people: a JSON document POSTed to a webhook, or an e-mail. One message, one attempt.

What is secret is read for each attempt and stands in no error: those of httpx and smtplib are told in our words.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

from connectors.errors import LoginRefused, Rejected, Unreachable
from policies.facts import instant_text

T = TypeVar("T")

ANSWER_SECONDS = 10.0
"""How long one attempt may take at a webhook, and how long a mail server may take for each answer."""

LONGEST_SUBJECT = 200
MOST_SAID = 200
"""Letters of a mail server's answer that are repeated."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told: one line, a text of lines, and the same as values for programs."""

    at: datetime
    subject: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a document is POSTed. The address and the headers are read when they are needed."""

    url: Callable[[], str]
    headers: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail server and who gets the mail. "tls" from the first byte, or "starttls"; "none" only on this machine."""

    host: str
    port: int
    sender: str
    to: tuple[str, ...]
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password: Callable[[], str] | None = None
    ca_file: Path | None = None


Target = Webhook | Mail


async def deliver(target: Target, notice: Notice) -> str:
    """Send it once; what the other side said. What blocks does so in a thread that nobody's end waits for.

    Unreachable where another attempt may help; LoginRefused and Rejected where it will not.
    """
    match target:
        case Webhook():
            return await _post(*await _aside(lambda: _secrets(target)), notice)
        case Mail():
            return await _aside(lambda: _send(target, notice))


async def _aside(work: Callable[[], T]) -> T:
    """The result of work in a thread of its own. Cancelled, it leaves the thread to itself, as the process does."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(tell: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if future.done() else tell())

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # raised in the caller's thread
            settle(partial(future.set_exception, error))
        else:
            settle(partial(future.set_result, result))

    threading.Thread(target=run, name="notice", daemon=True).start()
    return await future


def is_local(host: str) -> bool:
    """Whether the host is this machine, as far as its name alone tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# webhooks


def _secrets(target: Webhook) -> tuple[str, dict[str, str], ssl.SSLContext]:
    url = target.url().strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise Rejected("the address is no URL of a webhook", hint="it begins with https://")
    if parts.scheme == "http" and not is_local(host):
        raise Rejected("the webhook is not on this machine and needs TLS", hint="its address begins with https://")
    return url, {name: read() for name, read in target.headers.items()}, _trust(target.ca_file)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Rejected(f"the authorities cannot be read: {_why(error)}", where=str(ca_file)) from None


async def _post(url: str, headers: Mapping[str, str], trust: ssl.SSLContext, notice: Notice) -> str:
    import httpx  # 0.15 s that a command without notices saves

    document = {**notice.data, "at": instant_text(notice.at), "subject": notice.subject, "text": notice.text}
    content = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    beyond = not is_local(urlsplit(url).hostname or "")  # a proxy has no business with what stays on this machine
    sent = {"Content-Type": "application/json", "User-Agent": "backstay", **headers}
    try:
        async with (
            asyncio.timeout(ANSWER_SECONDS),
            httpx.AsyncClient(verify=trust, timeout=ANSWER_SECONDS, trust_env=beyond) as client,
            client.stream("POST", url, content=content, headers=sent) as answer,
        ):
            status = answer.status_code
    except (TimeoutError, httpx.TimeoutException):
        raise Unreachable(f"the webhook did not answer within {ANSWER_SECONDS:g} s") from None
    except httpx.ConnectError as error:
        raise Unreachable(f"the webhook cannot be reached: {_why(error)}") from None
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError, TypeError):
        # These repeat what they were given.
        raise Rejected("the webhook's address or a header holds what cannot be sent") from None
    except httpx.HTTPError as error:
        raise Unreachable(f"the webhook broke the connection off ({type(error).__name__})") from None
    return _judged(status)


def _judged(status: int) -> str:
    said = f"HTTP {status}"
    if 200 <= status < 300:
        return said
    if status in (401, 403):
        raise LoginRefused(f"the webhook refused the login ({said})", hint="look at its address and headers")
    if status >= 500 or status in (408, 425, 429):
        raise Unreachable(f"the webhook cannot take it now ({said})")
    raise Rejected(f"the webhook did not take it ({said})", hint="look at its address")


def _why(error: BaseException) -> str:
    """The operating system's or OpenSSL's own words, which stand below the wrappings."""
    said = str(error) or type(error).__name__
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {below.verify_message}"
        if isinstance(below, OSError) and not isinstance(below, smtplib.SMTPException):
            said = below.strerror or str(below) or said
        below = below.__cause__ or below.__context__
    return said


# mail


def _send(target: Mail, notice: Notice) -> str:
    password = target.password() if target.password is not None else ""
    try:
        message = _message(target, notice)
        with _connect(target) as server:
            if target.user:
                server.login(target.user, password)
            refused = server.send_message(message)
    except smtplib.SMTPAuthenticationError as error:
        if 400 <= error.smtp_code < 500:
            raise Unreachable(f"the mail server takes no login now ({error.smtp_code})") from None
        raise LoginRefused(f"the mail server refused the login ({error.smtp_code})") from None
    except smtplib.SMTPRecipientsRefused as error:
        code, said = next(iter(error.recipients.values()))
        _refuse(code, said)
    except smtplib.SMTPResponseException as error:
        _refuse(error.smtp_code, error.smtp_error)
    except smtplib.SMTPNotSupportedError:
        raise Rejected(
            "the mail server offers no STARTTLS, or no login that we know", hint='security = "tls" is the other way'
        ) from None
    except smtplib.SMTPException as error:
        raise Unreachable(f"the mail server broke the connection off ({type(error).__name__})") from None
    except OSError as error:
        raise Unreachable(f"the mail server cannot be reached: {_why(error)}") from None
    except ValueError:  # after OSError, as OpenSSL's error is both; it may repeat what it was given
        raise Rejected("an address, the login or the text holds letters that cannot be sent") from None
    if refused:
        return f"taken, but not for {', '.join(sorted(refused))}"
    return "taken by the mail server"


def _connect(target: Mail) -> smtplib.SMTP:
    us = socket.gethostname() or "localhost"  # without a name server, which getfqdn would wait for
    if target.security == "tls":
        return smtplib.SMTP_SSL(target.host, target.port, us, timeout=ANSWER_SECONDS, context=_trust(target.ca_file))
    server = smtplib.SMTP(target.host, target.port, us, timeout=ANSWER_SECONDS)
    if target.security == "starttls":
        try:
            server.starttls(context=_trust(target.ca_file))
        except BaseException:
            server.close()
            raise
    return server


def _message(target: Mail, notice: Notice) -> EmailMessage:
    message = EmailMessage()
    message["From"] = target.sender
    message["To"] = ", ".join(target.to)
    message["Subject"] = _line(notice.subject)
    message["Date"] = format_datetime(notice.at)
    message["Message-ID"] = make_msgid(domain=target.sender.rpartition("@")[2].rstrip(">") or "localhost")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notice.text)
    return message


def _line(text: str) -> str:
    """Without what would begin another header: names of VMs come from elsewhere."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= LONGEST_SUBJECT else f"{line[: LONGEST_SUBJECT - 1]}…"


def _refuse(code: int, answer: bytes | str) -> NoReturn:
    said = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    sentence = f"the mail server did not take it ({code} {_line(said)[:MOST_SAID]})"
    raise Unreachable(sentence) if 400 <= code < 500 else Rejected(sentence)
