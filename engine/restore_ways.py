"""Which way a new VM is made from a restore point: its disks filled, or all of it imported; the first that works."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from connectors.errors import NotPermitted, NoTransport, TransportFailed
from connectors.hypervisor import Fallback, RestoreTarget
from engine.jobs import RunId
from engine.ports import Hypervisor
from engine.restore import Means, RestoredVm, restore_vm
from engine.restore_import import restore_by_import
from engine.ways import IMPORT, steps
from policies.facts import PointId

T = TypeVar("T")

log = logging.getLogger("engine.restore")


async def restore_new_vm(
    point: PointId, target: RestoreTarget, means: Means, ways: Sequence[str], *, run: RunId
) -> RestoredVm:
    """Make a new VM by the first of these ways that works; why those before it did not is told with each disk.

    Raises NoTransport when none works, with nothing left, and as restore_vm and restore_by_import do.
    """

    async def filled(step: tuple[str, ...]) -> RestoredVm:
        return await restore_vm(point, target, replace(means, transports=step), run=run)

    async def imported() -> RestoredVm:
        return await restore_by_import(point, target, means, run=run)

    made, refused = await by_first(ways, target.name, means.hypervisor, filled, imported)
    return replace(made, disks=tuple(replace(disk, fallbacks=(*refused, *disk.fallbacks)) for disk in made.disks))


async def by_first(
    ways: Sequence[str],
    name: str,
    hypervisor: Hypervisor,
    filled: Callable[[tuple[str, ...]], Awaitable[T]],
    imported: Callable[[], Awaitable[T]],
) -> tuple[T, tuple[Fallback, ...]]:
    """What the first of these ways gives that works, and why those before it do not. NoTransport when none does.

    `filled` makes a VM and writes its disks by some ways, `imported` has all of it imported. What is known to lead
    nowhere is not begun. A way that broke in the middle is not followed by another, but an import that fails is: it
    leaves nothing.
    """
    refused: list[Fallback] = []
    for step in steps(ways):
        try:
            if IMPORT in step:
                return await imported(), tuple(refused)
            told = await hypervisor.unwritable(step)
            if all(way in told for way in step):
                refused += [Fallback(way, told[way]) for way in step]
                continue
            return await filled(step), tuple(refused)
        except NoTransport as error:
            refused += [Fallback(way, why) for way, why in error.reasons if way in step]
        except (TransportFailed, NotPermitted) as error:
            if IMPORT not in step:
                raise
            log.info("VM not imported", extra={"vm": name, "reason": str(error)})
            refused.append(Fallback(IMPORT, str(error)))
    raise NoTransport.because(
        [(one.transport, one.reason) for one in refused],
        where=name,
        hint="set one of these up (backstay doctor), or restore to a file",
    )
