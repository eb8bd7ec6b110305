"""What is about all restore points of a VM, while one of the repositories may be away: a hold, and the latest one."""

from __future__ import annotations

from collections.abc import Iterable

from engine.crew import Crew
from engine.repositories import Away
from engine.threads import settled
from engine.world import World
from policies.facts import PointId, VmId
from storage.errors import NoSuchPoint, StorageError


async def hold_all(crew: Crew, vm: VmId, reason: str) -> None:
    """Hold whatever restore points of the VM can be reached, then raise what kept others from being held.

    Away while a repository is not open that may have more of them: who asked tries again until all are held.
    """
    pool, missed = crew.threads.repository, None
    for point in await settled(pool, crew.repositories.points, vm, known=dict(crew.world.points)):
        if reason in point.holds:
            continue
        try:
            home = crew.repositories.named(point.repository)
            await settled(pool, home.mark_hold, point.id, reason, crew.now())
        except NoSuchPoint:
            continue  # expired meanwhile
        except StorageError as error:
            missed = error
    await crew.list_points(vm)
    if missed is not None:
        raise missed
    for name, why in sorted(crew.repositories.away.items()):
        raise Away(f"repository {name} is away and may have more to hold: {why}")


def must_be_the_latest(world: World, away: Iterable[str], found: PointId) -> None:
    """Away when the VM has a newer restore point where nobody can look now: an older one must not pass for it."""
    known = {point.id: point for points in world.points.values() for point in points}
    point = known.get(found)
    if point is None:
        return
    newer = [one for one in world.points[point.vm] if one.taken_at > point.taken_at and one.complete]
    run = world.runs.get(point.vm)
    made = run.last_success if run is not None else None
    if newer:
        where = newer[-1].repository or "the repository"
        what = f"the latest restore point of {point.vm_name} is {newer[-1].id} in {where}, which does not answer"
    elif made is not None and made > point.taken_at and (names := ", ".join(sorted(away))):
        what = f"{point.vm_name} has a newer restore point, probably in {names}, which is away"
    else:
        return
    raise Away(what, hint=f"name this older one by its id: {found}")
