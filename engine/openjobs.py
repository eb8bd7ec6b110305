"""The open jobs in memory, found by id and by VM. Who follows them hears of each change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

from engine.jobs import Job, JobId, JobKind, JobState
from policies.facts import VmId


class OpenJobs(MutableMapping[JobId, Job]):
    """Pending and running jobs by id. `heard` is told the job that was there and the one that is, if any."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._of: dict[VmId, dict[JobId, Job]] = {}
        self.heard: Callable[[Job | None, Job | None], None] = lambda before, after: None

    def __getitem__(self, id: JobId) -> Job:
        return self._jobs[id]

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def __setitem__(self, id: JobId, job: Job) -> None:
        before = self._jobs.get(id)
        if before is not None:
            self._leave(before)
        self._jobs[id] = job
        self._of.setdefault(job.vm, {})[id] = job
        self.heard(before, job)

    def __delitem__(self, id: JobId) -> None:
        before = self._jobs.pop(id)
        self._leave(before)
        self.heard(before, None)

    def of(self, vm: VmId) -> tuple[Job, ...]:
        """The open jobs of one VM."""
        return tuple(self._of.get(vm, {}).values())

    def waiting_backup(self, vm: VmId) -> Job | None:
        """The backup of this VM that waits, if one does."""
        return next((j for j in self.of(vm) if j.kind is JobKind.BACKUP and j.state is JobState.PENDING), None)

    def _leave(self, job: Job) -> None:
        mine = self._of[job.vm]
        del mine[job.id]
        if not mine:
            del self._of[job.vm]
