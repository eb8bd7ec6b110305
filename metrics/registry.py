"""Every metric of Backstay. The engine calls one small method per thing that happened.

All names start with `backstay_`, counters end in `_total`, times are seconds, sizes bytes. A label is either one of a
fixed set of values or bounded by the configuration (policies, repositories, vCenters); only the coverage metrics carry
VMs, up to a limit. A value outside a fixed set is counted as "other", so that nothing from outside can make series.
Methods may be called from any thread and never fail because of what they are given.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from metrics.coverage import COVERAGE_SERIES, CoverageCollector
from metrics.labels import (
    CONSISTENCIES,
    DENIALS,
    DISTRUST_REASONS,
    EVENT_SOURCES,
    EVENT_TYPES,
    FULL_READ_REASONS,
    GAP_SOURCES,
    OPERATION_RESULTS,
    OPERATIONS,
    OTHER,
    PEERS,
    PLACEMENTS,
    RUN_RESULTS,
    SAMPLE_RESULTS,
    STAGES,
    TRACKING_CHECKS,
    TRANSPORTS,
    Durability,
    SeriesDoc,
    SnapshotState,
    VmCoverage,
)
from metrics.making import PREFIX, Maker, one_of, stamp
from metrics.notices import NoticeMetrics
from metrics.rehearsals import RehearsalMetrics
from metrics.repositories import RepositoryMetrics
from metrics.snapshots import SnapshotMetrics

__all__ = ["PREFIX", "Metrics"]

VM_SERIES_LIMIT = 5_000
"""VMs that get series of their own: about seven each, so that one engine stays below 40,000 series."""

RUN_SECONDS = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 2_400.0, 4_800.0, 9_600.0, 19_200.0)


class Metrics:
    """All metrics of one engine on a registry of their own. Make one, in the composition root."""

    def __init__(
        self,
        *,
        version: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        vm_series_limit: int = VM_SERIES_LIMIT,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        self.reference: list[SeriesDoc] = list(COVERAGE_SERIES)
        self._policies: frozenset[str] = frozenset()
        self._now = now
        self._coverage = CoverageCollector(PREFIX, vm_series_limit, now)
        self.registry.register(self._coverage)
        ProcessCollector(namespace="backstay", registry=self.registry)

        maker = Maker(self.registry, self.reference)
        counter, gauge = maker.counter, maker.gauge
        self.notices = NoticeMetrics(maker)
        self.rehearsals = RehearsalMetrics(maker)
        # The engine
        build = gauge("build_info", "Always 1; the version that runs", version=(), python=())
        self._connected = gauge("connected", "1 while the connection to the peer stands", peer=PEERS)
        self._reconnects = counter("reconnects_total", "Connections that had to be made again", peer=PEERS)
        self._clock_skew = gauge("clock_skew_seconds", "The peer's clock minus ours", peer=PEERS)
        self._queue_depth = gauge("queue_depth", "Jobs that wait")
        self._jobs_running = gauge("jobs_running", "Jobs that run")
        self._queue_late = gauge("queue_late", "Backups that wait past their deadline", policy=())
        self._queue_overloaded = gauge("queue_overloaded", "1 while what is due cannot all be done by its deadlines")
        self._jobs_quarantined = gauge("jobs_quarantined", "VMs set aside after an error that trying again cannot mend")
        # Policies
        self._policies_loaded = gauge("policies", "Policies in force")
        self._load_errors = gauge(
            "policy_load_errors", "Errors in the policy files as they are now; the last good set stays"
        )
        self._pending = gauge("reload_pending_changes", "Changes that wait for `backstay policy apply`")
        self._pending_since = gauge(
            "reload_pending_since_timestamp_seconds", "Since when a reload waits; 0 when none does"
        )
        # Runs
        self._runs = counter("runs_total", "Backup runs that ended", policy=(), result=RUN_RESULTS)
        self._run_seconds = maker.histogram("run_duration_seconds", "How long backup runs took", RUN_SECONDS, policy=())
        self._stage_seconds = counter("run_stage_seconds_total", "Time spent in each stage of all runs", stage=STAGES)
        self._bytes_read = counter("bytes_read_total", "Read from disks by runs", policy=())
        self._bytes_stored = counter("bytes_stored_total", "Written to repositories by runs, compressed", policy=())
        self._bytes_deduplicated = counter("bytes_deduplicated_total", "Read, and found in the repository", policy=())
        self._bytes_zero = counter("bytes_zero_total", "Read, and found to be zero", policy=())
        self._full_reads = counter("full_reads_total", "Disks read whole, and why", reason=FULL_READ_REASONS)
        self._incremental_reads = counter("incremental_reads_total", "Disks of which only what changed was read")
        lost = "Times that a VM's change tracking lost our trust"
        self._distrusted = counter("tracking_distrusted_total", lost, reason=DISTRUST_REASONS)
        self._checks = counter(
            "tracking_checks_total", "Disks whose change tracking was held against a full read", result=TRACKING_CHECKS
        )
        told = "Blocks that change tracking calls unchanged, read again and compared"
        self._sampled = counter("tracking_sampled_blocks_total", told, result=SAMPLE_RESULTS)
        self._untold = counter("tracking_untold_bytes_total", "Changed, though change tracking called it unchanged")
        self._transports = counter("disks_read_total", "Disks read, by the transport that worked", transport=TRANSPORTS)
        self._transport_fallbacks = counter(
            "transport_fallbacks_total",
            "Times that a transport failed and the next was tried",
            transport=TRANSPORTS,
        )
        self._consistency_fallbacks = counter(
            "consistency_fallbacks_total", "Runs that reached less than the policy asks for", achieved=CONSISTENCIES
        )
        self._placed = counter(
            "runs_to_be_kept_in_place_total",
            "Runs whose policies keep their VM from moving, and whether vCenter let them",
            placement=PLACEMENTS,
        )
        self._operations = counter(
            "operations_total", "Restores and maintenance that ended", operation=OPERATIONS, result=OPERATION_RESULTS
        )
        # Events
        self._events = counter("events_total", "Events taken into the journal", type=EVENT_TYPES)
        self._event_lag = gauge(
            "event_lag_seconds", "From the newest event's own time to its entry in the journal", source=EVENT_SOURCES
        )
        self._event_alive = gauge(
            "event_source_alive_timestamp_seconds", "When the source last answered, with events or without", source=()
        )
        self._found_by_reconcile = counter(
            "events_found_by_reconcile_total",
            "Changes that no event told, seen in the inventory",
            type=EVENT_TYPES,
        )
        self._event_gaps = counter("event_gaps_total", "Gaps found in an event stream", source=GAP_SOURCES)
        self._messages_refused = counter("messages_refused_total", "Messages put aside as dead letters", reason=DENIALS)
        self._nats_durability = gauge(
            "nats_durability",
            "1 for what is known of the server: does it write to disk before it acknowledges",
            state=tuple(Durability),
        )
        self.standing = SnapshotMetrics(maker)
        self.repositories = RepositoryMetrics(maker, now)

        build.labels(version=version, python=platform.python_version()).set(1)
        self.nats_durability(Durability.UNKNOWN)

    # What the engine tells

    def cover(self, vms: Iterable[VmCoverage]) -> None:
        """Show this coverage from now on: every VM that the engine knows, in one go."""
        self._coverage.show(vms)

    def policies_loaded(self, names: Iterable[str]) -> None:
        """These policies are in force: their series start at 0, those of policies that are gone end."""
        wanted = frozenset(names)
        for gone in self._policies - wanted:
            for result in RUN_RESULTS:
                self._runs.remove(gone, result)
            for metric in self._per_policy():
                metric.remove(gone)
        for name in wanted - self._policies:
            for result in RUN_RESULTS:
                self._runs.labels(name, result)
            for metric in self._per_policy():
                metric.labels(name)
        self._policies = wanted
        self._policies_loaded.set(len(wanted))

    def policy_files_checked(self, errors: int) -> None:
        """The policy files were read; this many errors are in them now."""
        self._load_errors.set(errors)

    def reload_pending(self, changes: int, since: datetime | None) -> None:
        """This many changes wait for a confirmation since then; 0 and None when none do."""
        self._pending.set(changes)
        self._pending_since.set(stamp(since))

    def queue(self, *, waiting: int, running: int, quarantined: int = 0) -> None:
        """The job queue as it is now."""
        self._queue_depth.set(waiting)
        self._jobs_running.set(running)
        self._jobs_quarantined.set(quarantined)

    def lateness(self, late: Mapping[str, int], *, overloaded: bool) -> None:
        """How many backups of each policy wait past their deadline, and whether the queue is overloaded."""
        for policy in self._policies:
            self._queue_late.labels(policy).set(late.get(policy, 0))
        self._queue_overloaded.set(overloaded)

    def run_finished(
        self,
        policy: str,
        result: str,
        seconds: float,
        *,
        read: int = 0,
        stored: int = 0,
        deduplicated: int = 0,
        zero: int = 0,
    ) -> None:
        """One backup run ended; sizes in bytes. A policy that is not in force counts as "other"."""
        policy = policy if policy in self._policies else OTHER
        self._runs.labels(policy, one_of(result, RUN_RESULTS)).inc()
        self._run_seconds.labels(policy).observe(seconds)
        self._bytes_read.labels(policy).inc(read)
        self._bytes_stored.labels(policy).inc(stored)
        self._bytes_deduplicated.labels(policy).inc(deduplicated)
        self._bytes_zero.labels(policy).inc(zero)

    def stage(self, stage: str, seconds: float) -> None:
        """A stage of a run took this long; threads that work side by side each add their own."""
        self._stage_seconds.labels(one_of(stage, STAGES)).inc(max(seconds, 0.0))

    def disk_read(self, transport: str, *, whole: str = "") -> None:
        """One disk was read by this transport; `whole` is the kind of reason for a full read, else empty."""
        self._transports.labels(one_of(transport, TRANSPORTS)).inc()
        if whole:
            self._full_reads.labels(one_of(whole, FULL_READ_REASONS)).inc()
        else:
            self._incremental_reads.inc()

    def transport_failed(self, transport: str) -> None:
        """This transport did not work for a disk; the next one is tried."""
        self._transport_fallbacks.labels(one_of(transport, TRANSPORTS)).inc()

    def consistency_fell_back(self, achieved: str) -> None:
        """A run reached this consistency, which is less than its policy asked for."""
        self._consistency_fallbacks.labels(one_of(achieved, CONSISTENCIES)).inc()

    def placed(self, *, kept: bool) -> None:
        """A run that was to keep its VM in its place could do so, or not."""
        self._placed.labels("kept" if kept else "not_kept").inc()

    def tracking_distrusted(self, reason: str) -> None:
        """Change tracking of a VM is not trusted any more; `reason` is a kind, not a sentence."""
        self._distrusted.labels(one_of(reason, DISTRUST_REASONS)).inc()

    def tracking_checked(self, result: str, untold: int) -> None:
        """Change tracking of a disk was held against what was read; so many bytes had changed without its saying so."""
        self._checks.labels(one_of(result, TRACKING_CHECKS)).inc()
        self._untold.inc(untold)

    def tracking_sampled(self, blocks: int, *, differ: int) -> None:
        """So many blocks that change tracking calls unchanged were read again; of these so many had changed."""
        self._sampled.labels("agreed").inc(blocks - differ)
        self._sampled.labels("differed").inc(differ)

    def operation_finished(self, operation: str, result: str) -> None:
        """A restore or a piece of maintenance ended."""
        self._operations.labels(one_of(operation, OPERATIONS), one_of(result, OPERATION_RESULTS)).inc()

    def event_seen(self, type: str, source: str, lag_seconds: float) -> None:
        """An event of this type entered the journal, so long after its own time."""
        source = one_of(source, EVENT_SOURCES)
        self._events.labels(one_of(type, EVENT_TYPES)).inc()
        self._event_lag.labels(source).set(lag_seconds)

    def event_source_alive(self, source: str) -> None:
        """The source answered just now. The first call starts the watch: from then on silence is an alert."""
        self._event_alive.labels(one_of(source, EVENT_SOURCES)).set(self._now().timestamp())

    def event_found_by_reconcile(self, type: str) -> None:
        """A change of this type was found in the inventory that no event had told."""
        self._found_by_reconcile.labels(one_of(type, EVENT_TYPES)).inc()

    def event_gap(self, source: str) -> None:
        """Events of this source are missing; a reconcile heals it."""
        self._event_gaps.labels(one_of(source, GAP_SOURCES)).inc()

    def message_refused(self, reason: str) -> None:
        """A message became a dead letter; `reason` is a kind, not a sentence."""
        self._messages_refused.labels(one_of(reason, DENIALS)).inc()

    def connection(self, peer: str, *, up: bool) -> None:
        """The connection to the peer stands, or not."""
        self._connected.labels(one_of(peer, PEERS)).set(up)

    def reconnected(self, peer: str) -> None:
        """A lost connection was made again."""
        self._reconnects.labels(one_of(peer, PEERS)).inc()

    def clock_skew(self, peer: str, seconds: float) -> None:
        """The peer's clock runs this far before ours."""
        self._clock_skew.labels(one_of(peer, PEERS)).set(seconds)

    def nats_durability(self, known: Durability) -> None:
        """What is known of the NATS server's disk writes."""
        for state in Durability:
            self._nats_durability.labels(state).set(state is known)

    def snapshots(self, state: SnapshotState) -> None:
        """The snapshots of one vCenter as the inventory shows them now."""
        self.standing.seen(state)

    # How they are made

    def _per_policy(self) -> Sequence[Counter | Gauge | Histogram]:
        stored = (self._bytes_read, self._bytes_stored, self._bytes_deduplicated, self._bytes_zero)
        return (self._queue_late, self._run_seconds, *stored)
