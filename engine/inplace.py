"""A run whose policies want its VM kept in its place, from before its snapshot until that is removed."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from datetime import timedelta
from time import monotonic

from connectors.errors import Busy, ConnectorError
from engine.attempts import KEPT_IN_PLACE, Attempt, KeptByOther, Means
from engine.backup import back_up
from engine.jobs import Done
from engine.leases import MIGRATION_LOCK
from policies.policy import OnMigrate
from policies.units import span

log = logging.getLogger("engine.backup")

PLACE_AWAITED = timedelta(minutes=10)
"""How long another product's switch is waited for: as long as VMware's own sample does."""


async def back_up_in_place(attempt: Attempt, means: Means) -> Done:
    """As `back_up`, with the VM kept in its place where the attempt says so and vCenter lets us.

    A VM that cannot be kept is backed up all the same, as with `finish`, and the result tells why. A VM that could
    not be let go is a warning once the restore point is there; the janitor goes on with it. KeptByOther where another
    product keeps it and the attempt waits for that.
    """
    if attempt.on_migrate is not OnMigrate.BLOCK:
        return await back_up(attempt, means)
    began = monotonic()
    done: Done | None = None
    try:
        async with AsyncExitStack() as held:
            try:
                keeping = means.hypervisor.kept_in_place(attempt.vm, run=attempt.run)
                why = await held.enter_async_context(keeping)
            except Busy as error:
                if attempt.waits_for_place:
                    raise KeptByOther(error.what) from error
                why = f"{error.what}; waited {span(PLACE_AWAITED)}"
            attempt.tally.lap("queued", began)
            placement = f"not {KEPT_IN_PLACE}: {why}" if why else KEPT_IN_PLACE
            with ExitStack() as leases:
                if not why:
                    leases.enter_context(attempt.tally.leases.hold(MIGRATION_LOCK, attempt.vm.name))
                done = replace(await back_up(replace(attempt, placement=placement), means), placement=placement)
    except ConnectorError as error:
        if done is None:
            raise
        log.error("VM not let go yet", extra={"vm": attempt.vm.name, "run": attempt.run, "why": str(error)})
        return replace(done, warnings=(*done.warnings, f"the VM cannot be moved until the janitor lets it go: {error}"))
    return done
