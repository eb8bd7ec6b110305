"""Small files of a VM on its datastore, read and written over vCenter's /folder with the session's TLS and cookie."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httpx
from pyVmomi import vim

from connectors.errors import ConnectorError, Gone, NotPermitted, Rejected, Unreachable
from connectors.vsphere.session import Session

T = TypeVar("T")

MAX_BYTES = 16 << 20
"""NVRAM has 8 KiB to about 1 MiB; what is much larger is something else."""

_READ = (httpx.codes.OK,)
_READ_IN_PART = (httpx.codes.PARTIAL_CONTENT,)
_WRITTEN = (httpx.codes.OK, httpx.codes.CREATED, httpx.codes.NO_CONTENT)

_PATH = re.compile(r"\[([^\]]+)\] (.+)")
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_NOT_IN_RANGE = re.compile(r"bytes \*/(\d{1,18})")

_datacenters: WeakKeyDictionary[Session, dict[str, str]] = WeakKeyDictionary()
"""The inventory paths of datacenters by the hosts in them."""


class ServerFailed(ConnectorError):
    """The server could not serve a file, as where the host that it asks finds it locked."""


class LoggedOut(Exception):
    """The cookie is not valid any more."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file, and how many the whole of it has."""

    data: bytes
    size: int


async def read_part(session: Session, file: FolderFile, start: int, length: int) -> Part:
    """So many bytes from start on, fewer where the file ends. Gone when it is not there, ServerFailed for a 5xx."""
    return await _answered(session, file, lambda client: ask_part(client, file, start, length))


async def ask_part(
    client: httpx.AsyncClient,
    file: FolderFile,
    start: int,
    length: int,
    *,
    server: str = "vCenter",
    extensions: dict[str, Any] | None = None,
) -> Part:
    """One request for a part, to whomever the client reaches. Raises LoggedOut for a 401, and errors of httpx too."""
    headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    async with client.stream("GET", file.url, headers=headers, extensions=extensions) as answer:
        told = answer.headers.get("content-range", "")
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            ends = _NOT_IN_RANGE.fullmatch(told)
            return Part(b"", int(ends[1]) if ends is not None else start)
        if answer.status_code == httpx.codes.OK:
            if answer.headers.get("content-length") == "0":
                return Part(b"", 0)
            raise Rejected("the server does not answer for parts of a file", where=file.name)
        _check(answer, file, _READ_IN_PART, server)
        match = _RANGE.fullmatch(told)
        first, last, size = (int(number) for number in match.groups()) if match is not None else (-1, -1, -1)
        if first != start or not first <= last < min(start + length, size):
            raise Rejected(f"the server answered for another part of the file ({told!r})", where=file.name)
        held = bytearray()
        async for piece in answer.aiter_bytes():
            held += piece
            if len(held) > last + 1 - first:
                break
        if len(held) != last + 1 - first:
            raise Unreachable(f"{len(held)} of {last + 1 - first} bytes came", where=file.name)
        return Part(bytes(held), size)


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


async def datacenter_of_host(session: Session, host: Any) -> str:
    """As datacenter_path, remembered for as long as the session lasts."""
    known = _datacenters.setdefault(session, {})
    if host._moId not in known:
        known[host._moId] = await datacenter_path(session, host)
    return known[host._moId]


def forget_datacenter(session: Session, host: Any) -> None:
    """A file was not where it should be: its datacenter may have another name by now."""
    _datacenters.get(session, {}).pop(host._moId, None)


def below(folder: str, name: str) -> str:
    """A file below a folder, each as vSphere names it; Rejected where the folder is not told."""
    if not folder:
        raise Rejected("vCenter does not tell in which folder of the VM it lies", where=name)
    return folder + name if folder.endswith(("/", " ")) else f"{folder}/{name}"


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
        except LoggedOut as error:
            if not again:
                raise NotPermitted("vCenter does not accept the login for files", where=file.name) from error
            await session.call(session.now)  # logs in again where the login was lost
    raise AssertionError("unreachable")


def _check(answer: httpx.Response, file: FolderFile, well: tuple[int, ...], server: str = "vCenter") -> None:
    status = answer.status_code
    if status == httpx.codes.UNAUTHORIZED:
        raise LoggedOut
    if status == httpx.codes.FORBIDDEN:
        raise NotPermitted(
            "the account may not read or write it", where=file.name, hint="grant Datastore.Browse and .FileManagement"
        )
    if status == httpx.codes.NOT_FOUND:
        raise Gone("it is not there", where=file.name)
    if answer.is_server_error:
        raise ServerFailed(f"{server} answered {status} for it", where=file.name)
    if status not in well:  # a redirect among them: what it says is not the file, and nothing was written
        raise ConnectorError(f"{server} answered {status} for it", where=file.name)
