"""What keeps a restore into a VM from making things worse: another that is not over, or no way to write at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from connectors.errors import ConnectorError, NoTransport
from connectors.hypervisor import CreatedVm, MarkedVm
from engine.failures import Declined
from engine.jobs import RunId
from engine.restore import Means
from engine.restore_journal import Journal, Restoring, unfinished
from engine.threads import settled
from policies.facts import Vm

log = logging.getLogger("engine.restore")


async def assert_alone(
    what: Restoring, keys: Collection[int], vm: Vm, means: Means, *, ignored: str, same: Callable[[MarkedVm], bool]
) -> None:
    """Declined where the VM would be taken for whole at the end of this restore, while another has left it half done.

    `keys` are the disks that this one writes. Restores of the kind `ignored` leave those of the VM alone. `same` tells
    whether a mark is that of this restore, where no journal is there to tell.
    """
    marks = await means.hypervisor.marked_vms([vm.address.moref])
    mark = next((one for one in marks if one.address == vm.address), None)
    if mark is None:
        return
    left = await settled(means.threads.long, unfinished, means.state_dir)
    here = [one for one in left if (one.vcenter, one.moref) == (vm.address.vcenter, vm.address.moref)]
    every = bool(keys) and all(disk.key in keys or disk.unprotected for disk in vm.disks)
    if every or (not here and same(mark)):
        return
    if others := [one for one in here if one != what and one.kind != ignored]:
        told = f"{others[0].point} ({others[0].kind})"
    elif here:
        return
    else:
        told = mark.point
    raise Declined(
        f"it is half restored from {told}, and this restore would leave it so and have it taken for whole",
        where=vm.name,
        hint="finish that restore first, or give it up (docs/restore.md, When a restore is cut off)",
    )


async def as_it_was(
    taken: CreatedVm, journal: Journal, means: Means, why: BaseException, *, keep_safety: bool = False
) -> None:
    """Hand a VM back that was taken over and not written to; where that fails, `why` is told of it."""
    try:
        await means.hypervisor.hand_back(taken, keep_safety=keep_safety)
    except ConnectorError as error:
        why.add_note(f"{taken.name} could not be handed back and stays marked as half restored: {error}")
        log.warning("VM not handed back", extra={"vm": taken.name, "why": str(error)})
        return
    await settled(means.threads.long, journal.finish)


async def undone(
    taken: CreatedVm, journal: Journal, means: Means, why: BaseException, *, run: RunId, made: str
) -> None:
    """Take away the disk that this run has added to a VM and not written to, if it has, and hand the VM back.

    `made` is the disk's UUID, as far as it is known.
    Where that fails, `why` is told of it, and the VM stays as it is for the same restore to go on.
    """
    try:
        await means.hypervisor.discard_disk(taken.address, run=run, uuid=made)
    except ConnectorError as error:
        why.add_note(
            f"the disk that was added to {taken.name} could not be removed, and it stays half restored: {error}"
        )
        log.warning("empty disk stays", extra={"vm": taken.name, "why": str(error)})
        return
    await as_it_was(taken, journal, means, why)


async def assert_writable(vm: Vm, means: Means) -> None:
    """NoTransport where it is known beforehand that no way writes a disk of the VM."""
    told = await means.hypervisor.unwritable(means.transports)
    if means.transports and all(way in told for way in means.transports):
        raise NoTransport.because(
            [(way, told[way]) for way in means.transports],
            where=vm.name,
            hint="set hot-add or NBD up (backstay doctor), or restore to a file",
        )
