"""What the inventory shows of snapshots and of disks that none holds."""

from __future__ import annotations

from metrics.labels import OTHER, SnapshotState
from metrics.making import Maker, one_of, stamp

WHEN = ("before", "during", OTHER)
STUNS = ("creation", "removal", OTHER)

STUN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From what a quiet datastore takes to what makes people call; clusters take 5 to 10 s."""


class SnapshotMetrics:
    """The series of snapshots, by vCenter."""

    def __init__(self, maker: Maker) -> None:
        self._orphans = maker.gauge("orphan_snapshots", "Snapshots of ours that no run owns", vcenter=())
        self._oldest_orphan = maker.gauge(
            "orphan_snapshot_oldest_timestamp_seconds",
            "When the oldest snapshot of ours that no run owns was made; 0 when there is none",
            vcenter=(),
        )
        self._own = maker.gauge("own_snapshots", "Snapshots of ours, those of runs under way included", vcenter=())
        self._oldest_own = maker.gauge(
            "own_snapshot_oldest_timestamp_seconds",
            "When the oldest snapshot of ours was made, whether a run uses it or not; 0 when there is none",
            vcenter=(),
        )
        self._foreign = maker.gauge("foreign_snapshots", "Snapshots that are not ours", vcenter=())
        self._oldest_foreign = maker.gauge(
            "foreign_snapshot_oldest_timestamp_seconds",
            "When the oldest snapshot that is not ours was made; 0 when there is none",
            vcenter=(),
        )
        self._old_foreign = maker.gauge(
            "foreign_snapshots_old",
            "Snapshots that are not ours and older than limits.foreign_snapshot_age",
            vcenter=(),
        )
        self._deepest = maker.gauge("snapshot_chain_depth", "The longest chain of snapshots of a VM", vcenter=())
        self._full = maker.gauge(
            "datastores_without_room",
            "Datastores with disks of protected VMs and less free space than limits.datastore_free",
            vcenter=(),
        )
        self._refused = maker.counter(
            "runs_without_room_total",
            "Runs that found no room on a datastore before their snapshot, or that ended for it while it stood",
            when=WHEN,
        )
        self._least_free = maker.gauge(
            "datastore_least_free_ratio", "The share that is free on the fullest datastore", vcenter=()
        )
        self._unprotected_disks = maker.gauge("unprotected_disks", "Disks that no snapshot can hold", vcenter=())
        self._left_out_disks = maker.gauge("left_out_disks", "Disks that policies leave out of backups", vcenter=())
        self._stuns = maker.histogram(
            "guest_stun_seconds",
            "How long guests stood still, each time, when their snapshot was made or removed",
            STUN_SECONDS,
            when=STUNS,
        )
        for when in STUNS[:2]:
            self._stuns.labels(when)
        self._consolidation = maker.gauge(
            "vms_need_consolidation", "VMs whose disks wait for consolidation", vcenter=()
        )

    def no_room(self, when: str) -> None:
        """A run found no room, "before" its snapshot or "during" it."""
        self._refused.labels(one_of(when, WHEN)).inc()

    def stood_still(self, when: str, seconds: float) -> None:
        """A guest stood still so long at the "creation" or the "removal" of a snapshot."""
        self._stuns.labels(one_of(when, STUNS)).observe(seconds)

    def seen(self, state: SnapshotState) -> None:
        """One vCenter as its inventory is now."""
        self._orphans.labels(state.vcenter).set(state.orphans)
        self._oldest_orphan.labels(state.vcenter).set(stamp(state.oldest_orphan))
        self._foreign.labels(state.vcenter).set(state.foreign)
        self._oldest_foreign.labels(state.vcenter).set(stamp(state.oldest_foreign))
        self._own.labels(state.vcenter).set(state.own)
        self._oldest_own.labels(state.vcenter).set(stamp(state.oldest_own))
        self._old_foreign.labels(state.vcenter).set(state.old_foreign)
        self._deepest.labels(state.vcenter).set(state.deepest_chain)
        self._full.labels(state.vcenter).set(state.full_datastores)
        if state.least_free_share is not None:
            self._least_free.labels(state.vcenter).set(state.least_free_share)
        self._unprotected_disks.labels(state.vcenter).set(state.unprotected_disks)
        self._left_out_disks.labels(state.vcenter).set(state.left_out_disks)
        self._consolidation.labels(state.vcenter).set(state.need_consolidation)
