"""What people see of our work in vCenter: custom attributes of VMs, events, and runs as tasks.

Nothing here is needed for a backup. What the account may not do is told once, by `prepare`, and left out.
A task carries the engine and the run in its activation id, so that the next start finds what a dead engine left.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from connectors.errors import ConnectorError, NotPermitted
from connectors.shown import ATTRIBUTES, Note, Put, Wanted
from connectors.vsphere import extension
from connectors.vsphere.inventory import Inventory
from connectors.vsphere.naming import snapshot_name
from connectors.vsphere.session import Session
from policies.facts import Address

log = logging.getLogger(__name__)

MOST_TEXT = 1_000
"""Letters of an event or a task: errors may hold whole answers, and nobody reads more in a list."""

_OPEN = (vim.TaskInfo.State.queued, vim.TaskInfo.State.running)
_TASK_FACTS = ["info.activationId", "info.descriptionId", "info.state"]


class Board:
    """What is shown in one vCenter. Every method may raise a ConnectorError. For one event loop."""

    def __init__(self, session: Session, inventory: Inventory) -> None:
        self._session = session
        self._inventory = inventory
        self._keys: dict[str, int] = {}

    async def prepare(self, wanted: Wanted) -> dict[str, str]:
        """Make what showing needs. By "attributes", "events" and "tasks", why it cannot be shown, where it cannot."""
        lacking: dict[str, str] = {}
        if wanted.attributes:
            try:
                await self._define()
            except NotPermitted as error:
                lacking["attributes"] = str(error)
        if wanted.events or wanted.tasks:
            try:
                await extension.register(self._session)
            except NotPermitted as error:
                # Events are taken without it, too: then their types have no texts of their own.
                if wanted.tasks:
                    lacking["tasks"] = str(error)
        return lacking

    async def labels(self) -> dict[str, dict[str, str]]:
        """What our attributes say now, by VM and name; VMs without any are left out."""
        names = {key: name for name, key in self._keys.items()}
        found: dict[str, dict[str, str]] = {}
        for moref, told in (await self._inventory.read_all(("customValue",))).items():
            values = {names[v.key]: str(v.value) for v in told.get("customValue") or () if v.key in names}
            if values:
                found[moref] = values
        return found

    async def label(self, vm: Address, name: str, value: str) -> None:
        """Set one of our attributes of a VM."""
        manager, managed = self._session.content.customFieldsManager, self._vm(vm)
        await self._session.call(manager.SetField, managed, self._keys[name], value, mutating=True)

    async def post(self, note: Note) -> None:
        """Post an event at a VM."""
        vm = self._vm(note.vm)
        event = vim.event.EventEx(
            key=0,
            chainId=0,
            createdTime=datetime.now(UTC),
            userName="",
            vm=vim.event.VmEventArgument(name=note.vm_name, vm=vm),
            eventTypeId=note.kind.value,
            severity=extension.severity(note.kind),
            message=note.text[:MOST_TEXT],
            objectId=note.vm.moref,
            objectType=vim.VirtualMachine,
            objectName=note.vm_name,
        )
        await self._session.call(self._session.content.eventManager.PostEvent, event, mutating=True)

    async def begin(self, vm: Address, run: str, text: str) -> str:
        """Show that a run begins; the task."""
        mark = snapshot_name(self._session.settings.engine_id, run)
        manager = self._session.content.taskManager

        def create() -> Any:
            return manager.CreateTask(self._vm(vm), extension.TASK_TYPE, "Backstay", False, None, mark)

        info = await self._session.call(create, mutating=True)
        task = info.task
        await self._session.call(task.SetTaskState, vim.TaskInfo.State.running, None, None, mutating=True)
        described = vmodl.LocalizableMessage(key=extension.TASK_TYPE, message=text[:MOST_TEXT])
        await self._session.call(task.SetTaskDescription, described, mutating=True)
        return str(task._moId)

    async def progress(self, task: str, percent: int) -> None:
        """Show how far the run is."""
        await self._session.call(self._task(task).UpdateProgress, percent, mutating=True)

    async def end(self, task: str, error: str = "") -> None:
        """Show that the run is over, with an error or without."""
        error = error[:MOST_TEXT]
        state = vim.TaskInfo.State.error if error else vim.TaskInfo.State.success
        fault = vmodl.fault.SystemError(msg=error, reason=error) if error else None
        await self._session.call(self._task(task).SetTaskState, state, None, fault, mutating=True)

    async def unfinished(self, is_dead: Callable[[str], bool]) -> list[str]:
        """Tasks of this engine that are shown as running though their run is dead."""
        prefix = re.escape(snapshot_name(self._session.settings.engine_id, "x").removesuffix("x"))
        found = []
        for moref, mark in (await self._open()).items():
            run = re.fullmatch(f"{prefix}(.+)", mark)
            if run and is_dead(run[1]):
                found.append(moref)
        return found

    async def there(self) -> Put:
        """What there is of ours in this vCenter, of whichever engine."""
        fields = await self._fields()
        return Put(
            attributes=tuple(name for name in ATTRIBUTES if name in fields),
            tasks=len(await self._open()),
            extension=await extension.registered(self._session),
        )

    async def clean(self) -> None:
        """Take everything of ours away: attributes with their values, tasks that still run, the extension."""
        for task in await self._open():
            await self.end(task, "Backstay was taken out of this vCenter")
        for name, key in (await self._fields()).items():
            if name in ATTRIBUTES:
                manager = self._session.content.customFieldsManager
                await self._session.call(manager.RemoveCustomFieldDef, key, mutating=True)
        self._keys = {}
        if await extension.registered(self._session):
            await extension.unregister(self._session)

    def _vm(self, vm: Address) -> Any:
        return self._session.managed(vim.VirtualMachine, vm.moref)

    def _task(self, moref: str) -> Any:
        return self._session.managed(vim.Task, moref)

    async def _fields(self) -> Mapping[str, int]:
        """The custom attributes that VMs can have, by name."""
        manager = self._session.content.customFieldsManager
        fields = (await self._session.properties(manager, ["field"])).get("field") or ()
        return {str(f.name): int(f.key) for f in fields if f.managedObjectType in (None, vim.VirtualMachine)}

    async def _define(self) -> None:
        for name in ATTRIBUTES:
            if name not in await self._fields():
                manager = self._session.content.customFieldsManager
                try:
                    await self._session.call(manager.AddCustomFieldDef, name, vim.VirtualMachine, mutating=True)
                except NotPermitted:
                    raise
                except ConnectorError as error:
                    # Another engine may have been quicker, or the answer got lost.
                    if name not in await self._fields():
                        raise
                    log.info("attribute is there already", extra={"attribute": name, "error": str(error)})
        self._keys = {name: key for name, key in (await self._fields()).items() if name in ATTRIBUTES}

    async def _open(self) -> dict[str, str]:
        """The tasks of ours that run, with their marks. vCenter lists those that run, and those of the last minutes."""
        manager = self._session.content.taskManager
        recent = (await self._session.properties(manager, ["recentTask"])).get("recentTask") or []
        found = await self._session.read(recent, vim.Task, _TASK_FACTS) if recent else {}
        return {
            moref: str(told.get("info.activationId") or "")
            for moref, told in found.items()
            if told.get("info.descriptionId") == extension.TASK_TYPE and told.get("info.state") in _OPEN
        }
