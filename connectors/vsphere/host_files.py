"""Files that only one host can read, by that host's own /folder and a ticket of vCenter for each request.

What a running VM writes is open on its own host alone where hosts share the storage (VIC issue 3397). The ticket holds
for one method and one address, once; it is a secret like a cookie. The host is verified before it is sent.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import Any

import httpx
from pyVmomi import vim

from connectors.errors import Rejected, Unreachable
from connectors.vsphere.folder_files import FolderFile, LoggedOut, Part, ask_part
from connectors.vsphere.session import Session
from connectors.vsphere.thumbprint import check_host, host_context

PORT = 443

DATACENTER = "ha-datacenter"
"""What each host calls the datacenter that it takes itself to be in."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}|[0-9A-Fa-f:.]{2,45}")
_DIGESTS = (40, 64)
"""How many hexadecimal digits a thumbprint has, of SHA-1 or of SHA-256."""


async def read_part_at(session: Session, host: Any, name: str, start: int, length: int) -> Part:
    """As `read_part`, of the file that vSphere calls by this name, asked of this HostSystem itself.

    The host is asked by the name that it has in vCenter: the one in the ticket is its own opinion, such as "localhost".
    """
    file = FolderFile(name, DATACENTER)
    told = await session.properties(host, ["name", "summary.config.sslThumbprint"])
    address = str(told.get("name") or "")
    base = _base(address, name)
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=base + file.url)
    ticket = await session.call(session.content.sessionManager.AcquireGenericServiceTicket, spec)
    thumbprint = _thumbprint(ticket, str(told.get("summary.config.sslThumbprint") or ""))
    server = f"host {address}"
    try:
        async with httpx.AsyncClient(
            base_url=base,
            verify=host_context(session.tls, thumbprint, address, name),
            timeout=session.settings.answer_seconds,
            headers={"Cookie": f"vmware_cgi_ticket={ticket.id}"},
            trust_env=False,
        ) as client:
            watch = {"trace": _Watch(thumbprint, address, name)}
            return await ask_part(client, file, start, length, server=server, extensions=watch)
    except LoggedOut as error:
        raise Rejected(f"{server} does not accept the ticket for it", where=name) from error
    except httpx.ConnectError as error:
        why = f"{server} does not answer: {error or type(error).__name__}"
        raise Unreachable(why, where=name, hint="the engine needs TCP 443 to the ESXi hosts") from error
    except httpx.HTTPError as error:  # its text may hold what was sent
        raise Unreachable(f"{server} does not serve it: {type(error).__name__}", where=name) from error


def _base(address: str, where: str) -> str:
    """What addresses at the host begin with; Rejected where its name is no address, as one with a port."""
    base = f"https://[{address}]" if ":" in address else f"https://{address}"
    base += f":{PORT}" if PORT != 443 else ""
    with suppress(httpx.InvalidURL):
        if _NAME.fullmatch(address) is not None and httpx.URL(base).host:
            return base
    raise Rejected(f"the host's name {address!r} is no address", where=where)


class _Watch:
    """Sees each step of a request before httpx takes the next, and ends one whose host is not who it should be."""

    def __init__(self, thumbprint: str, host: str, where: str) -> None:
        self._told = (thumbprint, host, where)
        self._verified = False

    async def __call__(self, step: str, info: dict[str, Any]) -> None:
        if step == "connection.start_tls.complete":
            stream = info["return_value"]
            shown: ssl.SSLObject = stream.get_extra_info("ssl_object")
            try:
                check_host(shown.getpeercert(binary_form=True), *self._told)
            except BaseException:
                await stream.aclose()
                raise
            self._verified = True
        elif not step.startswith("connection.") and not self._verified:
            raise Rejected("the host was not verified", where=self._told[2])


def _thumbprint(ticket: Any, of_host: str) -> str:
    """The first that can be compared: the ticket's, the newer list of it, or the one that vCenter tells of the host."""
    listed = [str(each.thumbprint or "") for each in getattr(ticket, "certThumbprintList", None) or ()]
    known = [str(ticket.sslThumbprint or ""), *listed, of_host]
    return next((each for each in known if len(each.replace(":", "")) in _DIGESTS), "")
