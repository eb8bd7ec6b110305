"""A hold on all restore points of a VM, in every repository."""

from __future__ import annotations

from engine.crew import Crew
from engine.repositories import Away
from engine.threads import settled
from policies.facts import VmId
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
