"""Backstay's entry in vCenter's list of extensions: it declares the types of our tasks and events, with their texts.

vCenter takes a task of a type that an extension has declared only (API: TaskManager.CreateTask); an event of any type
is taken, and shown by its own text where its type has none.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from connectors.errors import ConnectorError
from connectors.shown import Kind
from connectors.vsphere.session import Session

log = logging.getLogger(__name__)

KEY = "io.backstay"
TASK_TYPE = "io.backstay.run"
VERSION = "1"
"""Of what is declared here: a vCenter that has another gets this one."""

_TEXTS = {
    Kind.SUCCEEDED: ("info", "Backstay made a restore point"),
    Kind.FAILED: ("error", "A Backstay run failed"),
    Kind.UNPROTECTED: ("warning", "No Backstay policy protects this VM"),
}


def severity(kind: Kind) -> str:
    """How vCenter classes events of this kind."""
    return _TEXTS[kind][0]


async def register(session: Session) -> None:
    """Have the extension registered as it is described here. NotPermitted when it is not and must not be."""
    manager = session.content.extensionManager
    found = await session.call(manager.FindExtension, KEY)
    if found is None:
        try:
            await session.call(manager.RegisterExtension, _extension(), mutating=True)
            log.info("extension registered", extra={"vcenter": session.vcenter, "key": KEY})
        except ConnectorError:
            # Another engine may have been quicker, or the answer got lost.
            if await session.call(manager.FindExtension, KEY) is None:
                raise
    elif found.version != VERSION:
        await session.call(manager.UpdateExtension, _extension(), mutating=True)


async def registered(session: Session) -> bool:
    """Whether this vCenter has the extension, in whichever version."""
    return await session.call(session.content.extensionManager.FindExtension, KEY) is not None


async def unregister(session: Session) -> None:
    """Take the extension away, with the types that it declares."""
    await session.call(session.content.extensionManager.UnregisterExtension, KEY, mutating=True)


def _extension() -> Any:
    extension = vim.Extension
    texts = {
        "event": {
            key: value
            for kind, (category, words) in _TEXTS.items()
            for key, value in (
                (f"{kind}.category", category),
                (f"{kind}.description", words),
                (f"{kind}.fullFormat", "{message}"),
            )
        },
        "task": {f"{TASK_TYPE}.label": "Backstay backup", f"{TASK_TYPE}.summary": "Make a restore point"},
    }
    return extension(
        key=KEY,
        version=VERSION,
        company="Backstay",
        type="backup",
        description=vim.Description(label="Backstay", summary="Backs up VMs while they move"),
        lastHeartbeatTime=datetime.now(UTC),
        taskList=[extension.TaskTypeInfo(taskID=TASK_TYPE)],
        eventList=[extension.EventTypeInfo(eventID=kind.value) for kind in Kind],
        resourceList=[
            extension.ResourceInfo(
                locale="en", module=module, data=[vim.KeyValue(key=key, value=value) for key, value in told.items()]
            )
            for module, told in texts.items()
        ],
    )
