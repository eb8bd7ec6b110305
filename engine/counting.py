"""What a run's end adds to the metrics."""

from __future__ import annotations

from engine.attempts import KEPT_IN_PLACE, Attempt
from engine.jobs import Done, Job
from metrics.registry import Metrics


def count_done(metrics: Metrics, job: Job, done: Done, attempt: Attempt, seconds: float) -> None:
    """A restore point was made."""
    metrics.run_finished(
        job.policy,
        "partial" if done.partial else "done",
        seconds,
        read=done.read_bytes,
        stored=done.stored_bytes,
        deduplicated=sum(disk.dedup_bytes for disk in done.disks),
        zero=sum(disk.zero_bytes for disk in done.disks),
    )
    _count_stages(metrics, attempt)
    for disk in done.disks:
        metrics.disk_read(disk.transport, whole=disk.whole)
        if disk.check is not None:
            metrics.tracking_checked(disk.check.result, disk.check.untold_bytes)
        if disk.sampled is not None:
            metrics.tracking_sampled(disk.sampled.blocks, differ=disk.sampled.differ)
        for fallback in disk.fallbacks:
            metrics.transport_failed(fallback.partition(":")[0])
    if done.placement:
        metrics.placed(kept=done.placement == KEPT_IN_PLACE)
    if done.consistency != job.consistency:
        metrics.consistency_fell_back(done.consistency.value)


def count_without_point(metrics: Metrics, job: Job, result: str, attempt: Attempt | None, seconds: float) -> None:
    """None was made, and the run has read what it has read."""
    read = sum(attempt.tally.done.values()) if attempt is not None else 0
    metrics.run_finished(job.policy, result, seconds, read=read)
    if attempt is not None:
        _count_stages(metrics, attempt)


def _count_stages(metrics: Metrics, attempt: Attempt) -> None:
    for name, spent in attempt.tally.seconds.items():
        metrics.stage(name, spent)
    for when, stuns in attempt.tally.stuns.items():
        for seconds in stuns.seconds:
            metrics.standing.stood_still(when, seconds)
