"""A policy, ready to be asked: what a file's tables mean once templates are merged and texts are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from policies.blackouts import Blackout, is_calendar, parse_blackout
from policies.calendars import Calendar
from policies.conditions import Condition
from policies.disks import DiskTerm, parse_disk_term
from policies.facts import CONSISTENCY_ORDER, Consistency, EventType, Quiescing
from policies.hours import Hours
from policies.presets import spelled_out
from policies.quiescing import quiescing_of
from policies.rehearsing import Rehearse, rehearse_of
from policies.retention_tables import RetentionTable
from policies.schema import Action, LimitsTable, PolicyTable, TriggerTable, zone_of
from policies.terms import Term, parse_term
from policies.units import parse_duration
from policies.windows import Window, parse_window

DEFAULT_WANT = Consistency.FILESYSTEM
DEFAULT_FALLBACK = Consistency.CRASH

DEFAULT_GRACE = timedelta(days=1)
"""How long a restore point that no rule keeps stays marked: time to notice a mistake in a policy."""

RULES = ("last", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a policy is written; line and column from 1. `commit` is that of the files in git, where it is known."""

    file: str = "policy.toml"
    line: int = 1
    column: int = 1
    commit: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Terms as written, each list in its order."""

    all: tuple[Term, ...] = ()
    any: tuple[Term, ...] = ()
    none: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """When a policy backs up by itself: a goal, fixed times, or both, inside windows and outside blackouts.

    `times` are cron expressions and recurrence rules. `start_within` is how long after a fixed time a run may still
    start, `finish_within` how long after its start was due it shall be done. `any_hours` are those of what may start
    outside the windows.
    """

    rpo: timedelta | None = None
    times: tuple[str, ...] = ()
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    windows: tuple[Window, ...] = ()
    spread: timedelta = timedelta()
    blackouts: tuple[Blackout, ...] = ()
    start_within: timedelta | None = None
    finish_within: timedelta | None = None
    hours: Hours = field(init=False, repr=False, compare=False)
    any_hours: Hours = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hours", Hours(self.windows, self.blackouts, self.zone))
        object.__setattr__(self, "any_hours", Hours((), self.blackouts, self.zone))
        said = (self.rpo, self.times, self.hours, self.spread, self.start_within, self.finish_within)
        object.__setattr__(self, "_hash", hash(said))

    def __hash__(self) -> int:
        return self._hash

    @property
    def scheduled(self) -> bool:
        """Whether it ever starts a backup without an event."""
        return self.rpo is not None or bool(self.times)


@dataclass(frozen=True, slots=True)
class Trigger:
    """Events that lead to a backup or another action; `rule` is its name in decisions, such as "trigger[0]"."""

    rule: str
    on: frozenset[EventType]
    settle: timedelta = timedelta()
    cooldown: timedelta = timedelta()
    cause: str = ""
    from_host: str = ""
    to_host: str = ""
    any_time: bool = False
    when: Condition | None = None
    action: Action = "backup"
    spread: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep. `counts` pairs each written rule's period with its number."""

    counts: tuple[tuple[str, int], ...] = ()
    keep_within: timedelta | None = None
    min_good: int = 1
    grace: timedelta = DEFAULT_GRACE
    lock: timedelta = timedelta()

    @property
    def empty(self) -> bool:
        """No rule that keeps anything: everything is kept."""
        return self.keep_within is None and not any(number for _, number in self.counts)


class Leaving(StrEnum):
    """What becomes of the restore points of a VM that a policy selects no more."""

    HOLD = "hold"
    EXPIRE = "expire"
    KEEP_LAST_GOOD = "keep_last_good"


class OnCbtInvalid(StrEnum):
    """What a run does where change tracking may not be trusted or gives no answer, the least protective first."""

    FAIL = "fail"
    FULL = "full"
    VERIFY = "verify"


class OnMigrate(StrEnum):
    """What a run does when its VM moves to another host, the least protective first."""

    REQUEUE = "requeue"
    FINISH = "finish"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """How many backups of one policy may run at a time: in all, on one host, on one datastore; None is no limit."""

    running: int | None = None
    per_host: int | None = None
    per_datastore: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy. `want`, `fallback`, `quiescing` and `transports` are None or empty where the policy says nothing.

    `hash` is of the content after merging the template, not of the file's layout or the description. `leaving` is
    set by `policies.leaving` alone, for restore points of VMs that it does not protect any more; `leaving_why` is the
    sentence for it. `kept_in_copies` pairs second copies with the retention that counts there in place of `retention`.
    """

    name: str
    hash: str
    source: Source = Source()
    description: str = ""
    template: str = ""
    priority: int = 0
    selection: Selection = Selection()
    timing: Timing = field(default_factory=Timing)
    triggers: tuple[Trigger, ...] = ()
    want: Consistency | None = None
    fallback: Consistency | None = None
    quiescing: Quiescing | None = None
    transports: tuple[str, ...] = ()
    retention: Retention = Retention()
    copies: tuple[str, ...] = ()
    kept_in_copies: tuple[tuple[str, Retention], ...] = ()
    destination: str = ""
    limits: PolicyLimits | None = None
    excluded_disks: tuple[DiskTerm, ...] = ()
    on_unmatched: Leaving = Leaving.HOLD
    on_removed: Leaving = Leaving.HOLD
    leaving: Leaving | None = None
    leaving_why: str = ""
    verify_every: timedelta | None = None
    rehearse: Rehearse | None = None
    notify: tuple[str, ...] = ()
    on_cbt_invalid: OnCbtInvalid | None = None
    tracking_sample: int | None = None
    on_migrate: OnMigrate | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.hash))

    @property
    def triggered(self) -> bool:
        """Whether an event can lead to a backup."""
        return any(trigger.action == "backup" for trigger in self.triggers)

    @property
    def says_consistency(self) -> bool:
        """Whether it says anything about how consistent its restore points are."""
        return self.want is not None or self.fallback is not None or self.quiescing is not None

    @property
    def weakest_good(self) -> Consistency:
        """The consistency that a restore point needs to be a good one."""
        return self.fallback or DEFAULT_FALLBACK

    @property
    def wanted(self) -> Consistency:
        """The consistency that is asked for."""
        return self.want or max(DEFAULT_WANT, self.weakest_good, key=CONSISTENCY_ORDER.index)


def compile_policy(
    name: str, merged: Mapping[str, Any], source: Source, calendars: Mapping[str, Calendar] | None = None
) -> Policy:
    """A policy from its merged, validated keys, and the calendars that it names."""
    known = calendars or {}
    merged = _presets_spelled_out(merged)
    table = PolicyTable.model_validate(merged)
    want = Consistency(table.consistency.want) if table.consistency and table.consistency.want else None
    fallback = Consistency(table.consistency.fallback) if table.consistency and table.consistency.fallback else None
    select = table.select
    return Policy(
        name=name,
        hash=content_hash(merged, known),
        source=source,
        description=table.description or "",
        template=table.template or "",
        priority=table.priority or 0,
        selection=Selection(
            _terms(select.all if select else None),
            _terms(select.any if select else None),
            _terms(select.none if select else None),
        ),
        timing=Timing(
            rpo=parse_duration(table.rpo) if table.rpo else None,
            times=tuple(table.schedule or ()),
            zone=zone_of(table.timezone or "UTC"),
            windows=tuple(parse_window(text) for text in table.window or ()),
            spread=_duration(table.spread),
            blackouts=tuple(_blackout(text, known) for text in table.blackout or ()),
            start_within=parse_duration(table.start_within) if table.start_within else None,
            finish_within=parse_duration(table.finish_within) if table.finish_within else None,
        ),
        triggers=tuple(_trigger(index, one) for index, one in enumerate(table.trigger or ())),
        want=want,
        fallback=fallback,
        quiescing=quiescing_of(table.consistency),
        transports=tuple(table.transports or ()),
        retention=_retention(table.retention),
        copies=tuple(dict.fromkeys((*(table.copies or ()), *(table.copy_ or {})))),
        kept_in_copies=tuple(
            (name, _retention(one.retention)) for name, one in (table.copy_ or {}).items() if one.retention is not None
        ),
        destination=table.destination or "",
        limits=_limits(table.limits),
        excluded_disks=tuple(parse_disk_term(text) for text in (table.disks.exclude if table.disks else None) or ()),
        on_unmatched=Leaving(table.on_unmatched or Leaving.HOLD),
        on_removed=Leaving(table.on_removed or Leaving.HOLD),
        verify_every=parse_duration(table.verify.every) if table.verify and table.verify.every else None,
        rehearse=rehearse_of(table.rehearse, zone_of(table.timezone or "UTC")),
        notify=tuple(table.notify or ()),
        on_cbt_invalid=OnCbtInvalid(table.on_cbt_invalid) if table.on_cbt_invalid else None,
        tracking_sample=table.tracking_sample,
        on_migrate=OnMigrate(table.on_migrate) if table.on_migrate else None,
    )


def _presets_spelled_out(merged: Mapping[str, Any]) -> Mapping[str, Any]:
    found = dict(merged)
    if "retention" in found:
        found["retention"] = spelled_out(found["retention"])
    if "copy" in found:
        found["copy"] = {
            name: {**one, "retention": spelled_out(one["retention"])} if "retention" in one else one
            for name, one in found["copy"].items()
        }
    return found


def _blackout(text: str, calendars: Mapping[str, Calendar]) -> Blackout:
    return calendars[text] if is_calendar(text) else parse_blackout(text)


def content_hash(merged: Mapping[str, Any], calendars: Mapping[str, Calendar]) -> str:
    """32 hexadecimal digits of what a policy does; its description and its template's name do not count.

    What the calendars that it names say does.
    """
    effective = {key: value for key, value in merged.items() if key not in ("description", "template")}
    written = effective.get("blackout", [])
    named = [
        calendars[text].digest for text in ([written] if isinstance(written, str) else written) if text in calendars
    ]
    if named:
        effective["calendars"] = named
    canonical = json.dumps(effective, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _terms(texts: Sequence[str] | None) -> tuple[Term, ...]:
    return tuple(parse_term(text) for text in texts or ())


def _duration(text: str | None) -> timedelta:
    return parse_duration(text) if text else timedelta()


def _trigger(index: int, table: TriggerTable) -> Trigger:
    return Trigger(
        rule=f"trigger[{index}]",
        on=frozenset(EventType(name) for name in table.on),
        settle=_duration(table.settle),
        cooldown=_duration(table.cooldown),
        cause=table.cause or "",
        from_host=table.from_host or "",
        to_host=table.to_host or "",
        any_time=bool(table.any_time),
        when=Condition(table.when) if table.when else None,
        action=table.action or "backup",
        spread=_duration(table.spread),
    )


def _limits(table: LimitsTable | None) -> PolicyLimits | None:
    return None if table is None else PolicyLimits(table.running, table.per_host, table.per_datastore)


def _retention(table: RetentionTable | None) -> Retention:
    if table is None:
        return Retention()
    written = ((rule, getattr(table, f"keep_{rule}")) for rule in RULES)
    return Retention(
        counts=tuple((rule, number) for rule, number in written if number),
        keep_within=parse_duration(table.keep_within) if table.keep_within else None,
        min_good=table.min_good or 1,
        grace=DEFAULT_GRACE if table.grace is None else parse_duration(table.grace),
        lock=_duration(table.lock),
    )
