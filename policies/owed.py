"""What second copies lack of a VM's restore points that expire: retention waits for them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from policies.facts import Facts, PointId, VmId
from policies.keeping import rows_of, unkept
from policies.policyset import PolicySet
from policies.protection import copies_of


def owed(
    vm_id: VmId,
    going: Collection[PointId],
    policies: PolicySet,
    facts: Facts,
    copies: Collection[str],
    barred: Mapping[str, Collection[PointId]],
) -> dict[PointId, tuple[str, ...]]:
    """Of what goes in the first repository, what these copies lack and would keep beside all that is to come to them.

    `barred` is what a copy does not take: it expired there.
    """
    found: dict[PointId, tuple[str, ...]] = {}
    points = facts.points.get(vm_id, ()) if going else ()
    vm = facts.vms.get(vm_id)
    for copy in copies:
        wanted = [one for one in points if not one.damaged and copy in copies_of(policies, vm, one)]
        held = facts.points_in(copy).get(vm_id, ())
        has = {one.id for one in held}
        lacks = {one.id for one in wanted if one.id in going} - has - set(barred.get(copy, ()))
        if not lacks:
            continue
        together = [*held, *(one for one in wanted if one.id not in has)]
        rows = rows_of(together)
        retaining = policies.retaining(vm, together, removed=vm_id in facts.left, copy=copy)
        lacks -= {rows[position].point.id for position in unkept(rows, retaining, facts.now)}
        found |= {point: (*found.get(point, ()), copy) for point in lacks}
    return found
