"""Tags of VMs by vCenter's REST API. SOAP does not know them and their changes are not announced: they are polled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from connectors.errors import ConnectorError, LoginRefused, NotPermitted, Unreachable
from connectors.vsphere.session import SessionSettings

OBJECTS_PER_CALL = 1000


@dataclass(frozen=True, slots=True)
class _Style:
    """Where a generation of the REST API keeps what is needed here."""

    session: str
    tagging: str
    action: str
    item: str


_STYLES = (
    _Style("/api/session", "/api/cis/tagging", "action", ""),
    _Style("/rest/com/vmware/cis/session", "/rest/com/vmware/cis/tagging", "~action", "id:"),
)
"""Newest first: vSphere 7.0 and newer, then 6.5 to 8."""


class TagReader:
    """Reads tags as "category=name". One REST login, renewed when it is lost; close it."""

    def __init__(self, settings: SessionSettings, tls: Any) -> None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._settings = settings
        self._where = f"vCenter {settings.host} (tags)"
        self._http = httpx.AsyncClient(
            base_url=f"https://{host}:{settings.port}", verify=tls, timeout=settings.answer_seconds, trust_env=False
        )
        self._style: _Style | None = None
        self._names: dict[str, str] = {}
        self._absent = False

    async def tags(self, morefs: Sequence[str]) -> dict[str, frozenset[str]]:
        """The tags of each VM; VMs without one are left out. Empty on a vCenter that has no tagging service."""
        if self._absent:
            return {}
        found: dict[str, frozenset[str]] = {}
        for start in range(0, len(morefs), OBJECTS_PER_CALL):
            objects = [{"id": m, "type": "VirtualMachine"} for m in morefs[start : start + OBJECTS_PER_CALL]]
            answer = await self._post("tag-association", "list-attached-tags-on-objects", {"object_ids": objects})
            for entry in answer or ():
                names = frozenset([name for i in entry.get("tag_ids") or () if (name := await self._tag_name(i))])
                if names:
                    found[str(entry["object_id"]["id"])] = names
        return found

    async def attach(self, moref: str, names: Sequence[str]) -> list[str]:
        """Attach tags, written "category=name", to a VM; those that this vCenter does not have."""
        if not names:
            return []
        ids: dict[str, str] = {}
        for tag_id in await self._list("tag") or ():
            if name := await self._tag_name(str(tag_id)):
                ids[name] = str(tag_id)
        body = {"object_id": {"id": moref, "type": "VirtualMachine"}}
        for name in names:
            if name in ids:
                await self._attach(ids[name], body)
        return [name for name in names if name not in ids]

    def forget_names(self) -> None:
        """Look names up again at the next reading: tags and categories can be renamed."""
        self._names.clear()

    async def aclose(self) -> None:
        """Log out and close the connections; a vCenter that does not answer is no error."""
        try:
            if self._style is not None and not self._absent:
                await self._http.delete(self._style.session)
        except httpx.HTTPError:
            return
        finally:
            await self._http.aclose()

    async def _tag_name(self, tag_id: str) -> str:
        """The tag's full name; empty for one that was deleted meanwhile."""
        if tag_id not in self._names:
            tag = await self._item("tag", tag_id)
            category = await self._item("category", str(tag["category_id"])) if tag else None
            self._names[tag_id] = f"{category['name']}={tag['name']}" if category else ""
        return self._names[tag_id]

    async def _item(self, kind: str, item_id: str) -> Any:
        async def ask(style: _Style) -> httpx.Response:
            return await self._send("GET", f"{style.tagging}/{kind}/{style.item}{item_id}")

        return await self._request(ask, f"{kind} {item_id}")

    async def _list(self, kind: str) -> Any:
        async def ask(style: _Style) -> httpx.Response:
            return await self._send("GET", f"{style.tagging}/{kind}")

        return await self._request(ask, f"{kind}s")

    async def _attach(self, tag_id: str, body: Any) -> None:
        async def ask(style: _Style) -> httpx.Response:
            path = f"{style.tagging}/tag-association/{style.item}{tag_id}"
            return await self._send("POST", path, params={style.action: "attach"}, json=body)

        await self._request(ask, f"tag {tag_id}")

    async def _post(self, path: str, action: str, body: Any) -> Any:
        async def ask(style: _Style) -> httpx.Response:
            return await self._send("POST", f"{style.tagging}/{path}", params={style.action: action}, json=body)

        return await self._request(ask, path)

    async def _request(self, ask: Callable[[_Style], Awaitable[httpx.Response]], what: str) -> Any:
        """The answer, after one more login if the first one is not valid any more; None for what is not there."""
        style = self._style or await self._login()
        if style is None:
            return None
        answer = await ask(style)
        if answer.status_code == 401:
            style = await self._login()
            if style is None:
                return None
            answer = await ask(style)
        return None if answer.status_code == 404 else self._payload(answer, what)

    async def _login(self) -> _Style | None:
        for style in _STYLES:
            answer = await self._send(
                "POST", style.session, auth=httpx.BasicAuth(self._settings.user, self._settings.password())
            )
            if answer.status_code == 404:
                continue
            token = self._payload(answer, "session")
            self._http.headers["vmware-api-session-id"] = str(token)
            self._style = style
            return style
        self._absent = True
        return None

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the REST API does not answer: {type(error).__name__}", where=self._where, hint="tags are read by it"
            ) from error

    def _payload(self, answer: httpx.Response, what: str) -> Any:
        if answer.status_code == 401:
            raise LoginRefused("the REST API did not accept the login", where=self._where, hint="check the credentials")
        if answer.status_code == 403:
            raise NotPermitted(f"the account may not read {what}", where=self._where, hint="Read-only on the root")
        if answer.status_code >= 400:
            raise ConnectorError(f"{what}: the REST API answered {answer.status_code}", where=self._where)
        if answer.status_code == 204 or not answer.content:
            return None
        try:
            told = answer.json()
        except ValueError as error:
            raise ConnectorError(f"{what}: the REST API did not answer in JSON", where=self._where) from error
        return told["value"] if isinstance(told, dict) and set(told) == {"value"} else told
