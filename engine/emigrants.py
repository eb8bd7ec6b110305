"""VMs that moved to another vCenter while both showed them: their history follows once the first one has left.

Where two vCenters show a VM of the same UUIDs at once, the second is given an id of its own, as it may be a copy. One
that moves does so for a while: as soon as it has left the first vCenter, the two ids are joined as `vm relink` does.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from connectors.errors import ConnectorError
from engine import relink
from engine.failures import BadInput
from engine.journal import aware
from engine.parts import Parts
from engine.records import VmRow
from engine.threads import settled
from policies.facts import VmId
from policies.units import counted
from storage.errors import StorageError

log = logging.getLogger("engine.relink")

EVERY = timedelta(seconds=20)
"""How often is looked."""

SOON = timedelta(minutes=30)
"""So long two vCenters may show a VM at once and it still counts as one that moved."""

EMIGRATES = timedelta(days=2)
"""The same where the first vCenter told that the VM leaves: with its storage, a move may take long."""

WHO = "backstay"


def moved_away(
    rows: Mapping[VmId, VmRow], present: Collection[VmId], told: Mapping[VmId, datetime]
) -> list[tuple[VmId, VmId]]:
    """Pairs of the id that a VM had and the one under which it stands in another vCenter now. Pure.

    Both have the same instance UUID and the same BIOS UUID, nobody else has either, and the first left soon after the
    second came, or as `told` by an event of its own vCenter. Never two that both stand in an inventory.
    """
    by_instance: dict[str, list[VmRow]] = {}
    bios: dict[str, int] = {}
    for row in rows.values():
        if row.traits.instance_uuid:
            by_instance.setdefault(row.traits.instance_uuid, []).append(row)
        bios[row.traits.bios_uuid] = bios.get(row.traits.bios_uuid, 0) + 1
    found = []
    for pair in by_instance.values():
        if len(pair) != 2:
            continue
        old, new = sorted(pair, key=lambda row: row.first_seen)
        if bios[old.traits.bios_uuid] == 2 and _follows(old, new, present, told.get(old.id)):
            found.append((old.id, new.id))
    return sorted(found)


def _follows(old: VmRow, new: VmRow, present: Collection[VmId], told: datetime | None) -> bool:
    before, after = old.traits, new.traits
    if old.id in present or new.id not in present or old.left_at is None:
        return False
    if not before.bios_uuid or before.bios_uuid != after.bios_uuid:
        return False
    if before.address is None or after.address is None or before.address.vcenter == after.address.vcenter:
        return False
    together = old.left_at - new.first_seen
    if together < timedelta():
        return False
    if told is not None and new.first_seen - EMIGRATES <= told <= old.left_at + SOON:
        return together <= EMIGRATES
    return together <= SOON


async def follow(parts: Parts) -> str:
    """Join what has moved. Waits where a run of the VM is under way; what is ambiguous is left to a person."""
    if not parts.world.inventory_known:
        return "waits until every vCenter's inventory is known"
    world = parts.world
    if not moved_away(world.rows, world.vms, {vm: row.left_at for vm, row in world.rows.items() if row.left_at}):
        return "no VM moved to another vCenter while both showed it"
    rows = await settled(
        parts.threads.state,
        parts.state.rows,
        "SELECT vm, max(happened_at) FROM events WHERE cause = 'emigrating' GROUP BY vm",
    )
    told = {VmId(row[0]): at for row in rows if row[0] and (at := aware(row[1])) is not None}
    joined = 0
    for old, new in moved_away(world.rows, world.vms, told):
        try:
            await relink.carry_out(parts, old, new, WHO)
        except (BadInput, ConnectorError, StorageError) as error:
            log.info("history does not follow yet", extra={"vm": old, "new": new, "why": str(error)})
        else:
            joined += 1
    return f"the histories of {counted(joined, 'VM')} followed to another vCenter"
