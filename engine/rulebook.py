"""The policies in force, the files beside them, and the change between the two that may wait for a person.

A broken file changes nothing. What a change adds takes effect at once; what would leave a VM unprotected or newly
expire a restore point stays pending until it is confirmed by its digest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import aiofiles

from connectors.cleanup import finish
from engine.state import State
from engine.threads import Threads, settled
from policies.errors import PolicyError, Problem
from policies.facts import Facts
from policies.loading import LARGEST_FILE_BYTES, load_texts, policy_files, unreadable
from policies.planning import ReloadPlan, plan_reload
from policies.policyset import PolicySet
from storage.errors import Refused

log = logging.getLogger("engine.policies")

UNKNOWN_BEFORE = {"(before).toml": 'schema = 1\n[policy.what-was-before]\nselect.all = ["*"]\n'}
"""Stands for policies that a lost state does not tell any more: they protect nothing and keep every restore point."""


REPLAN_AFTER = timedelta(seconds=20)
"""How old the comparison of a pending change may be: the inventory goes on changing under it."""


READ_SECONDS = 10.0
"""How long a stop of the engine may wait for policy files that are being read."""


async def read_policies(files: Mapping[str, Path]) -> Mapping[str, bytes]:
    """What every policy file holds, by its name; PolicyError names each that cannot be read."""
    texts: dict[str, bytes] = {}
    problems: list[Problem] = []
    for name, file in files.items():
        try:
            async with aiofiles.open(file, "rb") as opened:
                texts[name] = await opened.read(LARGEST_FILE_BYTES + 1)
        except OSError as error:
            problems.append(unreadable(name, error))
    if problems:
        raise PolicyError(problems)
    return texts


@dataclass(slots=True)
class Rulebook:
    """See the module. Touched from the event loop alone; files and state in threads."""

    directory: Path
    state: State
    threads: Threads
    facts: Callable[[datetime], Facts]
    now: Callable[[], datetime]
    changed: Callable[[], None] = lambda: None
    accepted: PolicySet = field(default_factory=PolicySet)
    in_force: PolicySet = field(default_factory=PolicySet)
    problems: tuple[Problem, ...] = ()
    plan: ReloadPlan | None = None
    pending_since: datetime | None = None
    _files: PolicySet | None = None
    _texts: Mapping[str, bytes] | None = None
    _planned_at: datetime | None = None

    @property
    def names(self) -> frozenset[str]:
        """The policies that protect a VM now, those included that only a pending change keeps alive."""
        kept = (policy for policies in self.in_force.kept_protection.values() for policy in policies)
        return frozenset(policy.name for policy in (*self.in_force.policies, *kept))

    async def start(self, *, keep_everything: bool) -> None:
        """Take over what was accepted before. With keep_everything, nobody knows: no restore point newly expires."""
        texts = await settled(self.threads.state, self.state.policy_files)
        if texts:
            self.accepted = load_texts(texts)
        elif keep_everything:
            self.accepted = load_texts(UNKNOWN_BEFORE)
        self.in_force = self.accepted
        await self.look()

    async def look(self) -> bool:
        """Read the files, and take them up if they changed; whether they did."""
        try:
            files = await settled(self.threads.long, policy_files, self.directory)
            # To its end even when the engine stops: a cancelled open would leave its file behind.
            texts = await finish(read_policies(files), within=READ_SECONDS)
            if texts == self._texts and not self.problems:
                return False
            self._texts = texts
            self._files = await settled(self.threads.long, load_texts, texts)
        except PolicyError as error:
            if error.problems == self.problems:
                return False
            self.problems = error.problems
            log.error("policies not loaded, the old ones stay", extra={"problems": str(error)})
        else:
            self.problems = ()
            await self.replan()
        self.changed()
        return True

    def stale(self, now: datetime) -> bool:
        """Whether a pending change should be compared again: soon while the inventory was not known, else at times."""
        if self.plan is None or self._planned_at is None:
            return False
        return not self.plan.vms or now - self._planned_at >= REPLAN_AFTER

    async def replan(self) -> None:
        """Compare the files with what is in force, as the inventory is now."""
        self._planned_at = self.now()
        if self._files is None or (self.plan is None and self._files.hash == self.accepted.hash):
            return
        plan = plan_reload(self.accepted, self._files, self.facts(self.now()))
        if plan.pending:
            self.in_force = plan.effective
            if self.plan is None or self.plan.id != plan.id:
                log.warning("change of policies waits for confirmation", extra={"digest": plan.id})
            self.pending_since = self.pending_since or self.now()
            self.plan = plan
            return
        await self._accept(plan, "engine")

    async def apply(self, digest: str, who: str) -> ReloadPlan:
        """Confirm the pending change; Refused when it is not this one, or a guard forbids it."""
        await self.look()
        await self.replan()
        plan = self.plan
        if plan is None:
            raise Refused("no change of policies waits for confirmation")
        if plan.id != digest:
            raise Refused(
                f"the pending change is {plan.id} by now, not {digest}", hint="look at it again: backstay policy apply"
            )
        await self._accept(plan, who)
        return plan

    async def _accept(self, plan: ReloadPlan, who: str) -> None:
        said = "; ".join([*(c.sentence for c in plan.losing), *(c.sentence for c in plan.expiring)])
        await settled(
            self.threads.state,
            self.state.accept_policies,
            dict(plan.new.texts),
            who=who,
            detail=said or "nothing loses protection",
            now=self.now(),
        )
        self.accepted = self.in_force = plan.new
        self.plan = self.pending_since = None
        log.info("policies in force", extra={"policies": len(plan.new.policies), "who": who})
        self.changed()
