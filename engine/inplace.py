"""A run whose policies want its VM kept in its place, from before its snapshot until that is removed."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from time import monotonic

from connectors.errors import ConnectorError
from engine.attempts import Attempt, Means
from engine.backup import back_up
from engine.jobs import Done
from engine.leases import MIGRATION_LOCK
from policies.policy import OnMigrate

log = logging.getLogger("engine.backup")

KEPT = "kept in its place"


async def back_up_in_place(attempt: Attempt, means: Means) -> Done:
    """As `back_up`, with the VM kept in its place where the attempt says so and vCenter lets us.

    A VM that cannot be kept is backed up all the same, as with `finish`, and the result tells why. A VM that could
    not be let go is a warning once the restore point is there; the janitor goes on with it.
    """
    if attempt.on_migrate is not OnMigrate.BLOCK:
        return await back_up(attempt, means)
    began, first = monotonic(), attempt.tally.stage
    done: Done | None = None
    attempt.tally.stage = "keeping the VM in its place"
    try:
        async with means.hypervisor.kept_in_place(attempt.vm, run=attempt.run) as why:
            attempt.tally.lap("queued", began)
            attempt.tally.stage = first
            placement = f"not {KEPT}: {why}" if why else KEPT
            with ExitStack() as held:
                if not why:
                    held.enter_context(attempt.tally.leases.hold(MIGRATION_LOCK, attempt.vm.name))
                done = replace(await back_up(replace(attempt, placement=placement), means), placement=placement)
    except ConnectorError as error:
        if done is None:
            raise
        log.error("VM not let go yet", extra={"vm": attempt.vm.name, "run": attempt.run, "why": str(error)})
        return replace(done, warnings=(*done.warnings, f"the VM cannot be moved until the janitor lets it go: {error}"))
    return done
