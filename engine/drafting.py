"""From decisions to what they change: jobs made, joined or given up, distrust, holds, cooldowns. No I/O.

A draft changes the world at once, so that the next event of a batch sees the effect of the one before, and collects
what the state has to write in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from connectors.hypervisor import Cursor
from engine.jobs import Job, JobId, JobKind, JobState, asked_for, decision_of, job_from
from engine.journal import Effect, Ruling
from engine.records import Audited, Change, Distrust, VmRow
from engine.world import World
from policies.admission import coalesce
from policies.decision import BackUp, Decision, DistrustTracking, HoldPoints, Requeue, Retire, Skip
from policies.facts import Event, VmId

SMALL_STEP = timedelta(minutes=5)
"""By so much clocks are set in passing; jobs are not looked at for it."""


@dataclass(slots=True)
class Draft:
    """What a batch changes. `now` is one instant for all of it."""

    world: World
    now: datetime
    mint_job: Callable[[], JobId]
    effects: list[Effect] = field(default_factory=list)
    jobs: dict[JobId, Job] = field(default_factory=dict)
    rows: dict[VmId, VmRow] = field(default_factory=dict)
    fired: dict[tuple[str, str, VmId], datetime] = field(default_factory=dict)
    distrust: list[Distrust] = field(default_factory=list)
    audit: list[Audited] = field(default_factory=list)
    explained: dict[VmId, Mapping[str, str]] = field(default_factory=dict)
    """What was accounted for before this draft, of each VM whose look its events explain."""
    _before: dict[JobId, Job | None] = field(default_factory=dict)
    _keys: dict[str, JobId] = field(default_factory=dict)
    _forgotten: dict[str, JobId] = field(default_factory=dict)
    _read: dict[VmId, str] = field(default_factory=dict)
    """On which host each VM was being read whose run this draft calls back."""
    _cooled: dict[tuple[str, str, VmId], datetime | None] = field(default_factory=dict)

    def undo(self) -> None:
        """The write failed: take back what it would have made of jobs and cooldowns, and what its events explained.

        A job that a worker took meanwhile runs on, and its key still stands for it. What rows say of the inventory
        stays, and is to be written with the next draft.
        """
        for vm, accounted in [one for one in self.explained.items() if one[0] in self.world.rows]:
            row = replace(self.world.rows[vm], accounted=accounted)
            self.rows[vm] = self.world.rows[vm] = row
        self.world.job_keys.update(self._forgotten)
        for id, drafted in self.jobs.items():
            if self.world.jobs.get(id) != (drafted if drafted.state is JobState.PENDING else None):
                continue
            before = self._before[id]
            for key in [key for key, job in self._keys.items() if job == id]:
                self.world.job_keys.pop(key, None)
            if before is None:
                self.world.drop_job(drafted)
            else:
                self.world.set_job(before)
        for vm, host in self._read.items():
            self.world.reads(vm, host)
        for fired, at in self._cooled.items():
            if at is None:
                self.world.fired.pop(fired, None)
            else:
                self.world.fired[fired] = at

    def change(self, cursor: Cursor | None = None) -> Change:
        """All of it, for one transaction."""
        return Change(
            effects=tuple(self.effects),
            jobs=tuple(self.jobs.values()),
            vms=tuple(self.rows.values()),
            fired=dict(self.fired),
            distrust=tuple(self.distrust),
            audit=tuple(self.audit),
            cursor=cursor,
        )

    @property
    def empty(self) -> bool:
        """Nothing to write."""
        return not (self.effects or self.jobs or self.rows or self.distrust or self.audit)

    def row(self, row: VmRow | None) -> None:
        """A row of the identity table that changed."""
        if row is not None:
            self.rows[row.id] = row

    def explains(self, vm: VmId) -> None:
        """An event of this draft is about to account for how the VM looks."""
        if vm in self.world.rows:
            self.explained.setdefault(vm, self.world.rows[vm].accounted)

    def alert(self, vm: VmId, sentence: str) -> None:
        """Something that a person must hear of."""
        self.audit.append(Audited(self.now, "engine", "alert", vm, sentence))

    def take(self, event: Event, decisions: Iterable[Decision], *, reconciled: bool = False) -> tuple[Ruling, ...]:
        """Carry the decisions about one event over into jobs and records."""
        rulings = [self.rule(decision, event) for decision in decisions]
        return self.note(event, rulings, reconciled=reconciled)

    def note(self, event: Event, rulings: Iterable[Ruling], *, reconciled: bool = False) -> tuple[Ruling, ...]:
        """These are the decisions about the event, carried over with `rule`."""
        effect = Effect(event, tuple(rulings), reconciled)
        self.effects.append(effect)
        return effect.rulings

    def rule(self, decision: Decision, event: Event) -> Ruling:
        """Carry one decision over; `note` is to follow."""
        match decision:
            case Skip():
                return Ruling(decision)
            case BackUp():
                return self._back_up(decision)
            case DistrustTracking():
                why, key = decision.reason, decision.event_key
                self.distrust.append(Distrust(decision.vm, why, key, self.now, decision.reset))
                self._fired(decision)
                return Ruling(decision)
            case Retire():
                self._retire(decision)
                return Ruling(decision)
            case HoldPoints():
                return Ruling(decision, self._hold(decision, event))
            case Requeue():
                return Ruling(decision, self._call_back(decision.vm))

    def _back_up(self, decision: BackUp) -> Ruling:
        known = self.world.job_keys.get(decision.key)
        if known is not None:
            return Ruling(decision, known)
        waiting = self.world.jobs.waiting_backup(decision.vm)
        job = job_from(decision, job=self.mint_job(), now=self.now) if waiting is None else joined(waiting, decision)
        self._set(job)
        self.world.job_keys[decision.key] = self._keys[decision.key] = job.id
        self._fired(decision)
        return Ruling(decision, job.id)

    def _fired(self, decision: BackUp | HoldPoints | DistrustTracking) -> None:
        """The cooldown of a trigger begins."""
        if decision.rule.startswith("trigger"):
            fired = (decision.policy, decision.rule, decision.vm)
            self._cooled.setdefault(fired, self.world.fired.get(fired))
            self.fired[fired] = self.world.fired[fired] = self.now

    def _retire(self, decision: Retire) -> None:
        for job in self.world.jobs.of(decision.vm):
            if job.kind is JobKind.BACKUP and job.state is JobState.PENDING:
                self._set(replace(job, state=JobState.ABANDONED, last_error=decision.reason))
                self._forgotten.update(self.world.forget_keys(job.id))

    def bring_forward(self) -> None:
        """What a clock that was ahead put off into its own future waits for nothing: it holds up all later runs."""
        for job in list(self.world.jobs.values()):
            if job.state is JobState.PENDING and job.not_before > self.now and self._from_ahead(job):
                self._set(replace(job, not_before=self.now, created_at=min(job.created_at, self.now)))

    def _from_ahead(self, job: Job) -> bool:
        soon = self.now + SMALL_STEP
        run = self.world.runs.get(job.vm)
        tried = run.last_attempt if run is not None and job.attempts else None
        return job.created_at > soon or (tried is not None and soon < tried <= job.not_before)

    def _call_back(self, vm: VmId) -> JobId | None:
        """The run is called back once, however many moves one batch tells of."""
        self._read.setdefault(vm, self.world.reading_on.get(vm, ""))
        self.world.reads(vm, "")
        return next((job.id for job in self.world.jobs.of(vm) if job.state is JobState.RUNNING), None)

    def _hold(self, decision: HoldPoints, event: Event) -> JobId:
        self._fired(decision)
        key = f"hold:{decision.vm}:{event.key}"
        if (known := self.world.job_keys.get(key)) is not None:
            return known
        job = Job(
            id=self.mint_job(), key=key, kind=JobKind.HOLD, vm=decision.vm, policy=decision.policy,
            rule=decision.rule or "request", reason=decision.reason, created_at=self.now, not_before=self.now,
            event_key=event.key, manual=True,
        )  # fmt: skip
        self._set(job)
        self.world.job_keys[key] = self._keys[key] = job.id
        return job.id

    def _set(self, job: Job) -> None:
        self._before.setdefault(job.id, self.world.jobs.get(job.id))
        self.jobs[job.id] = job
        self.world.set_job(job)


def joined(job: Job, decision: BackUp) -> Job:
    """A waiting job that a second decision joins: one run that satisfies both, as `policies.admission` merges them."""
    merged = coalesce((decision_of(job),), decision).stands_for
    return replace(
        job,
        not_before=merged.not_before,
        deadline=merged.deadline,
        priority=merged.priority,
        consistency=merged.consistency,
        fallback=merged.fallback,
        manual=job.manual or asked_for(decision),
    )
