"""How notices to people get through."""

from __future__ import annotations

from collections.abc import Mapping

from metrics.labels import NOTICE_RESULTS
from metrics.making import Maker, one_of


class NoticeMetrics:
    """The series of notices, by target of the configuration."""

    def __init__(self, maker: Maker) -> None:
        self._attempts = maker.counter(
            "notices_total",
            "Attempts to deliver a notice: it arrived, is to be tried again, or was given up",
            target=(),
            result=NOTICE_RESULTS,
        )
        self._waiting = maker.gauge(
            "notices_waiting", "1 while a notice to the target is under way or waits to be tried again", target=()
        )

    def attempted(self, target: str, result: str) -> None:
        """One attempt ended so."""
        self._attempts.labels(target, one_of(result, NOTICE_RESULTS)).inc()

    def waiting(self, targets: Mapping[str, bool]) -> None:
        """Whether a notice waits, for each target of the configuration."""
        for target, waits in targets.items():
            self._waiting.labels(target).set(waits)
            for result in NOTICE_RESULTS:
                self._attempts.labels(target, result)  # begun at 0, or `increase()` would miss the first
