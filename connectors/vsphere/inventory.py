"""What a vCenter holds: every VM at once, one VM again, and what changes, by one PropertyCollector.

A change only tells which objects to read again. The facts always come from a fresh read, so that a redundant, late
or partial update cannot make them wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import vim, vmodl

from connectors.cleanup import finish
from connectors.errors import ConnectorError, Gone, Unreachable
from connectors.hypervisor import InventoryUpdate
from connectors.shown import ATTRIBUTES
from connectors.vsphere.backoff import Backoff
from connectors.vsphere.line import Line
from connectors.vsphere.session import Session
from connectors.vsphere.tags import TagReader
from connectors.vsphere.trial_marks import is_trial
from connectors.vsphere.vmfacts import MISSING, VM_PATHS, Places, vm_facts
from policies.facts import Address, Vm

log = logging.getLogger(__name__)

PC = vmodl.query.PropertyCollector

PLACE_PATHS: Mapping[Any, tuple[str, ...]] = {
    vim.Folder: ("name", "parent"),
    vim.Datacenter: ("name", "parent"),
    vim.ComputeResource: ("name", "parent"),
    vim.HostSystem: ("name", "parent"),
    vim.ResourcePool: ("name", "parent"),
    vim.VirtualApp: ("name", "parent", "parentFolder"),
    vim.Datastore: ("name",),
    vim.Network: ("name",),
}
"""What the facts of a VM refer to."""

WATCHED_VM_PATHS: tuple[str, ...] = tuple(
    p for p in VM_PATHS if p not in ("config.hardware.device", "config.guestFullName")
)
"""What makes a VM worth reading again; a change of its devices shows as a new config.changeVersion."""

READ_AT_ONCE = 500
"""VMs per bulk read: their devices are large, and one answer is held in memory as a whole."""


@dataclass(slots=True)
class _Seen:
    """What a collector has told: the VMs that are there, and what of it is still to be read again."""

    present: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    places: bool = True

    def note(self, updates: Any) -> None:
        for update in (u for s in updates.filterSet or () for u in s.objectSet or ()):
            moref = update.obj._moId
            if not isinstance(update.obj, vim.VirtualMachine):
                self.places = True
            elif str(update.kind) == "leave":
                self.present.discard(moref)
            else:
                self.present.add(moref)
                self.touched.add(moref)


class Inventory:
    """The inventory of one session. `tags_every` is the time in seconds between two readings of the tags."""

    def __init__(self, session: Session, tags: TagReader, *, tags_every: float = 300.0, poll: float = 20.0) -> None:
        self._session = session
        self._tags = tags
        self._tags_every = tags_every
        self._last_tags: dict[str, frozenset[str]] | None = None
        self._poll = max(1, int(min(poll, session.settings.answer_seconds / 2)))

    async def all(self) -> dict[str, Vm]:
        """Every VM by moRef, read now."""
        places, morefs = await self._survey()
        tags = await self._tags_of(morefs)
        return await self._facts(morefs, places, tags)

    async def one(self, moref: str) -> Vm:
        """One VM read now; raises Gone when it is not there."""
        found = await self._properties([moref])
        if moref not in found or _is_trial(found[moref]):
            raise Gone(f"VM {moref} is not in the inventory any more", where=self._session.where)
        places = Places(await self._places_of(found[moref]), await self._attribute_names())
        tags = await self._tags_of([moref])
        return self._fact(moref, found[moref], places, tags)

    async def read_all(self, paths: tuple[str, ...], kind: Any = vim.VirtualMachine) -> dict[str, dict[str, Any]]:
        """The properties at paths of every VM, or of another kind of object that VMs refer to, by moRef."""
        found = await self._session.call(self._retrieve_view, {kind: paths})
        return {c.obj._moId: _held(c) for c in found}

    async def watch(self) -> AsyncGenerator[InventoryUpdate, None]:
        """What changes, for ever. The first update, and the first one after each lost login, is complete.

        VMs that vanished while nobody watched are in `left` of the complete update.
        """
        known: dict[str, Vm] = {}
        backoff = Backoff()
        while True:
            try:
                async with self._filter() as (line, collector):
                    async for update in self._follow(line, collector, known):
                        backoff.reset()
                        yield update
            except (Unreachable, Gone) as error:
                log.warning("inventory watch interrupted", extra={"error": str(error)})
                await backoff.sleep()

    async def _follow(self, line: Line, collector: Any, known: dict[str, Vm]) -> AsyncIterator[InventoryUpdate]:
        seen = _Seen()
        version = ""
        complete = False
        places = Places({})
        tags: dict[str, frozenset[str]] = {}
        tags_due = time.monotonic()
        while True:
            wait = max(1, min(self._poll, int(tags_due - time.monotonic()))) if complete else self._poll
            options = PC.WaitOptions(maxWaitSeconds=wait, maxObjectUpdates=1000)
            updates = await line.call(collector.WaitForUpdatesEx, version, options)
            if updates is not None:
                version = updates.version
                seen.note(updates)
                if updates.truncated:
                    continue
            if time.monotonic() >= tags_due:
                self._tags.forget_names()
                before, tags = tags, await self._tags_of(sorted(seen.present))
                seen.touched.update(m for m in seen.present if tags.get(m) != before.get(m))
                tags_due = time.monotonic() + self._tags_every
            elif new := seen.touched - known.keys():
                tags.update(await self._tags_of(sorted(new)))
            if seen.places:
                places, _ = await self._survey()
            again = seen.present if seen.places else seen.touched & seen.present
            # Those of a VM that was read by itself meanwhile are newer than those of the last round.
            read = await self._facts(sorted(again), places, self._last_tags or {})
            changed = {m: vm for m, vm in read.items() if known.get(m) != vm}
            left = [m for m in known if m not in seen.present or (m in again and m not in read)]
            seen.touched, seen.places = set(), False
            for moref in left:
                del known[moref]
            known.update(changed)
            if changed or left or not complete:
                yield InventoryUpdate(
                    present=tuple(changed.values() if complete else known.values()),
                    left=tuple(Address(self._session.vcenter, m) for m in left),
                    complete=not complete,
                )
                complete = True

    @asynccontextmanager
    async def _filter(self) -> AsyncIterator[tuple[Line, Any]]:
        line = self._session.line("inventory")
        collector: Any = None
        view: Any = None
        try:
            content = self._session.content
            shared = await self._session.call(content.propertyCollector.CreatePropertyCollector)
            collector = line.managed(shared)
            kinds = {vim.VirtualMachine: WATCHED_VM_PATHS, **PLACE_PATHS}
            view = await line.call(_view, line.managed(content.viewManager), content.rootFolder, kinds)
            await line.call(collector.CreateFilter, _filter_spec(view, kinds), False)
            yield line, collector
        finally:
            await finish(self._end(line, collector, view), within=2 * self._session.settings.answer_seconds)

    async def _end(self, line: Line, collector: Any, view: Any) -> None:
        """End the wait under way, which else would hold its thread, the collector with its filter, and the view."""
        try:
            if collector is not None:
                shared = self._session.managed(PC, collector._moId)
                await self._session.call(shared.CancelWaitForUpdates)
                await self._session.call(shared.DestroyPropertyCollector)
            if view is not None:
                await self._session.call(self._session.managed(vim.view.ContainerView, view._moId).DestroyView)
        except ConnectorError as error:
            log.info("collector is gone already", extra={"error": str(error)})
        finally:
            await line.aclose()

    async def _survey(self) -> tuple[Places, list[str]]:
        """Everything that VMs refer to, and the moRefs of all VMs."""
        kinds = {vim.VirtualMachine: ("name",), **PLACE_PATHS}
        found = await self._session.call(self._retrieve_view, kinds)
        places = {c.obj._moId: _held(c) for c in found if not isinstance(c.obj, vim.VirtualMachine)}
        morefs = [c.obj._moId for c in found if isinstance(c.obj, vim.VirtualMachine)]
        return Places(places, await self._attribute_names()), sorted(morefs)

    def _retrieve_view(self, kinds: Mapping[Any, tuple[str, ...]]) -> list[Any]:
        view = _view(self._session.content.viewManager, self._session.content.rootFolder, kinds)
        try:
            return self._session.retrieve([_filter_spec(view, kinds)])
        finally:
            view.DestroyView()

    async def _facts(self, morefs: Iterable[str], places: Places, tags: Mapping[str, frozenset[str]]) -> dict[str, Vm]:
        wanted = list(morefs)
        facts: dict[str, Vm] = {}
        for start in range(0, len(wanted), READ_AT_ONCE):
            found = await self._properties(wanted[start : start + READ_AT_ONCE])
            if any(_has_unnamed(properties, places) for properties in found.values()):
                # A custom attribute that is younger than these names.
                places = Places(places.by_moref, await self._attribute_names())
            for moref, properties in found.items():
                if not _is_trial(properties):
                    facts[moref] = self._fact(moref, properties, places, tags)
        return facts

    def _fact(
        self, moref: str, properties: Mapping[str, Any], places: Places, tags: Mapping[str, frozenset[str]]
    ) -> Vm:
        session = self._session
        return vm_facts(
            session.vcenter, moref, properties, places, tags.get(moref, frozenset()), session.settings.engine_id
        )

    async def _tags_of(self, morefs: list[str]) -> dict[str, frozenset[str]]:
        """The tags of these VMs; those known before when the REST API, which is a service of its own, is away.

        Without any known before this raises: a VM that seems to have no tags would lose the policies that name them.
        """
        try:
            found = await self._tags.tags(morefs)
        except Unreachable as error:
            if self._last_tags is None:
                raise
            log.warning("tags are those of the last reading", extra={"error": str(error)})
            return {m: self._last_tags[m] for m in morefs if m in self._last_tags}
        kept = {m: names for m, names in (self._last_tags or {}).items() if m not in morefs}
        self._last_tags = kept | found
        return found

    async def _properties(self, morefs: list[str]) -> dict[str, dict[str, Any]]:
        """As Session.read, but a property that may not be read is told in the VM's own facts."""
        found: dict[str, dict[str, Any]] = {}
        wanted = [self._session.managed(vim.VirtualMachine, m) for m in morefs]
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=vm) for vm in wanted],
            propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=list(VM_PATHS))],
            reportMissingObjectsInResults=True,
        )
        if wanted:
            for content in await self._session.call(self._session.retrieve, [spec]):
                if content.propSet:
                    found[content.obj._moId] = _held(content)
        return found

    async def _places_of(self, properties: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What one VM refers to, and what that refers to, up to the root."""
        places: dict[str, dict[str, Any]] = {}
        wanted = _references(properties)
        while wanted := [w for w in wanted if w._moId not in places]:
            following: list[Any] = []
            for kind, paths in PLACE_PATHS.items():
                objects = [w for w in wanted if _place_kind(w) is kind]
                read = await self._session.read(objects, kind, paths) if objects else {}
                places.update(read)
                following.extend(r for found in read.values() for r in _references(found))
            for missing in wanted:
                places.setdefault(missing._moId, {})
            wanted = following
        return places

    async def _attribute_names(self) -> dict[int, str]:
        manager = self._session.content.customFieldsManager
        if manager is None:
            return {}
        fields = (await self._session.properties(manager, ["field"])).get("field") or ()
        return {f.key: str(f.name) for f in fields if f.name not in ATTRIBUTES}


def _is_trial(properties: Mapping[str, Any]) -> bool:
    """A rehearsal's trial VM is nobody's VM: no policy selects it, and it is not unprotected."""
    return is_trial(str(properties.get("name") or ""), str(properties.get("config.annotation") or ""))


def _has_unnamed(properties: Mapping[str, Any], places: Places) -> bool:
    return any(value.key not in places.attribute_names for value in properties.get("customValue") or ())


def _view(manager: Any, root: Any, kinds: Iterable[Any]) -> Any:
    """A view of these kinds alone: every object in it costs, whether its properties are asked for or not."""
    return manager.CreateContainerView(root, list(kinds), True)


def _filter_spec(view: Any, kinds: Mapping[Any, tuple[str, ...]]) -> Any:
    through = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        propSet=[PC.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in kinds.items()],
        reportMissingObjectsInResults=True,
    )


def _held(content: Any) -> dict[str, Any]:
    """The properties that were told; where some may not be read, the sentence about it under MISSING."""
    held = {p.name: p.val for p in content.propSet or ()}
    denied = [m.path for m in content.missingSet or () if isinstance(m.fault, vim.fault.NoPermission)]
    if denied:
        held[MISSING] = f"the account may not read {', '.join(sorted(denied))} of it"
    return held


def _references(properties: Mapping[str, Any]) -> list[Any]:
    """The managed objects among the properties that facts are made of places."""
    found: list[Any] = []
    for value in properties.values():
        found.extend(v for v in (value if isinstance(value, list) else [value]) if _place_kind(v) is not None)
    return found


def _place_kind(value: Any) -> Any:
    """The most special kind of place that the value is; VirtualApp is a ResourcePool too."""
    if isinstance(value, vim.VirtualApp):
        return vim.VirtualApp
    return next((kind for kind in PLACE_PATHS if isinstance(value, kind)), None)
