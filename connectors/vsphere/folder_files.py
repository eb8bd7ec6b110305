"""Small files of a VM on its datastore, read and written over vCenter's /folder with the session's TLS and cookie."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pyVmomi import vim

from connectors.errors import ConnectorError, Gone, NotPermitted, Rejected, Unreachable
from connectors.vsphere.session import Session

T = TypeVar("T")

MAX_BYTES = 16 << 20
"""NVRAM has 8 KiB to about 1 MiB; what is much larger is something else."""

_READ = (httpx.codes.OK,)
_WRITTEN = (httpx.codes.OK, httpx.codes.CREATED, httpx.codes.NO_CONTENT)

_PATH = re.compile(r"\[([^\]]+)\] (.+)")


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file as vSphere names it, "[datastore] folder/name", and the inventory path of its datacenter."""

    name: str
    datacenter: str

    @property
    def url(self) -> str:
        """Path and query of the request; Rejected for a name that is not one of a file."""
        match = _PATH.fullmatch(self.name)
        if match is None or ".." in match[2].split("/"):
            raise Rejected(f"{self.name!r} names no file on a datastore")
        return f"/folder/{quote(match[2])}?dcPath={quote(self.datacenter, safe='')}&dsName={quote(match[1], safe='')}"


async def read_file(session: Session, file: FolderFile) -> bytes:
    """All of a small file. Raises Gone when it is not there."""

    async def ask(client: httpx.AsyncClient) -> bytes:
        async with client.stream("GET", file.url) as answer:
            _check(answer, file, _READ)
            held = bytearray()
            async for piece in answer.aiter_bytes():
                held += piece
                if len(held) > MAX_BYTES:
                    raise Rejected(f"it has more than {MAX_BYTES} bytes", where=file.name)
            told = answer.headers.get("content-length")
            if told is not None and int(told) != len(held):
                raise Unreachable(f"{len(held)} of {told} bytes came", where=file.name)
            return bytes(held)

    return await _answered(session, file, ask)


async def write_file(session: Session, file: FolderFile, data: bytes) -> None:
    """Put a small file in the place of the one that is there, if one is."""

    async def ask(client: httpx.AsyncClient) -> None:
        _check(await client.put(file.url, content=data), file, _WRITTEN)

    await _answered(session, file, ask)


async def datacenter_path(session: Session, managed: Any) -> str:
    """The inventory path of the datacenter that an object is in, without the root folder; Gone when there is none."""
    names: list[str] = []
    at = managed
    while at is not None:
        told = await session.properties(at, ["parent", "name"])
        if isinstance(at, vim.Datacenter) or names:
            names.append(str(told.get("name", "")))
        at = told.get("parent")
    if not names:
        raise Gone("it is in no datacenter", where=managed._moId)
    # As vCenter tells names: a slash in one is escaped there, and stays so here.
    return "/".join(reversed(names[:-1])) or names[0]


async def _answered(session: Session, file: FolderFile, ask: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    settings = session.settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    for again in (True, False):
        try:
            async with httpx.AsyncClient(
                base_url=f"https://{host}:{settings.port}",
                verify=session.tls,
                timeout=settings.answer_seconds,
                headers={"Cookie": session.cookie},
                trust_env=False,
            ) as client:
                return await ask(client)
        except httpx.HTTPError as error:
            raise Unreachable(f"vCenter does not serve it: {type(error).__name__}", where=file.name) from error
        except _LoggedOut as error:
            if not again:
                raise NotPermitted("vCenter does not accept the login for files", where=file.name) from error
            await session.call(session.now)  # logs in again where the login was lost
    raise AssertionError("unreachable")


class _LoggedOut(Exception):
    """The cookie is not valid any more."""


def _check(answer: httpx.Response, file: FolderFile, well: tuple[int, ...]) -> None:
    status = answer.status_code
    if status == httpx.codes.UNAUTHORIZED:
        raise _LoggedOut
    if status == httpx.codes.FORBIDDEN:
        raise NotPermitted(
            "the account may not read or write it", where=file.name, hint="grant Datastore.Browse and .FileManagement"
        )
    if status == httpx.codes.NOT_FOUND:
        raise Gone("it is not there", where=file.name)
    if status not in well:  # a redirect among them: what it says is not the file, and nothing was written
        raise ConnectorError(f"vCenter answered {status} for it", where=file.name)
