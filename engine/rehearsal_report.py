"""How the rehearsals of a VM stand, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from engine.parts import Parts
from policies.facts import VmId
from policies.rehearsing import Rehearse, rehearse_words
from policies.units import span


def standing_row(parts: Parts, vm: VmId, how: Rehearse | None) -> Mapping[str, Any]:
    """How the rehearsals of one VM stand, for people and programs; empty where nobody wants any and none was."""
    last = parts.rehearsals.newest.get(vm)
    if how is None and last is None:
        return {}
    return {
        "wanted": rehearse_words(how) if how is not None else "",
        "running": vm in parts.rehearsals.busy,
        "point": last.point if last is not None else "",
        "at": last.at if last is not None else None,
        "seconds": last.seconds if last is not None else None,
        "passed": last.passed if last is not None else None,
        "why": last.why if last is not None else "",
        "passed_at": last.passed_at if last is not None else None,
        "words": _words(parts, vm),
    }


def _words(parts: Parts, vm: VmId) -> str:
    last = parts.rehearsals.newest.get(vm)
    if vm in parts.rehearsals.busy:
        return f"a rehearsal of {parts.rehearsals.busy[vm]} is running"
    if last is None:
        return "never rehearsed"
    ended = f"passed after {span_of(last.seconds)}" if last.passed else f"failed: {last.why}"
    before = f"; one passed last at {last.passed_at:%Y-%m-%d %H:%M} UTC" if not last.passed and last.passed_at else ""
    return f"rehearsed at {last.at:%Y-%m-%d %H:%M} UTC from {last.point}, {ended}{before}"


def span_of(seconds: float) -> str:
    """Such as "42 s" or "5 m 3 s"."""
    return span(timedelta(seconds=max(1, round(seconds))))
