"""How series are made: named, described for the reference, and begun at zero where their labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from metrics.labels import OTHER, SeriesDoc

PREFIX = "backstay_"


class Maker:
    """Makes series on a registry and keeps what the reference says of each."""

    def __init__(self, registry: CollectorRegistry, reference: list[SeriesDoc]) -> None:
        self._registry = registry
        self._reference = reference

    def counter(self, name: str, help: str, **labels: tuple[str, ...]) -> Counter:
        """A counter; a label has the values it can take, or none where they are bounded by the configuration."""
        self._reference.append(SeriesDoc(name, "counter", help, tuple(labels.items())))
        counter = Counter(PREFIX + name, help, list(labels), registry=self._registry)
        _start_at_zero(counter, labels)
        return counter

    def gauge(self, name: str, help: str, **labels: tuple[str, ...]) -> Gauge:
        """A gauge."""
        self._reference.append(SeriesDoc(name, "gauge", help, tuple(labels.items())))
        return Gauge(PREFIX + name, help, list(labels), registry=self._registry)

    def histogram(self, name: str, help: str, buckets: Sequence[float], **labels: tuple[str, ...]) -> Histogram:
        """A histogram."""
        self._reference.append(SeriesDoc(name, "histogram", help, tuple(labels.items())))
        return Histogram(PREFIX + name, help, list(labels), registry=self._registry, buckets=buckets)


def _start_at_zero(counter: Counter, labels: dict[str, tuple[str, ...]]) -> None:
    """A counter born at 1 hides its first increase from `increase()`, so make its series now where they are known."""
    combinations: list[tuple[str, ...]] = [()]
    for values in labels.values():
        combinations = [(*so_far, value) for so_far in combinations for value in values]
    for combination in combinations:
        if combination:
            counter.labels(*combination)


def one_of(value: str, allowed: Sequence[str]) -> str:
    """The value, or "other" where it is none of these."""
    return value if value in allowed else OTHER


def stamp(at: datetime | None) -> float:
    """A moment as Prometheus has it, 0 for never."""
    return at.timestamp() if at else 0.0
