"""The policies in force, the files beside them, and the change between the two that may wait for a person.

A broken file changes nothing. What a change adds takes effect at once; what would leave a VM unprotected or newly
expire a restore point stays pending until it is confirmed, by its id or by the plan file that a person has seen.
What a guard refuses needs more than that: somebody who overrides the guard, and whose name the audit keeps.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiofiles

from connectors.cleanup import finish
from engine.checkout import commit_of
from engine.copying import stop_if
from engine.state import State
from engine.threads import Threads, interruptible, settled
from policies.changes import ReloadPlan
from policies.errors import PolicyError, Problem
from policies.facts import Facts
from policies.loading import LARGEST_FILE_BYTES, at_once, load_texts, policy_files, unreadable
from policies.planfile import Planned, differences
from policies.planning import plan_reload
from policies.planwords import reload_words, taken_away
from policies.policyset import PolicySet
from storage.errors import Refused

log = logging.getLogger("engine.policies")

UNKNOWN_BEFORE = {"(before).toml": 'schema = 1\n[policy.what-was-before]\nselect.all = ["*"]\n'}
"""Stands for policies that a lost state does not tell any more: they protect nothing and keep every restore point."""


REPLAN_AFTER = timedelta(seconds=20)
"""How old the comparison of a pending change may be: the inventory goes on changing under it."""

LEISURE = 20
"""Before the next comparison so many times as long passes as the last one took: for large fleets that is seconds."""


READ_SECONDS = 10.0
"""How long a stop of the engine may wait for policy files that are being read."""


MOST_LISTED = 1000
"""How many VMs and restore points of a pending change the API lists: a plan file has all of them."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that waits, and how it is told; made in a thread, as a large change has many words."""

    plan: ReloadPlan
    sentences: tuple[str, ...]
    text: str
    shown: Mapping[str, Any]


def compared(old: PolicySet, new: PolicySet, facts: Facts, look: Callable[[], None] = lambda: None) -> Pending:
    """What a change does, planned and put into words. Takes seconds for a large fleet; `look` may end it early."""
    plan = plan_reload(old, new, facts, look=look)
    look()
    taken = taken_away(replace(plan, refusals=()))
    look()
    return Pending(plan, taken, reload_words(plan), plan.as_json(MOST_LISTED))


async def read_policies(files: Mapping[str, Path]) -> Mapping[str, bytes]:
    """What every policy file holds, by its name; PolicyError names each that cannot be read."""
    texts: dict[str, bytes] = {}
    problems: list[Problem] = []
    for name, file in files.items():
        try:
            async with aiofiles.open(file, "rb", opener=at_once) as opened:
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
    pending: Pending | None = None
    pending_since: datetime | None = None
    _files: PolicySet | None = None
    _texts: Mapping[str, bytes] | None = None
    _planned_at: datetime | None = None
    _took: timedelta = timedelta()
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def plan(self) -> ReloadPlan | None:
        """The change that waits for confirmation."""
        return self.pending.plan if self.pending is not None else None

    @property
    def names(self) -> frozenset[str]:
        """The policies that protect a VM now, those included that only a pending change keeps alive."""
        kept = (policy for policies in self.in_force.kept_protection.values() for policy in policies)
        return frozenset(policy.name for policy in (*self.in_force.policies, *kept))

    async def start(self, *, keep_everything: bool) -> None:
        """Take over what was accepted before. keep_everything: where nobody knows, no restore point newly expires."""
        texts = await settled(self.threads.state, self.state.policy_files)
        if texts:
            commit = await settled(self.threads.state, self.state.policy_commit)
            self.accepted = load_texts(texts).at_commit(commit)
        elif keep_everything:
            self.accepted = load_texts(UNKNOWN_BEFORE)
        self.in_force = self.accepted
        await self.look()

    async def look(self) -> bool:
        """Read the files, and take them up if they changed; whether they did."""
        async with self._busy:
            return await self._look()

    async def _look(self) -> bool:
        try:
            files = await settled(self.threads.long, policy_files, self.directory)
            # To its end even when the engine stops: a cancelled open would leave its file behind.
            texts = await finish(read_policies(files), within=READ_SECONDS)
            if texts == self._texts and not self.problems:
                return False
            self._texts = texts
            read = await settled(self.threads.long, load_texts, texts)
            self._files = read.at_commit(await settled(self.threads.long, commit_of, self.directory, texts))
        except PolicyError as error:
            if error.problems == self.problems:
                return False
            self.problems = error.problems
            log.error("policies not loaded, the old ones stay", extra={"problems": str(error)})
        else:
            self.problems = ()
            try:
                await self._replan()
            except BaseException:
                self._texts = None  # not taken up: read and compared again at the next look
                raise
        self.changed()
        return True

    def stale(self, now: datetime) -> bool:
        """Whether a pending change should be compared again: soon while the inventory was not known, else at times."""
        if self.plan is None or self._planned_at is None:
            return False
        return not self.plan.vms or now - self._planned_at >= max(REPLAN_AFTER, LEISURE * self._took)

    async def replan(self) -> None:
        """Compare the files with what is in force, as the inventory is now."""
        async with self._busy:
            await self._replan()

    async def _replan(self) -> None:
        self._planned_at = self.now()
        if self._files is None or (self.plan is None and self._files.hash == self.accepted.hash):
            return
        began = time.monotonic()
        facts = standing_still(self.facts(self.now()))
        stop = threading.Event()
        work = partial(compared, self.accepted, self._files, facts, partial(stop_if, stop))
        found = await interruptible(self.threads.planning, stop, work)
        self._took = timedelta(seconds=time.monotonic() - began)
        plan = found.plan
        if plan.pending:
            self.in_force = plan.effective
            if self.plan is None or self.plan.id != plan.id:
                log.warning("change of policies waits for confirmation", extra={"digest": plan.id})
            self.pending_since = self.pending_since or self.now()
            self.pending = found
            return
        await self._accept(found, "engine")

    async def apply(self, digest: str, who: str, *, override_guard: bool = False) -> Pending:
        """Confirm the pending change; Refused when it is not this one, or a guard forbids it."""
        async with self._busy:
            pending = await self._as_it_is_now()
            if pending is None:
                raise Refused("no change of policies waits for confirmation")
            if pending.plan.id != digest:
                raise Refused(
                    f"the pending change is {pending.plan.id} by now, not {digest}",
                    hint="look at it again: backstay policy apply",
                )
            await self._confirm(pending, who, override_guard)
            return pending

    async def apply_plan(self, seen: Planned, who: str, *, override_guard: bool = False) -> Pending | None:
        """Confirm the pending change if it is what somebody has seen; None when it is in force already.

        Refused says what differs by now, or which guard forbids it.
        """
        async with self._busy:
            pending = await self._as_it_is_now()
            if self.problems:
                raise Refused("the policy files cannot be used", hint=str(self.problems[0]))
            if pending is None and self.accepted.hash == seen.new:
                return None
            if pending is None:
                raise Refused(
                    "the policy files are not those of the plan, and no change waits",
                    hint="put the files that were planned where the engine reads them",
                )
            if found := differences(seen, pending.plan):
                raise Refused(f"the plan does not hold any more: {'; '.join(found)}", hint="plan again and look")
            await self._confirm(pending, who, override_guard)
            return pending

    async def _as_it_is_now(self) -> Pending | None:
        await self._look()
        await self._replan()
        return self.pending

    async def _confirm(self, pending: Pending, who: str, override_guard: bool) -> None:
        if pending.plan.refusals and not override_guard:
            raise Refused(
                f"a guard refuses it: {'; '.join(pending.plan.refusals)}",
                hint="if it shall be done all the same: --override-guard",
            )
        await self._accept(pending, who)

    async def _accept(self, found: Pending, who: str) -> None:
        plan = found.plan
        overridden = f"guard overridden ({'; '.join(plan.refusals)}); " if plan.refusals else ""
        said = "; ".join(found.sentences) or "nothing loses protection"
        await settled(
            self.threads.state,
            self.state.accept_policies,
            dict(plan.new.texts),
            who=who,
            detail=f"plan {plan.id}: {overridden}{said}",
            now=self.now(),
            commit=plan.new.commit,
        )
        self.accepted = self.in_force = plan.new
        self.pending = self.pending_since = None
        log.info("policies in force", extra={"policies": len(plan.new.policies), "who": who})
        self.changed()


def standing_still(facts: Facts) -> Facts:
    """Facts that a thread may look at while the engine goes on: its own tables of values that never change."""
    return Facts(
        facts.now,
        dict(facts.vms),
        dict(facts.history),
        dict(facts.points),
        dict(facts.fired),
        dict(facts.left),
        dict(facts.copies),
        facts.unseen_copies,
        facts.unseen_repositories,
    )
