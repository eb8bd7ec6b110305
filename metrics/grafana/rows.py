"""What the dashboard shows, row by row: panels and their expressions, as values."""

from __future__ import annotations

from dataclasses import dataclass

ENGINE = 'job=~"$job"'
VCENTER = 'job=~"$job",vcenter=~"$vcenter"'
POLICY = 'job=~"$job",policy=~"$policy"'
WITH_POLICY = (
    f"* on (job, instance, vcenter, vm_id) group_left (policy) backstay_vm_info{{{VCENTER},{POLICY.partition(',')[2]}}}"
)

GREEN_THEN_RED = (("green", None), ("red", 1.0))
PLAIN = (("green", None),)
RED_BELOW_ZERO = (("red", None), ("green", 0.0))


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and how its series are named."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Number:
    """One figure, large."""

    title: str
    query: Query
    unit: str = "short"
    steps: tuple[tuple[str, float | None], ...] = PLAIN
    description: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Series over time."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    stacked: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A table of the newest values."""

    title: str
    query: Query
    unit: str = "short"
    steps: tuple[tuple[str, float | None], ...] = PLAIN
    description: str = ""


Panel = Number | Curve | Listing

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Coverage",
        (
            Number("VMs", Query(f"sum(backstay_vms{{{VCENTER}}})")),
            Number("Unprotected", Query(f"sum(backstay_vms_unprotected{{{VCENTER}}})"), steps=GREEN_THEN_RED),
            Number(
                "Past their RPO",
                Query(f"count(backstay_vm_rpo_slack_seconds{{{VCENTER}}} < 0) or vector(0)"),
                steps=GREEN_THEN_RED,
            ),
            Number(
                "Never backed up",
                Query(
                    f"count(backstay_vm_last_success_timestamp_seconds{{{VCENTER}}} == 0"
                    f" and backstay_vm_protected{{{VCENTER}}} == 1) or vector(0)"
                ),
                steps=GREEN_THEN_RED,
                description="VMs under a policy that have no restore point yet",
            ),
            Number("Damaged objects", Query(f"sum(backstay_damaged_objects{{{ENGINE}}})"), steps=GREEN_THEN_RED),
            Number(
                "Policy changes that wait",
                Query(f"sum(backstay_reload_pending_changes{{{ENGINE}}})"),
                steps=GREEN_THEN_RED,
                description="Changes that would take protection away; `backstay policy apply` confirms them",
            ),
            Listing(
                "VMs with the least time left until their RPO is missed",
                Query(f"bottomk(20, backstay_vm_rpo_slack_seconds{{{VCENTER}}} {WITH_POLICY})"),
                unit="s",
                steps=RED_BELOW_ZERO,
            ),
            Curve(
                "Least RPO slack of each policy",
                (Query(f"min by (policy) (backstay_vm_rpo_slack_seconds{{{VCENTER}}} {WITH_POLICY})", "{{policy}}"),),
                unit="s",
            ),
        ),
    ),
    (
        "Runs",
        (
            Curve(
                "Runs that ended, per hour",
                (Query(f"sum by (result) (increase(backstay_runs_total{{{POLICY}}}[1h]))", "{{result}}"),),
                stacked=True,
            ),
            Curve(
                "How long runs take",
                tuple(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le)"
                        f" (rate(backstay_run_duration_seconds_bucket{{{POLICY}}}[6h])))",
                        f"{percent} of 100 are faster",
                    )
                    for quantile, percent in ((0.5, 50), (0.95, 95))
                ),
                unit="s",
            ),
            Curve(
                "Where the time goes",
                (
                    Query(
                        f"sum by (stage) (rate(backstay_run_stage_seconds_total{{{ENGINE}}}[$__rate_interval]))",
                        "{{stage}}",
                    ),
                ),
                unit="s",
                stacked=True,
                description="Seconds per second: threads that work side by side add up",
            ),
            Curve(
                "Jobs",
                (
                    Query(f"sum(backstay_queue_depth{{{ENGINE}}})", "waiting"),
                    Query(f"sum(backstay_jobs_running{{{ENGINE}}})", "running"),
                    Query(f"sum(backstay_jobs_quarantined{{{ENGINE}}})", "set aside"),
                ),
            ),
            Curve(
                "Disks read, per hour",
                (
                    Query(
                        f"sum by (transport) (increase(backstay_disks_read_total{{{ENGINE}}}[1h])) > 0 or"
                        f" sum(increase(backstay_disks_read_total{{{ENGINE}}}[1h]))",
                        "{{transport}}",
                    ),
                    Query(f"sum(increase(backstay_transport_fallbacks_total{{{ENGINE}}}[1h]))", "transport fell back"),
                ),
            ),
            Curve(
                "Disks read whole, per day, and why",
                (
                    Query(
                        f"sum by (reason) (increase(backstay_full_reads_total{{{ENGINE}}}[1d]))",
                        "{{reason}}",
                    ),
                    Query(f"sum(increase(backstay_incremental_reads_total{{{ENGINE}}}[1d]))", "only what changed"),
                ),
                stacked=True,
            ),
        ),
    ),
    (
        "Data reduction",
        (
            Curve(
                "Bytes per second",
                tuple(
                    Query(f"sum(rate(backstay_bytes_{kind}_total{{{POLICY}}}[$__rate_interval]))", legend)
                    for kind, legend in (
                        ("read", "read"),
                        ("deduplicated", "found in the repository"),
                        ("zero", "zero"),
                        ("stored", "stored"),
                    )
                ),
                unit="Bps",
            ),
            Curve(
                "Stored per byte read, last day",
                (
                    Query(
                        f"sum(increase(backstay_bytes_stored_total{{{POLICY}}}[1d]))"
                        f" / sum(increase(backstay_bytes_read_total{{{POLICY}}}[1d]))",
                        "stored / read",
                    ),
                ),
                unit="percentunit",
            ),
            Number(
                "VM bytes per stored byte",
                Query(
                    f'sum(backstay_repository_size_bytes{{{ENGINE},kind="logical"}})'
                    f' / sum(backstay_repository_size_bytes{{{ENGINE},kind="stored"}})'
                ),
            ),
        ),
    ),
    (
        "Events",
        (
            Curve(
                "Events per hour",
                (Query(f"sum by (type) (increase(backstay_events_total{{{ENGINE}}}[1h])) > 0", "{{type}}"),),
                stacked=True,
            ),
            Curve(
                "Event lag", (Query(f"max by (source) (backstay_event_lag_seconds{{{ENGINE}}})", "{{source}}"),), "s"
            ),
            Curve(
                "Silence of each source",
                (
                    Query(
                        f"time() - max by (source) (backstay_event_source_alive_timestamp_seconds{{{ENGINE}}})",
                        "{{source}}",
                    ),
                ),
                "s",
            ),
            Curve(
                "What should not happen, per hour",
                (
                    Query(
                        f"sum(increase(backstay_events_found_by_reconcile_total{{{ENGINE}}}[1h]))", "found by reconcile"
                    ),
                    Query(f"sum(increase(backstay_event_gaps_total{{{ENGINE}}}[1h]))", "gaps"),
                    Query(f"sum(increase(backstay_messages_refused_total{{{ENGINE}}}[1h]))", "dead letters"),
                    Query(f"sum(increase(backstay_reconnects_total{{{ENGINE}}}[1h]))", "reconnects"),
                ),
            ),
            Curve(
                "Notices, per hour",
                (
                    Query(
                        f'sum by (target, result) (increase(backstay_notices_total{{{ENGINE},result!="other"}}[1h]))',
                        "{{target}} {{result}}",
                    ),
                ),
            ),
        ),
    ),
    (
        "Repository",
        (
            Curve(
                "Size",
                (
                    Query(f'backstay_repository_size_bytes{{{ENGINE},kind="stored"}}', "{{repository}} stored"),
                    Query(f"backstay_repository_free_bytes{{{ENGINE}}}", "{{repository}} free"),
                ),
                "bytes",
            ),
            Number(
                "Free in 4 days at the pace of the last day",
                Query(f"min(predict_linear(backstay_repository_free_bytes{{{ENGINE}}}[1d], 4 * 86400))"),
                "bytes",
                RED_BELOW_ZERO,
            ),
            Number("Restore points", Query(f"sum(backstay_restore_points{{{ENGINE}}})")),
            Number("Chunks", Query(f"sum(backstay_repository_chunks{{{ENGINE}}})")),
            Number(
                "Longest since a verification without damage",
                Query(f"time() - min(backstay_verify_last_success_timestamp_seconds{{{ENGINE}}} > 0)"),
                "s",
            ),
            Curve(
                "Oldest reading, as a share of what the policy wants",
                (
                    Query(
                        f"(time() - backstay_verify_oldest_reading_timestamp_seconds{{{POLICY}}})"
                        f" / backstay_verify_every_seconds{{{POLICY}}}"
                        f" * (backstay_verify_oldest_reading_timestamp_seconds{{{POLICY}}} > bool 0)",
                        "{{policy}}",
                    ),
                ),
                "percentunit",
            ),
            Number(
                "VMs whose rehearsal failed or is overdue",
                Query(
                    f"sum(backstay_rehearsal_failed_vms{{{POLICY}}}) + sum(backstay_rehearsal_overdue_vms{{{POLICY}}})"
                ),
            ),
            Curve(
                "Expired and reclaimed, per day",
                (Query(f"sum(increase(backstay_reclaimed_bytes_total{{{ENGINE}}}[1d]))", "reclaimed"),),
                "bytes",
            ),
        ),
    ),
    (
        "Snapshots in vCenter",
        (
            Curve(
                "Snapshots",
                (
                    Query(f"sum(backstay_orphan_snapshots{{{VCENTER}}})", "ours, without a run"),
                    Query(f"sum(backstay_foreign_snapshots{{{VCENTER}}})", "of others"),
                    Query(f"sum(backstay_vms_need_consolidation{{{VCENTER}}})", "VMs that need consolidation"),
                ),
            ),
            Curve(
                "Age of the oldest",
                tuple(
                    Query(
                        f"(time() - backstay_{kind}_snapshot_oldest_timestamp_seconds{{{VCENTER}}})"
                        f" * (backstay_{kind}_snapshot_oldest_timestamp_seconds{{{VCENTER}}} > bool 0)",
                        f"{{{{vcenter}}}} {legend}",
                    )
                    for kind, legend in (("orphan", "ours, without a run"), ("foreign", "of others"))
                ),
                "s",
            ),
            Curve(
                "How long guests stand still, last day",
                (
                    Query(
                        "histogram_quantile(0.95, sum by (le, when)"
                        f' (increase(backstay_guest_stun_seconds_bucket{{{ENGINE},when!="other"}}[1d])))',
                        "95 of 100 are shorter, {{when}}",
                    ),
                ),
                "s",
                description="At the creation and at the removal of snapshots, where the logs of VMs can be read",
            ),
            Number("Disks that no snapshot can hold", Query(f"sum(backstay_unprotected_disks{{{VCENTER}}})")),
        ),
    ),
)
