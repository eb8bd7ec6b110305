"""Which way a new VM is made from a restore point: its disks filled, or all of it imported; the first that works."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from connectors.errors import NotPermitted, NoTransport, TransportFailed
from connectors.hypervisor import Fallback, RestoreTarget
from engine.jobs import RunId
from engine.restore import Means, RestoredVm, restore_vm
from engine.restore_import import restore_by_import
from engine.ways import IMPORT, steps
from policies.facts import PointId

log = logging.getLogger("engine.restore")


async def restore_new_vm(
    point: PointId, target: RestoreTarget, means: Means, ways: Sequence[str], *, run: RunId
) -> RestoredVm:
    """Make a new VM by the first of these ways that works; why those before it did not is told with each disk.

    A way that broke in the middle is not followed by another: disks that were being filled go on where they were, and
    an import begins again. Raises NoTransport when none works, with nothing left, and as restore_vm does.
    """
    refused: list[Fallback] = []
    for step in steps(ways):
        try:
            made = await _by(step, point, target, means, run=run)
        except NoTransport as error:
            refused += [Fallback(way, why) for way, why in error.reasons if way in step]
        except (TransportFailed, NotPermitted) as error:
            if step != (IMPORT,):
                raise
            log.info("VM not imported", extra={"vm": target.name, "reason": str(error)})
            refused.append(Fallback(IMPORT, str(error)))
        else:
            disks = tuple(replace(disk, fallbacks=(*refused, *disk.fallbacks)) for disk in made.disks)
            return replace(made, disks=disks)
    raise NoTransport(
        [(one.transport, one.reason) for one in refused],
        where=target.name,
        hint="set one of these up (backstay doctor), or restore to a file",
    )


async def _by(step: Sequence[str], point: PointId, target: RestoreTarget, means: Means, *, run: RunId) -> RestoredVm:
    """One way, or several that fill disks. NoTransport, with nothing made, where it is known to lead nowhere."""
    if IMPORT in step:
        return await restore_by_import(point, target, means, run=run)
    told = await means.hypervisor.unwritable(step)
    if all(way in told for way in step):
        raise NoTransport([(way, told[way]) for way in step], where=target.name)
    return await restore_vm(point, target, replace(means, transports=tuple(step)), run=run)
