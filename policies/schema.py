"""The keys of a policy file, their types and what they mean. Unknown keys are refused.

The models hold what one file says, as text; `policies.policy` holds what it means. Descriptions here are the key
reference in `docs/policies.md` and the hints of editors that read the JSON schema.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from policies.blackouts import check_blackout
from policies.closest import closest, one_of
from policies.conditions import check_condition
from policies.disks import parse_disk_term
from policies.errors import Unusable, quoted
from policies.facts import VM_EVENT_TYPES, EventType
from policies.fixture_tables import Fixture
from policies.quiescing import ConsistencyTable
from policies.rehearsing import RehearseTable
from policies.retention_tables import CopyTable, RetentionTable
from policies.tables import (
    BLACKOUT_PATTERN,
    DISK_TERM_PATTERN,
    ONE_OR_MANY,
    TERM_PATTERN,
    TIME_PATTERN,
    WINDOW_PATTERN,
    ZONE_PATTERN,
    Count,
    Duration,
    Share,
    Table,
    once_or_more,
    readable,
    text_like,
    tidied,
)
from policies.tables import key as _key
from policies.terms import parse_term
from policies.times import check_time
from policies.units import parse_duration
from policies.windows import parse_window

SHORTEST_VERIFY = timedelta(days=1)
"""The engine reads back once a day."""

MigrateName = Literal["finish", "requeue", "block"]
CbtInvalidName = Literal["full", "verify", "fail"]
LeavingName = Literal["hold", "expire", "keep_last_good"]
TransportName = Literal["hotadd", "nbd", "export", "https"]
Action = Literal["backup", "distrust", "hold"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
SHORTEST_RPO = timedelta(minutes=1)
"""A shorter goal would ask for a new backup before the last one can be done."""

EVENT_NAMES = tuple(sorted(kind.value for kind in (VM_EVENT_TYPES | {EventType.HOLD_REQUESTED}) - {EventType.REMOVED}))
"""What a trigger may name: what happens to a VM, and a hold. A removal comes when there are no disks to back up."""


def zone_of(text: str) -> ZoneInfo:
    """The IANA time zone of a name; raises Unusable."""
    if text not in _zones():  # looking for a file takes longer
        raise Unusable(f"{quoted(text)} is not a time zone", lambda: _zone_like(text))
    return ZoneInfo(text)


def _zone_like(text: str) -> str:
    close = closest(text, _zones(), parts="/")
    return f'write "{close}"' if close else 'write an IANA name such as "Europe/Berlin" or "UTC"'


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _event_name(text: str) -> str:
    if text == EventType.REMOVED:
        raise Unusable(
            f"{quoted(text)} comes when the disks are gone already", 'write what comes before, such as "vm.powered_off"'
        )
    if text not in EVENT_NAMES:
        raise Unusable(f"{quoted(text)} is not an event of a VM", lambda: one_of(text, EVENT_NAMES))
    return text


def _copy_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise Unusable(
            f"{quoted(text)} is not a name for a copy",
            "write 1 to 63 letters, digits, dots, dashes or underscores, a letter or digit first",
        )
    return text


def _reachable(text: str) -> str:
    if parse_duration(text) < SHORTEST_RPO:
        raise Unusable(f"an rpo of {quoted(text)} can never be met", f'write at least "{SHORTEST_RPO.seconds // 60}m"')
    return text


Goal = Annotated[Duration, AfterValidator(_reachable)]
Zone = Annotated[str, readable(zone_of), text_like(ZONE_PATTERN)]
WindowText = Annotated[str, readable(parse_window), text_like(f"^{WINDOW_PATTERN}$")]
DiskTermText = Annotated[str, readable(parse_disk_term), text_like(DISK_TERM_PATTERN)]
TermText = Annotated[str, readable(parse_term), text_like(TERM_PATTERN)]
FixedTime = Annotated[str, readable(check_time)]
FixedTimes = Annotated[
    list[FixedTime],
    Field(min_length=1, max_length=64),
    ONE_OR_MANY,
    once_or_more({"type": "string", "pattern": TIME_PATTERN}),
]
BlackoutText = Annotated[str, readable(check_blackout)]
_BLACKOUT = {"type": "string", "pattern": BLACKOUT_PATTERN}
Blackouts = Annotated[
    list[BlackoutText],
    Field(max_length=64),
    ONE_OR_MANY,
    WithJsonSchema({"anyOf": [_BLACKOUT, {"type": "array", "items": _BLACKOUT, "maxItems": 64}]}),
]
ConditionText = Annotated[str, readable(check_condition)]
EventName = Annotated[str, AfterValidator(_event_name)]
EventNames = Annotated[
    list[EventName],
    Field(min_length=1),
    ONE_OR_MANY,
    once_or_more({"type": "string", "enum": list(EVENT_NAMES)}),
]
Limit = Annotated[int, Field(ge=1, le=100_000)]
CopyName = Annotated[str, Field(pattern=NAME_PATTERN)]
CopyKey = Annotated[str, AfterValidator(_copy_name)]


class SelectTable(Table):
    """Which VMs. A VM is selected when every term of `all` and one of `any` match and none of `none` does."""

    all: list[TermText] | None = _key(None, 'Terms that must all match; `["*"]` is every VM.', ["tag:env=prod"])
    any: list[TermText] | None = _key(None, "Terms of which at least one must match.", ["name:web-*", "name:app-*"])
    none: list[TermText] | None = _key(None, "Terms that exclude a VM, whatever else matches.", ["tag:backup=never"])


class TriggerTable(Table):
    """An event that leads to a backup or another action."""

    on: EventNames = Field(
        description="The events, one or several.", examples=["vm.migrated", ["vm.created", "vm.cloned"]]
    )
    settle: Duration | None = _key(None, "How long to wait first; more such events meanwhile join the same run.", "10m")
    cooldown: Duration | None = _key(None, "How long not to fire again for the same VM.", "6h")
    cause: str | None = _key(None, "Only events of this cause (glob), such as `drs` or `manual`.", "drs")
    from_host: str | None = _key(None, "Only moves away from these hosts (glob).", "esx-old-*")
    to_host: str | None = _key(None, "Only moves to these hosts (glob).", "esx-dr-*")
    any_time: bool | None = _key(None, "Run outside the policy's windows too; `false` without this key.", True)
    when: ConditionText | None = _key(
        None,
        "Only where this condition holds, in CEL, asked as the event is taken in; see *Conditions*.",
        'last_good_age > duration("1h")',
    )
    action: Action | None = _key(
        None,
        "`backup`: back the VM up, also without this key. `distrust`: the next run reads its disks in full. `hold`:"
        " hold the restore points that it has, until a person releases them. The last two happen at once: settle,"
        " spread and any_time do not go with them.",
        "hold",
    )
    spread: Duration | None = _key(
        None,
        "Over how long the runs start that one cause asks for on many VMs: each VM has its own place in that time.",
        "30m",
    )

    @model_validator(mode="after")
    def _fits_its_action(self) -> TriggerTable:
        if self.action in ("distrust", "hold"):
            for name in ("settle", "spread", "any_time"):
                if getattr(self, name) is not None:
                    raise Unusable(
                        f"{name} is about a run, which action = {quoted(self.action)} is not", "leave it out"
                    )
        return self


class DisksTable(Table):
    """Which disks of its VMs are backed up."""

    exclude: list[DiskTermText] | None = _key(
        None,
        "Disks that are left out, by `label:`, `number:` or `datastore:`. Where several policies select a VM, a disk is"
        " left out only if all of them leave it out.",
        ["label:*scratch*", "number:2", "datastore:*-tmp"],
    )


class LimitsTable(Table):
    """How many backups of this policy may run at a time, beside the limits of the engine's configuration."""

    running: Limit | None = _key(None, "In all; without it no limit of its own.", 2)
    per_host: Limit | None = _key(None, "Of VMs on one host; without it no limit of its own.", 1)
    per_datastore: Limit | None = _key(None, "Of VMs with a disk on one datastore; without it no limit of its own.", 2)


def _rereadable(text: str) -> str:
    if parse_duration(text) < SHORTEST_VERIFY:
        raise Unusable(f"nothing is read back every {quoted(text)}", 'write at least "1d"')
    return text


class VerifyTable(Table):
    """How often restore points are read back."""

    every: Annotated[Duration, AfterValidator(_rereadable)] | None = _key(
        None,
        "Every restore point is read back in full at least this often, counted from when it was taken; the shortest"
        " of all policies that select a VM counts. Without it as often as the engine's configuration says.",
        "30d",
    )


class PolicyTable(Table):
    """One policy or template. A template's keys are defaults: tables merge key by key, anything else is replaced."""

    template: str | None = _key(None, "The template whose keys are the defaults.", "gold")
    description: str | None = _key(None, "For people.", "Production databases")
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = _key(
        None, "Among policies of one VM the highest chooses schedule, consistency and the like; `0` without it.", 50
    )
    select: SelectTable | None = _key(None, "Which VMs; without it none.")
    disks: DisksTable | None = _key(None, "Which disks of its VMs; all without it.")
    rpo: Annotated[Duration, AfterValidator(_reachable)] | None = _key(
        None, "The goal: a good restore point is never older than this.", "4h"
    )
    schedule: FixedTimes | None = _key(
        None,
        "Fixed times, one or several: cron expressions, or recurrence rules of iCalendar such as"
        " `RRULE:FREQ=MONTHLY;BYDAY=2SA;BYHOUR=1`, see *Recurrence rules*.",
        "0 22 * * mon-fri",
    )
    timezone: Zone | None = _key(
        None, "IANA time zone of schedule, windows and retention; `UTC` without it.", "Europe/Berlin"
    )
    window: list[WindowText] | None = _key(
        None, "When backups may start; any time without it.", ["mon..fri 18:00-06:00", "sat,sun 00:00-24:00"]
    )
    blackout: Blackouts | None = _key(
        None,
        "Times in which no run starts, but for requests: dates, dates of every year, hours of the week, or calendars"
        " beside the policies; see *Blackouts*.",
        ["2026-12-24 18:00..2026-12-27", "12-31", "fri 16:00-18:00", "holidays.ics"],
    )
    start_within: Duration | None = _key(
        None,
        "How long after a time of `schedule` its run may still start; later it is missed, and told so. Without it"
        " until the next time.",
        "2h",
    )
    finish_within: Duration | None = _key(
        None,
        "How long after its start was due a run shall be done; what has to be done sooner starts first.",
        "3h",
    )
    spread: Duration | None = _key(
        None,
        "Over how long the runs of one time of `schedule` start: each VM has its own place in that time, inside the"
        " window.",
        "30m",
    )
    trigger: list[TriggerTable] | None = _key(None, "Events that lead to a backup or another action.")
    consistency: ConsistencyTable | None = _key(None, "What a snapshot shall guarantee.")
    transports: Annotated[list[TransportName], Field(min_length=1)] | None = _key(
        None, "Ways to the disks, tried in order; those of the engine's configuration without it.", ["hotadd", "nbd"]
    )
    retention: RetentionTable | None = _key(None, "What to keep; everything without it.")
    copies: Annotated[list[CopyName], Field(min_length=1)] | None = _key(
        None,
        "Second copies: names of `[copies.NAME]` in the engine's configuration; those of every policy that selects a VM"
        " count.",
        ["offsite"],
    )
    copy_: dict[CopyKey, CopyTable] | None = _key(
        None, "Second copies by name, with a retention of their own.", alias="copy"
    )
    destination: CopyName | None = _key(
        None,
        "The repository that restore points go to: a name of `[repositories.NAME]` in the engine's configuration; the"
        " engine's `[repository]` without it. The policy of the highest priority that says so chooses.",
        "archive",
    )
    on_unmatched: LeavingName | None = _key(
        None,
        "What becomes of the restore points that it made of a VM which no policy selects any more: `hold` keeps them,"
        " `expire` lets its retention go on, `keep_last_good` keeps the newest good one; `hold` without this key.",
        "expire",
    )
    on_removed: LeavingName | None = _key(
        None, "The same for a VM that left the inventory; `hold` without this key.", "keep_last_good"
    )
    on_cbt_invalid: CbtInvalidName | None = _key(
        None,
        "What a run does where change tracking may not be trusted or gives no answer: `full` reads everything,"
        " `verify` besides compares with what change tracking says, `fail` fails and says why; `full` without it.",
        "verify",
    )
    tracking_sample: Annotated[int, Field(ge=0, le=10_000)] | None = _key(
        None,
        "How many blocks of each disk an incremental run reads again although change tracking calls them unchanged, to"
        " find out whether that is true; a disk where it is not is read in full at once. `0` asks for none;"
        " without this key 100, but at most a thousandth of the disk and 4 blocks at least.",
        500,
    )
    on_migrate: MigrateName | None = _key(
        None,
        "What a run does when its VM moves to another host while it is read: `finish` goes on, `requeue` gives way and"
        " waits again, three times in a row at most, `block` keeps the VM in its place for as long as the run lasts,"
        " where vCenter lets it, and otherwise goes on and says why; `finish` without this key.",
        "requeue",
    )
    limits: LimitsTable | None = _key(None, "How many of its backups may run at a time.")
    verify: VerifyTable | None = _key(None, "How often restore points are read back.")
    rehearse: RehearseTable | None = _key(None, "How often restoring each VM is tried.")
    notify: Annotated[list[CopyName], Field(min_length=1)] | None = _key(
        None,
        "Whom to tell of runs that failed, a missed rpo and damage: names of `[notify.NAME]` in the engine's"
        " configuration; those of every policy that selects a VM count.",
        ["ops"],
    )


class GuardTable(Table):
    """Limits of what one change of the policies may do before it asks."""

    max_vms_losing_protection: Count | None = _key(
        None, "A change that leaves more VMs unprotected is refused; `0` without this key.", 0
    )
    max_expire_share: Share | None = _key(
        None, "A change or a run that expires a greater share of all restore points is refused; `50%` without it.", "5%"
    )
    add_up_over: Duration | None = _key(
        None,
        "How long restore points that expired of VMs which left the inventory, or which no policy selects any more,"
        " count towards the share in further runs of retention; `30d` without it.",
        "14d",
    )


class PolicyFile(Table):
    """One file of policies."""

    schema_: Literal[1] = Field(alias="schema", description="The version of this syntax: 1.", examples=[1])
    template: dict[str, PolicyTable] | None = _key(None, "Reusable defaults, by name.")
    policy: dict[str, PolicyTable] | None = _key(None, "Policies, by name.")
    guard: GuardTable | None = _key(None, "Limits of a change; in one file only.")
    test: list[Fixture] | None = _key(None, "Tests of the policies, for `backstay policy test`.")


def policy_json_schema() -> dict[str, Any]:
    """The JSON schema of a policy file, for editors that complete TOML."""
    schema: dict[str, Any] = tidied(PolicyFile.model_json_schema(by_alias=True))
    for kind in ("template", "policy"):
        schema["properties"][kind]["propertyNames"] = {"pattern": NAME_PATTERN}
    schema["$defs"]["PolicyTable"]["properties"]["copy"]["propertyNames"] = {"pattern": NAME_PATTERN}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Backstay policies"
    return schema
