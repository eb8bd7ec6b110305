"""Joining the histories of two VM ids, where identity was ambiguous: first shown, then carried out.

The repository remembers it: a mark beside each restore point of the newer id says whose it is, and the next restore
point carries the VM's aliases under the older id. The state moves what it knows in one transaction after that. Cut
short in between, nothing is lost, the VM goes on under the newer id, and joining again finishes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from connectors.errors import ConnectorError
from engine import histories
from engine.failures import BadInput, NotYet
from engine.inbox import Alone, Tick
from engine.parts import Parts
from engine.records import Audited
from engine.threads import settled
from policies.decision import RetentionPlan
from policies.facts import VmId
from policies.policy import DEFAULT_GRACE
from policies.retention import plan_retention
from policies.units import counted
from storage.errors import StorageError
from storage.joining import begin_grace_anew, join

log = logging.getLogger("engine.relink")

DISTRUST = "its history was joined from two, so what changed since the last restore point is not known for sure"


async def plan(parts: Parts, old: str, new: str) -> Mapping[str, Any]:
    """What joining would do: {"old", "new", "retention", "text"}. BadInput, Declined or NotYet when it must not be."""
    was, now = histories.who_is_meant(parts.world, old, new)
    _check(parts, was, now)
    shown = _shown(parts, was, now)
    called = [f"{row['id']} was called {name} before." for row, name in ((shown["old"], old), (shown["new"], new))
              if name not in (row["id"], row["name"])]  # fmt: skip
    return {**shown, "text": "\n".join([shown["text"], *called])}


async def carry_out(parts: Parts, old: str, new: str, who: str) -> Mapping[str, Any]:
    """Join, and return what `plan` would have shown; raises as it does, and what the stores raise."""
    outcome: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            done = await _join(parts, *histories.who_is_meant(parts.world, old, new), who)
        except (BadInput, ConnectorError, StorageError) as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(done)

    await parts.inbox.put(Alone(work))
    done = await outcome
    if parts.rulebook.plan is not None:
        await parts.rulebook.replan()  # it says of each VM by its id what a pending change must not take away
    await parts.inbox.put(Tick(parts.now()))
    return done


def _check(parts: Parts, old: VmId, new: VmId) -> None:
    histories.check(parts.world, old, new)
    if any(attempt.vm.id in (old, new) for attempt in parts.crew.active.values()):
        raise NotYet("a backup of the VM is under way", where=new, hint="try again when it has ended")


def _retained(parts: Parts, old: VmId, new: VmId, now: datetime) -> RetentionPlan:
    """What retention would say of both histories as one, each point's grace beginning anew."""
    seen = replace(parts.world.vms[new], id=old)
    points = histories.together(parts.world, old, new)
    return plan_retention(old, points, parts.rulebook.in_force.retaining(seen, points), now)


def _shown(parts: Parts, old: VmId, new: VmId) -> dict[str, Any]:
    retained = _retained(parts, old, new, parts.now())
    going = len(retained.mark) + len(retained.expire)
    kept = len(retained.keep) - len(retained.mark)
    rows = {"old": _row(parts, old), "new": _row(parts, new)}
    text = [
        f"OLD  {_line(rows['old'])}",
        f"NEW  {_line(rows['new'])}",
        f"The VM that stands in the inventory as {new} goes on as {old}, with the restore points of both.",
        "Its next backup reads it in full.",
        f"Retention, counting both together, keeps {counted(kept, 'restore point')}"
        + (f" and marks {going}, which expire after their grace unless you hold them." if going else "."),
    ]
    if not rows["new"]["restore_points"]:
        text.append("Until that backup only the engine's state remembers it: should the state get lost, join again.")
    return {
        **rows,
        "retention": {"keep": kept, "mark": [one.point for one in (*retained.mark, *retained.expire)]},
        "text": "\n".join(text),
    }


def _row(parts: Parts, vm: VmId) -> dict[str, Any]:
    row, points = parts.world.rows.get(vm), parts.world.points.get(vm, ())
    name = row.traits.name if row is not None else points[-1].vm_name if points else ""
    address = row.traits.address if row is not None else None
    return {
        "id": vm,
        "name": name,
        "address": f"{parts.names.get(address.vcenter, address.vcenter)}/{address.moref}" if address else "",
        "stands": vm in parts.world.vms,
        "restore_points": len(points),
        "oldest": points[0].taken_at if points else None,
        "newest": points[-1].taken_at if points else None,
    }


def _line(row: Mapping[str, Any]) -> str:
    stands = "in the inventory" if row["stands"] else "not in the inventory"
    span = f", {_minute(row['oldest'])} to {_minute(row['newest'])}" if row["restore_points"] else ""
    return f"{row['id']}  {row['name']}  {stands}, {counted(row['restore_points'], 'restore point')}{span}"


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


async def _join(parts: Parts, old: VmId, new: VmId, who: str) -> Mapping[str, Any]:
    _check(parts, old, new)
    now, threads = parts.now(), parts.threads
    # What protects comes first: alone it costs a full read and a longer grace.
    await settled(threads.state, parts.state.distrust, old, DISTRUST, "", now)
    parts.metrics.tracking_distrusted("relinked")
    lock = {one.point: now + DEFAULT_GRACE for one in _retained(parts, old, new, now).expire}
    why = f"joined with the history of {new}"
    if parts.repositories.away:
        raise NotYet(f"repository {min(parts.repositories.away)} is away", hint="its restore points move, too: later")
    for _, home in [*parts.repositories.each()]:
        await settled(threads.repository, begin_grace_anew, home, (old, new), now, reason=why, lock=lock)
    _check(parts, old, new)  # a run may have begun meanwhile; from here to the world's change nothing is awaited
    shown = _shown(parts, old, new)
    joining = histories.join(parts.world, old, new, now)
    try:
        moved = [
            point
            for _, home in [*parts.repositories.each()]
            for point in await settled(threads.repository, join, home, new, old, now)
        ]
        names = f"{shown['new']['name']} goes on as {shown['old']['name']}"
        entry = Audited(now, who, "relink", old, f"{new} joined: {names}, {counted(len(moved), 'restore point')} moved")
        await settled(threads.state, parts.state.join, new, joining.row, joining.run, joining.fired, entry)
    except BaseException:
        joining.undo()
        await parts.crew.list_all_points()
        raise
    parts.dispatcher.joined(old, new)
    if new in parts.crew.set_aside:
        parts.crew.set_aside = (parts.crew.set_aside - {new}) | {old}
    parts.queue.changed()
    await parts.crew.list_all_points()
    log.info("histories joined", extra={"vm": old, "joined": new, "points": len(moved), "who": who})
    return {**shown, "moved": moved}
