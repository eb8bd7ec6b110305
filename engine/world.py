"""What the engine knows right now, in memory: VMs under Backstay's own ids, restore points, runs and open jobs.

Touched from the event loop alone. It is the state and the inventory put together, and makes the facts that policies
look at; after a failed write it is loaded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from engine.identity import Book, Known, traits_of
from engine.jobs import Job, JobId, JobKind, JobState
from engine.openjobs import OpenJobs
from engine.records import Recalled, RunRow, VmRow
from policies.facts import Address, EventType, Facts, RestorePoint, Vm, VmHistory, VmId

LOOK: Mapping[EventType, tuple[str, ...]] = {
    EventType.POWERED_ON: ("power",),
    EventType.POWERED_OFF: ("power",),
    EventType.SUSPENDED: ("power",),
    EventType.MIGRATED: ("host", "datastores"),
    EventType.RELOCATED: ("host", "datastores"),
    EventType.RENAMED: ("name",),
    EventType.RECONFIGURED: ("disks",),
    EventType.RETAGGED: ("tags",),
    EventType.CREATED: ("power", "host", "datastores", "name", "disks", "tags"),
    EventType.CLONED: ("power", "host", "datastores", "name", "disks", "tags"),
    EventType.REGISTERED: ("power", "host", "datastores", "name", "disks", "tags"),
}
"""Which parts of a VM's look an event of this type explains."""


GONE = "gone"
MISSED = "missed"
UNSEEN = "unseen"
"""More names in `VmRow.accounted`: its leaving is explained; the number of its last event found by comparing; it is
known from restore points alone, as an engine with other rights or of before made them, and was never seen here."""


def look_of(vm: Vm) -> dict[str, str]:
    """The parts of a VM whose change is an event."""
    return {
        "power": vm.power.value,
        "host": vm.host,
        "datastores": json.dumps(sorted(vm.datastores)),
        "name": vm.name,
        "disks": json.dumps(sorted((d.key, d.uuid, d.capacity_bytes) for d in vm.disks)),
        "tags": json.dumps(sorted(vm.tags)),
    }


def _with_new_parts(accounted: Mapping[str, str], vm: Vm) -> Mapping[str, str]:
    """A row that an engine wrote which knew fewer parts: what it did not know of is taken as explained."""
    look = look_of(vm)
    if not accounted.keys() & look.keys() or accounted.keys() >= look.keys():
        return accounted
    return {**{part: value for part, value in look.items() if part not in accounted}, **accounted}


def by_vm(points: Iterable[RestorePoint]) -> dict[VmId, tuple[RestorePoint, ...]]:
    """Restore points by their VM, of each the oldest first."""
    found: dict[VmId, list[RestorePoint]] = {}
    for point in sorted(points, key=lambda one: one.taken_at):
        found.setdefault(point.vm, []).append(point)
    return {vm: tuple(several) for vm, several in found.items()}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A VM of the inventory under our id. `row` is what the state must remember of it, None when nothing changed."""

    vm: Vm
    row: VmRow | None = None
    new: bool = False
    alert: str = ""
    displaced: VmRow | None = None
    """The VM that stood at this address before, which therefore left."""


class _Left(Mapping[VmId, datetime]):
    """See `World.left`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getitem__(self, vm: VmId) -> datetime:
        row = None if vm in self._world.vms else self._world.rows.get(vm)
        if row is None or row.left_at is None or UNSEEN in row.accounted:
            raise KeyError(vm)
        return row.left_at

    def __iter__(self) -> Iterator[VmId]:
        here = self._world.vms
        rows = self._world.rows.items()
        return (vm for vm, row in rows if row.left_at is not None and vm not in here and UNSEEN not in row.accounted)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(slots=True)
class World:
    """See the module."""

    mint: Callable[[], VmId]
    book: Book = field(default_factory=Book)
    vms: dict[VmId, Vm] = field(default_factory=dict)
    rows: dict[VmId, VmRow] = field(default_factory=dict)
    runs: dict[VmId, RunRow] = field(default_factory=dict)
    history: dict[VmId, VmHistory] = field(default_factory=dict)
    points: dict[VmId, tuple[RestorePoint, ...]] = field(default_factory=dict)
    fired: dict[tuple[str, str, VmId], datetime] = field(default_factory=dict)
    jobs: OpenJobs = field(default_factory=OpenJobs)
    job_keys: dict[str, JobId] = field(default_factory=dict)
    """Which job stands for an idempotency key, settled jobs included."""
    complete: dict[str, datetime] = field(default_factory=dict)
    """When each vCenter's inventory was last seen in full."""
    alerts: dict[VmId, str] = field(default_factory=dict)
    moved: Callable[[VmId], None] = lambda vm: None
    """Told of each VM of which `vms` has another value, or none any more."""
    reading_on: dict[VmId, str] = field(default_factory=dict)
    """Of each VM that a run reads now the host on which it stood when the run began."""
    called_back: dict[VmId, int] = field(default_factory=dict)
    """How often in a row a VM's run gave way to a move; not remembered beyond the engine's end."""
    copies: dict[str, Mapping[VmId, tuple[RestorePoint, ...]]] = field(default_factory=dict)
    """The restore points of second copies by name, as they were listed last."""
    unseen_copies: set[str] = field(default_factory=set)
    """Second copies that were not listed yet."""
    unseen_repositories: set[str] = field(default_factory=set)
    """Further repositories of which the restore points were not listed yet."""
    vcenters: int = 0
    """How many vCenters are followed."""

    @property
    def inventory_known(self) -> bool:
        """Whether every inventory was seen in full: only then a VM that is not here is gone."""
        return len(self.complete) >= self.vcenters

    @property
    def left(self) -> Mapping[VmId, datetime]:
        """The VMs that left the inventory, and when: a view, as making a list for each event would cost too much.

        What was never seen here cannot leave: it may stand where only another engine of the repository looks.
        """
        return _Left(self)

    def load(self, recalled: Recalled) -> None:
        """Take over what the state holds, in place of what was known of it. VMs that are there stay."""
        self.rows = {row.id: row for row in recalled.rows}
        self.book = Book((row.id, row.traits) for row in self.rows.values())
        self.runs, self.fired = dict(recalled.runs), dict(recalled.fired)
        self.jobs.clear()
        self.jobs.update({job.id: job for job in recalled.jobs})
        self.job_keys = dict(recalled.job_keys)
        for vm in [vm for vm in self.vms if vm not in self.rows]:
            del self.vms[vm]  # who follows the jobs looks at this very table
        for vm in {*self.rows, *self.points, *self.runs}:
            self.refresh(vm)

    def facts(self, now: datetime) -> Facts:
        """What a rule may look at. A view on living tables: use it up before the next await."""
        return Facts(
            now=now,
            vms=self.vms,
            history=self.history,
            points=self.points,
            fired=self.fired,
            left=self.left,
            copies=self.copies,
            unseen_copies=tuple(sorted(self.unseen_copies)),
            unseen_repositories=tuple(sorted(self.unseen_repositories)),
        )

    def refresh(self, vm: VmId) -> None:
        """Make the history of a VM again from its restore points, runs and open jobs."""
        run = self.runs.get(vm, RunRow(vm))
        points = [p for p in self.points.get(vm, ()) if p.complete]
        mine = [job for job in self.jobs.of(vm) if job.kind is JobKind.BACKUP]
        successes = [t for t in (run.last_success, *(p.taken_at for p in points)) if t is not None]
        self.history[vm] = VmHistory(
            last_success=max(successes, default=None),
            last_attempt=run.last_attempt,
            last_failure=run.last_failure,
            consecutive_failures=run.consecutive_failures,
            running=any(job.state is JobState.RUNNING for job in mine),
            pending=any(job.state is JobState.PENDING for job in mine),
            reading_on=self.reading_on.get(vm, ""),
            called_back=self.called_back.get(vm, 0),
        )

    def reads(self, vm: VmId, host: str) -> None:
        """A run reads the VM, which stands on this host; none does any more where the host is empty."""
        self.reading_on.pop(vm, None)
        if host:
            self.reading_on[vm] = host
        self.refresh(vm)

    def gave_way(self, vm: VmId, times: int) -> None:
        """So often in a row by now the VM's run gave way to a move."""
        self.called_back.pop(vm, None)
        if times:
            self.called_back[vm] = times

    def set_points(self, vm: VmId, points: Iterable[RestorePoint]) -> None:
        """The restore points of one VM as the repository lists them now."""
        listed = tuple(sorted(points, key=lambda p: p.taken_at))
        if listed:
            self.points[vm] = listed
        else:
            self.points.pop(vm, None)
        self.refresh(vm)

    def set_copy(self, name: str, points: Mapping[VmId, tuple[RestorePoint, ...]]) -> None:
        """The restore points of a second copy as it lists them now, as `by_vm` makes them; a large list in a thread."""
        self.copies[name] = points
        self.unseen_copies.discard(name)

    def set_job(self, job: Job) -> None:
        """A job as it is now; settled ones are forgotten."""
        if job.state in (JobState.PENDING, JobState.RUNNING):
            self.jobs[job.id] = job
        else:
            self.jobs.pop(job.id, None)
        self.refresh(job.vm)

    def drop_job(self, job: Job) -> None:
        """This job was never written: forget it."""
        self.jobs.pop(job.id, None)
        self.refresh(job.vm)

    def forget_keys(self, job: JobId) -> dict[str, JobId]:
        """The job was given up: a new decision of the same key is a new job. Returns what is forgotten."""
        forgotten = {key: known for key, known in self.job_keys.items() if known == job}
        for key in forgotten:
            del self.job_keys[key]
        return forgotten

    def keep_keys(self, kept: Mapping[str, JobId], before: JobId) -> None:
        """Of the keys whose job was made before this one, only these may come again."""
        for key in [k for k, job in self.job_keys.items() if job < before and k not in kept and job not in self.jobs]:
            del self.job_keys[key]

    def set_run(self, run: RunRow) -> None:
        """What a VM's runs came to."""
        self.runs[run.vm] = run
        self.refresh(run.vm)

    def suspects(self, seen: Vm) -> list[VmId]:
        """Known VMs that stand elsewhere and that this one could be mistaken for; re-read them before `sight`."""
        match self.book.match(traits_of(seen), self._elsewhere(seen.address)):
            case Known():
                return []
            case unknown:
                return [vm for vm in unknown.candidates if vm in self.vms]

    def sight(self, seen: Vm, now: datetime) -> Sighting:
        """Put a VM of the inventory (provisional id) into the world under our id."""
        traits = traits_of(seen)
        found = self.book.match(traits, self._elsewhere(seen.address))
        alert = ""
        if isinstance(found, Known):
            vm_id, new = found.vm, False
        else:
            vm_id, new, alert = self.mint(), True, found.alert
        vm = replace(seen, id=vm_id)
        if vm == self.vms.get(vm_id):
            vm = self.vms[vm_id]  # the policies' index remembers its answers by the value's identity
        here = self.book.at(seen.address)
        displaced = None if here in (None, vm_id) else self.leave(seen.address, now)
        self.book.note(vm_id, traits)
        old = self.rows.get(vm_id)
        accounted = {} if old is None else _with_new_parts(old.accounted, vm)
        accounted = {part: value for part, value in accounted.items() if part != UNSEEN}
        row = VmRow(vm_id, self.book.traits(vm_id), accounted, now if old is None else old.first_seen)
        self.vms[vm_id] = vm
        self.moved(vm_id)
        if alert:
            self.alerts[vm_id] = alert
        if row == old:
            return Sighting(vm, displaced=displaced)
        self.rows[vm_id] = row
        self.history.setdefault(vm_id, VmHistory())
        return Sighting(vm, row, new, alert, displaced)

    def differs(self, seen: Vm) -> bool:
        """Whether a VM of the inventory (provisional id) is another, or looks otherwise, than the one known there."""
        known = self.book.at(seen.address)
        return known is None or self.vms.get(known) != replace(seen, id=known)

    def leave(self, address: Address, now: datetime) -> VmRow | None:
        """The VM at this address is gone; its row with the tombstone, None when none was known there."""
        vm_id = self.book.at(address)
        if vm_id is None or vm_id not in self.rows:
            return None
        if self.vms.pop(vm_id, None) is not None:
            self.moved(vm_id)
        row = self.rows[vm_id]
        if row.left_at is None:
            row = replace(row, left_at=now)
            self.rows[vm_id] = row
        return row

    def long_gone(self, before: datetime) -> list[VmId]:
        """VMs that left before this time and of which nothing is kept."""
        wanted = self.points.keys() | {job.vm for job in self.jobs.values()}
        return [
            row.id
            for row in self.rows.values()
            if row.left_at is not None and row.left_at < before and row.id not in wanted
        ]

    def forget(self, vms: Iterable[VmId]) -> None:
        """Know these VMs no more."""
        for vm in vms:
            self.book.drop(vm)
            for table in (self.rows, self.runs, self.history, self.alerts, self.called_back):
                table.pop(vm, None)

    def account(self, vm: VmId, parts: Iterable[str]) -> VmRow | None:
        """These parts of the VM's look are explained; the changed row, None when it is not there."""
        seen, row = self.vms.get(vm), self.rows.get(vm)
        if seen is None or row is None:
            return None
        look = look_of(seen)
        accounted = {k: v for k, v in row.accounted.items() if k != GONE}
        return self._accounted(row, {**accounted, **{part: look[part] for part in parts}})

    def account_all(self, vm: VmId) -> VmRow | None:
        """Everything about how the VM looks now is explained."""
        seen = self.vms.get(vm)
        return None if seen is None else self.account(vm, look_of(seen))

    def account_gone(self, vm: VmId) -> VmRow | None:
        """That the VM left is explained; nothing of its look is, should it come back."""
        row = self.rows.get(vm)
        if row is None:
            return None
        kept = {k: v for k, v in row.accounted.items() if k in (MISSED, UNSEEN)}
        return self._accounted(row, {**kept, GONE: "yes"})

    def count_missed(self, vm: VmId, number: int) -> None:
        """So many events of this VM were found only by comparing; numbers them for ever."""
        row = self.rows[vm]
        self._accounted(row, {**row.accounted, MISSED: str(number)})

    def _accounted(self, row: VmRow, accounted: Mapping[str, str]) -> VmRow:
        changed = replace(row, accounted=accounted)
        self.rows[row.id] = changed
        return changed

    def unexplained(self, vm: VmId) -> list[str]:
        """The parts of a VM's look that no event has explained; "new" or "gone" alone for its coming or leaving."""
        row, seen = self.rows.get(vm), self.vms.get(vm)
        if row is None:
            return []
        if seen is None:
            return ["gone"] if row.left_at is not None and GONE not in row.accounted else []
        look = look_of(seen)
        if not any(part in row.accounted for part in look):
            return ["new"]
        return [part for part, value in look.items() if part in row.accounted and row.accounted[part] != value]

    def standing_in(self, vcenter: str) -> list[Address]:
        """Where the VMs of this vCenter stand that have not left as far as we know."""
        return [
            row.traits.address
            for row in self.rows.values()
            if row.left_at is None and row.traits.address is not None and row.traits.address.vcenter == vcenter
        ]

    def named(self, name: str) -> list[VmId]:
        """VMs of this name or id: those that are there, else those that left or are known from restore points."""
        if VmId(name) in self.rows or VmId(name) in self.points:
            return [VmId(name)]
        present = [vm.id for vm in self.vms.values() if vm.name == name]
        if present:
            return present
        gone = [row.id for row in self.rows.values() if row.traits.name == name]
        return gone or [vm for vm, points in self.points.items() if points and points[-1].vm_name == name]

    def _elsewhere(self, address: Address) -> Callable[[VmId], bool]:
        return lambda vm: vm in self.vms and self.vms[vm].address != address
