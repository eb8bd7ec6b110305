"""How well each VM is covered, made at each scrape from plain values: a VM that is gone leaves no series behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from metrics.labels import CoverageState, SeriesDoc, VmCoverage

_VM = (("vcenter", ()), ("vm_id", ()), ("vm", ()))
_VCENTER = (("vcenter", ()),)

PROTECTED = SeriesDoc(
    "vm_protected",
    "gauge",
    "1 when a policy protects the VM, 0 when none does, absent when one excludes it",
    _VM,
)
LAST_SUCCESS = SeriesDoc(
    "vm_last_success_timestamp_seconds", "gauge", "When the newest complete restore point was taken; 0 for never", _VM
)
RPO = SeriesDoc("vm_rpo_seconds", "gauge", "The RPO that the VM's policy promises; absent where none does", _VM)
RPO_SLACK = SeriesDoc(
    "vm_rpo_slack_seconds", "gauge", "Time left until the RPO is missed; below 0 it is missed by that much", _VM
)
FAILURES = SeriesDoc("vm_consecutive_failures", "gauge", "Failed runs since the last good one", _VM)
UNPROTECTED_DISKS = SeriesDoc(
    "vm_unprotected_disks", "gauge", "Disks of the VM that no snapshot can hold and no policy leaves out", _VM
)
REHEARSED = SeriesDoc(
    "vm_rehearsal_last_success_timestamp_seconds",
    "gauge",
    "When restoring the VM was last tried and passed; 0 for never, absent where nobody wants it tried",
    _VM,
)
REHEARSAL_SECONDS = SeriesDoc("vm_rehearsal_seconds", "gauge", "How long the VM's newest rehearsal took", _VM)
INFO = SeriesDoc(
    "vm_info", "gauge", "Always 1; joins a VM with its policy and its moRef", (*_VM, ("policy", ()), ("moref", ()))
)
VMS = SeriesDoc("vms", "gauge", "VMs that the engine knows", _VCENTER)
VMS_UNPROTECTED = SeriesDoc("vms_unprotected", "gauge", "VMs that no policy protects or excludes", _VCENTER)
VMS_EXCLUDED = SeriesDoc("vms_excluded", "gauge", "VMs that a policy excludes on purpose", _VCENTER)
SERIES_DROPPED = SeriesDoc(
    "vm_series_dropped", "gauge", "VMs left out of the per-VM metrics because there are more than the limit"
)

COVERAGE_SERIES: tuple[SeriesDoc, ...] = (
    PROTECTED,
    LAST_SUCCESS,
    RPO,
    RPO_SLACK,
    FAILURES,
    UNPROTECTED_DISKS,
    REHEARSED,
    REHEARSAL_SECONDS,
    INFO,
    VMS,
    VMS_UNPROTECTED,
    VMS_EXCLUDED,
    SERIES_DROPPED,
)


class CoverageCollector(Collector):
    """The last coverage shown, with the RPO slack worked out at each scrape.

    Over `limit` VMs the ones in trouble keep their series: unprotected first, then failing, then never backed up,
    then the oldest. Totals count all of them.
    """

    def __init__(self, prefix: str, limit: int, now: Callable[[], datetime]) -> None:
        self._prefix = prefix
        self._limit = limit
        self._now = now
        self._vms: tuple[VmCoverage, ...] = ()
        self._shown: tuple[VmCoverage, ...] = ()
        self._vcenters: frozenset[str] = frozenset()

    def show(self, vms: Iterable[VmCoverage]) -> None:
        """Replace everything at once. VMs that are not named any more lose their series; vCenters keep their totals."""
        every = tuple({(vm.vcenter, vm.vm_id): vm for vm in vms}.values())
        self._vcenters |= {vm.vcenter for vm in every}
        self._shown = every if len(every) <= self._limit else tuple(sorted(every, key=_urgency)[: self._limit])
        self._vms = every

    def describe(self) -> Iterable[Metric]:
        """The names, so that registering does not collect."""
        return [self._family(doc) for doc in COVERAGE_SERIES]

    def collect(self) -> Iterator[Metric]:
        """Called at each scrape, from any thread."""
        now, every, shown = self._now(), self._vms, self._shown
        yield self._per_vm(PROTECTED, shown, _protected)
        yield self._per_vm(LAST_SUCCESS, shown, lambda vm: vm.last_success.timestamp() if vm.last_success else 0.0)
        yield self._per_vm(RPO, shown, lambda vm: vm.rpo_seconds)
        yield self._per_vm(RPO_SLACK, shown, lambda vm: _slack(vm, now))
        yield self._per_vm(FAILURES, shown, lambda vm: float(vm.consecutive_failures))
        yield self._per_vm(UNPROTECTED_DISKS, shown, lambda vm: float(vm.unprotected_disks))
        yield self._per_vm(REHEARSED, shown, lambda vm: vm.rehearsed)
        yield self._per_vm(REHEARSAL_SECONDS, shown, lambda vm: vm.rehearsal_seconds)
        info = self._family(INFO)
        for vm in shown:
            info.add_metric([vm.vcenter, vm.vm_id, vm.vm, vm.policy, vm.moref], 1.0)
        yield info
        yield self._per_vcenter(VMS, every, lambda vm: True)
        yield self._per_vcenter(VMS_UNPROTECTED, every, lambda vm: vm.state is CoverageState.UNPROTECTED)
        yield self._per_vcenter(VMS_EXCLUDED, every, lambda vm: vm.state is CoverageState.EXCLUDED)
        dropped = self._family(SERIES_DROPPED)
        dropped.add_metric([], float(len(every) - len(shown)))
        yield dropped

    def _family(self, doc: SeriesDoc) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._prefix + doc.name, doc.help, labels=[name for name, _ in doc.labels])

    def _per_vm(self, doc: SeriesDoc, vms: Iterable[VmCoverage], value: Callable[[VmCoverage], float | None]) -> Metric:
        family = self._family(doc)
        for vm in vms:
            if (number := value(vm)) is not None:
                family.add_metric([vm.vcenter, vm.vm_id, vm.vm], number)
        return family

    def _per_vcenter(self, doc: SeriesDoc, vms: Iterable[VmCoverage], wanted: Callable[[VmCoverage], bool]) -> Metric:
        counts = dict.fromkeys(sorted(self._vcenters), 0)
        for vm in vms:
            counts[vm.vcenter] = counts.get(vm.vcenter, 0) + wanted(vm)
        family = self._family(doc)
        for vcenter, count in counts.items():
            family.add_metric([vcenter], float(count))
        return family


def _slack(vm: VmCoverage, now: datetime) -> float | None:
    if vm.rpo_seconds is None:
        return None
    return vm.rpo_seconds - (now - (vm.last_success or vm.known_since)).total_seconds()


def _protected(vm: VmCoverage) -> float | None:
    return None if vm.state is CoverageState.EXCLUDED else float(vm.state is CoverageState.PROTECTED)


def _urgency(vm: VmCoverage) -> tuple[int, int, float, str]:
    order = (CoverageState.UNPROTECTED, CoverageState.PROTECTED, CoverageState.EXCLUDED)
    oldest = vm.last_success.timestamp() if vm.last_success else 0.0
    return (order.index(vm.state), -vm.consecutive_failures, oldest, vm.vm_id)
