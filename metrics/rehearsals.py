"""What rehearsals came to: restore points that were restored into trial VMs."""

from __future__ import annotations

from collections.abc import Mapping

from metrics.making import Maker

RESULTS = ("passed", "failed")

SECONDS = (30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 2_400.0, 4_800.0, 9_600.0, 19_200.0, 38_400.0)


class RehearsalMetrics:
    """The series of rehearsals. Those of each VM are among the coverage."""

    def __init__(self, maker: Maker) -> None:
        self._ended = maker.counter("rehearsals_total", "Rehearsals that ended", result=RESULTS)
        self._seconds = maker.histogram("rehearsal_duration_seconds", "How long rehearsals that passed took", SECONDS)
        self._vms = maker.gauge(
            "rehearsal_vms", "VMs with a good restore point that the policy wants rehearsed", policy=()
        )
        self._overdue = maker.gauge(
            "rehearsal_overdue_vms", "VMs whose rehearsal did not pass for longer than the policy wants", policy=()
        )
        self._failed = maker.gauge("rehearsal_failed_vms", "VMs whose newest rehearsal did not pass", policy=())

    def ended(self, *, passed: bool, seconds: float) -> None:
        """One ended."""
        self._ended.labels("passed" if passed else "failed").inc()
        if passed:
            self._seconds.observe(seconds)

    def stand(self, policies: Mapping[str, tuple[int, int, int]]) -> None:
        """For each policy that wants rehearsals: its VMs, those overdue, those that failed. The others' series end."""
        for metric in (self._vms, self._overdue, self._failed):
            metric.clear()
        for policy, (vms, overdue, failed) in policies.items():
            self._vms.labels(policy).set(vms)
            self._overdue.labels(policy).set(overdue)
            self._failed.labels(policy).set(failed)
