"""Trial VMs of rehearsals: made, switched on for a sign of life, and removed on every way out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pyVmomi import vim

from connectors.cleanup import acquired, finish
from connectors.errors import ConnectorError, Gone, NotOurs
from connectors.hypervisor import CreatedVm, Heartbeat, Leftover, RestoreTarget
from connectors.vsphere.optionmarks import WHOSE
from connectors.vsphere.provision import create_vm
from connectors.vsphere.session import Session
from connectors.vsphere.tags import TagReader
from connectors.vsphere.trial_marks import is_trial, kept_by_somebody, read_mark
from policies.facts import Address

log = logging.getLogger(__name__)

TRIAL_VM = "trial VM"

TASK_SECONDS = 600.0

HOLD_SECONDS = 4 * 3600.0
"""How long the making of a trial VM with all its disks, or its removal, may take before nobody waits for it."""

LOOK_SECONDS = 1.0
"""Between two looks at a trial VM that was switched on."""

_LIFE = (
    "runtime.powerState",
    "runtime.question",
    "guestHeartbeatStatus",
    "guest.toolsRunningStatus",
    "guest.toolsVersionStatus2",
)


@asynccontextmanager
async def hold_trial(
    session: Session, tags: TagReader, configuration: bytes, target: RestoreTarget
) -> AsyncIterator[CreatedVm]:
    """A trial VM with empty disks; switched off and removed on every way out, a cancellation while it is made included.

    NotOurs at the end when somebody has made it his meanwhile.
    """

    async def make() -> CreatedVm:
        return await create_vm(session, tags, configuration, target)

    async def release(made: CreatedVm) -> None:
        await remove_trial(session, made.address.moref)

    async with acquired(make, release, within=HOLD_SECONDS) as made:
        yield made


async def remove_trial(session: Session, moref: str) -> None:
    """Switch a trial VM of this engine off and delete it with its disks. Idempotent; NotOurs for any other VM."""
    vm = session.managed(vim.VirtualMachine, moref)
    try:
        told = await session.properties(vm, WHOSE)
        if why := kept_by_somebody(told, session.settings.engine_id):
            raise NotOurs(f"this trial VM stays: {why}", where=str(told.get("name") or moref))
        await _switch_off(session, vm, told)
        await session.task(vm.Destroy_Task, timeout=TASK_SECONDS, entity=vm, operation="Destroy")
    except Gone:
        return
    log.info("trial VM removed", extra={"vm": str(told.get("name") or ""), "moref": moref})


async def trial_leftovers(
    session: Session, shown: Mapping[str, Mapping[str, Any]], is_active: Callable[[str], bool]
) -> Sequence[Leftover]:
    """This engine's trial VMs whose run is_active denies. What somebody has made his is none.

    `shown` has name and notes of every VM by moRef.
    """
    found: list[Leftover] = []
    for moref, seen in shown.items():
        name = str(seen.get("name") or "")
        if not is_trial(name, str(seen.get("config.annotation") or "")):
            continue
        try:
            told = await session.properties(session.managed(vim.VirtualMachine, moref), WHOSE)
        except Gone:
            continue
        mark = read_mark(told.get("config.extraConfig") or ())
        if mark is None or is_active(mark.run):
            continue
        if why := kept_by_somebody(told, session.settings.engine_id):
            log.info("trial VM left alone", extra={"vm": name, "why": why})
            continue
        found.append(Leftover(TRIAL_VM, Address(session.vcenter, moref), name, name, mark.run))
    return found


async def heartbeat(session: Session, moref: str, seconds: float) -> Heartbeat:
    """Switch a VM on, wait for its VMware Tools to show that the guest lives, and switch it off again.

    It may take so many seconds from when it is on. A question that vCenter asks meanwhile is answered: whether it was
    moved or copied with "copied", any other with the answer that vCenter proposes. Until then it would not come on.
    """
    vm = session.managed(vim.VirtualMachine, moref)
    began = time.monotonic()
    asked: list[str] = []

    async def switch_on() -> None:
        await session.task(vm.PowerOnVM_Task, timeout=TASK_SECONDS, entity=vm, operation="PowerOn")

    async def watch() -> str:
        since: float | None = None
        while True:
            started = starting.done()
            told = await session.properties(vm, _LIFE)
            if (question := told.get("runtime.question")) is not None:
                asked.append(await _answer(session, vm, question))
            why = _lifeless(told)
            if not why:
                return ""
            if told.get("runtime.powerState") == vim.VirtualMachine.PowerState.poweredOn:
                since = time.monotonic() if since is None else since
                if time.monotonic() - since >= seconds:
                    return why
            elif started:
                return "it switched itself off"
            await asyncio.sleep(min(LOOK_SECONDS, seconds))

    starting = asyncio.ensure_future(switch_on())  # noqa: TID251 - waited for below, on every way out
    try:
        watching = asyncio.ensure_future(watch())  # noqa: TID251 - the same
        try:
            await asyncio.wait({starting, watching}, return_when=asyncio.FIRST_EXCEPTION)
            if starting.done():
                starting.result()
            why = await watching
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        took = time.monotonic() - began
    finally:
        # What was started is waited for: a VM that comes up later would be there for good.
        await finish(_ended(session, vm, starting), within=2 * TASK_SECONDS)
    return Heartbeat(took, "; ".join(filter(None, (why, *asked))) if why else "")


async def _ended(session: Session, vm: Any, starting: asyncio.Future[None]) -> None:
    """Wait until the VM is on or did not come on, then have it off."""
    await asyncio.gather(starting, return_exceptions=True)
    try:
        await _switch_off(session, vm, await session.properties(vm, ("runtime.powerState",)))
    except Gone:
        return


async def _switch_off(session: Session, vm: Any, told: Mapping[str, Any]) -> None:
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOff:
        await session.task(vm.PowerOffVM_Task, timeout=TASK_SECONDS, entity=vm, operation="PowerOff")


def _lifeless(told: Mapping[str, Any]) -> str:
    """Why these properties do not show a guest that lives; "" when they do."""
    if told.get("runtime.powerState") != vim.VirtualMachine.PowerState.poweredOn:
        return "it was not switched on"
    if str(told.get("guest.toolsRunningStatus")) != "guestToolsRunning":
        installed = str(told.get("guest.toolsVersionStatus2") or "") not in ("", "guestToolsNotInstalled")
        return f"its VMware Tools did not start{'' if installed else '; vCenter does not see that it has any'}"
    beat = str(told.get("guestHeartbeatStatus") or "gray")
    return "" if beat in ("green", "yellow") else f"its VMware Tools run, but their heartbeat is {beat}"


async def _answer(session: Session, vm: Any, question: Any) -> str:
    """Answer what vCenter asks of the VM; what was asked and answered, in a sentence."""
    chosen = chosen_answer(question)
    said = f"vCenter asked: {' '.join(str(question.text or '').split())}"
    if chosen is None:
        return f"{said}; it offers no answer"
    try:
        await session.call(vm.AnswerVM, question.id, str(chosen.key), mutating=True)
    except ConnectorError as error:
        return f"{said}; the answer failed: {error}"
    return f"{said}; answered: {_label(chosen)}"


def chosen_answer(question: Any) -> Any | None:
    """What a trial VM's question is answered with: that it was copied, else what vCenter proposes. Pure."""
    choices = list(question.choice.choiceInfo or ())
    copied = [one for one in choices if "copied" in _label(one).replace("_", "").lower()]
    proposed = question.choice.defaultIndex or 0
    return next(iter([*copied, *choices[proposed : proposed + 1]]), None)


def _label(choice: Any) -> str:
    """The underscore in "I _copied it" marks a key of the keyboard."""
    return str(choice.label or choice.summary or choice.key)
