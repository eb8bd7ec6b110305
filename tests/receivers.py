"""Real servers on loopback that take notices: a webhook and a mail server, which can be told to refuse."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any


@dataclass
class Hook:
    """A webhook and what it got. `answers` are the next statuses; when they are used up it answers 204."""

    port: int = 0
    scheme: str = "http"
    got: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    silent: bool = False
    """Takes a request and says nothing."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hooks/s3cr3t-path"

    async def until(self, count: int, *, seconds: float = 10.0) -> None:
        """Wait for so many documents that were taken."""
        async with asyncio.timeout(seconds):
            while len(self.got) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if self.silent:
                await reader.read()
                return
            status = self.answers.pop(0) if self.answers else 204
            extra = "Location: https://elsewhere.invalid/\r\n" if 300 <= status < 400 else ""
            writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n{extra}\r\n".encode())
            await writer.drain()
            self.paths.append(head[0].split()[1])
            self.headers.append(headers)
            if status < 300:
                self.got.append(json.loads(body))
            self.arrived.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def webhook(*, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Hook]:
    hook = Hook(scheme="https" if tls else "http")
    async with await asyncio.start_server(hook.serve, "127.0.0.1", port, ssl=tls) as server:
        hook.port = server.sockets[0].getsockname()[1]
        yield hook


@dataclass
class MailServer:
    """Enough of SMTP for one sender; `refuse` maps a command to the answer that it gets instead."""

    port: int = 0
    login: tuple[str, str] | None = None
    refuse: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    mails: list[EmailMessage] = field(default_factory=list)
    envelopes: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, to, secure, known = "", list[str](), False, self.login is None

        async def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        try:
            await say("220 test")
            while line := (await reader.readline()).decode().rstrip("\r\n"):
                word = line.split(" ")[0].upper()
                if word in self.refuse:
                    await say(self.refuse[word])
                    continue
                match word:
                    case "EHLO":
                        offers = ["test", *(["STARTTLS"] if self.tls and not secure else []), "AUTH PLAIN", "8BITMIME"]
                        for offer in offers[:-1]:
                            await say(f"250-{offer}")
                        await say(f"250 {offers[-1]}")
                    case "STARTTLS":
                        assert self.tls is not None
                        await say("220 go")
                        await writer.start_tls(self.tls)
                        secure = True
                    case "AUTH":
                        given = base64.b64decode(line.split(" ")[2]).decode().split("\0")[1:]
                        known = tuple(given) == self.login
                        await say("235 welcome" if known else f"535 5.7.8 not {given[1]}")
                    case "MAIL":
                        sender = line.partition("<")[2].partition(">")[0]
                        await say("250 ok" if known else "530 5.7.0 log in first")
                    case "RCPT":
                        to.append(line.partition("<")[2].partition(">")[0])
                        await say("250 ok")
                    case "DATA":
                        await say("354 go")
                        body = await reader.readuntil(b"\r\n.\r\n")
                        message = message_from_bytes(body[:-3], policy=policy.default)
                        assert isinstance(message, EmailMessage)
                        self.mails.append(message)
                        self.envelopes.append((sender, tuple(to)))
                        self.encrypted.append(secure or writer.get_extra_info("ssl_object") is not None)
                        await say("250 taken")
                    case "QUIT":
                        await say("221 bye")
                        return
                    case _:
                        await say("250 ok")
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def mail_server(
    *, tls: ssl.SSLContext | None = None, at_once: bool = False, login: tuple[str, str] | None = None
) -> AsyncIterator[MailServer]:
    """With `at_once` it speaks TLS from the first byte, else it offers STARTTLS where it has a certificate."""
    server = MailServer(tls=None if at_once else tls, login=login)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls if at_once else None) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
