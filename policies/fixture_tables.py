"""The keys of `[[test]]`: a test of the policies that are written beside it, run without a vCenter.

Tests change no policy: they are not part of a policy's content hash, and the engine does not look at them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema

from policies.closest import one_of
from policies.errors import Unusable, quoted
from policies.facts import EventType
from policies.tables import Count, Duration, Table, key

TESTED_EVENTS = tuple(sorted(kind.value for kind in EventType if kind not in (EventType.CLOCK, EventType.RECONCILED)))
"""What can happen in a test. The clock goes by itself."""

MOST_COPIES = 10_000
"""Restore points of one entry: as many as a VM has in a test of a long retention."""

Power = Literal["on", "off", "suspended"]
Level = Literal["crash", "filesystem", "application"]


def moment(value: object) -> datetime:
    """A date and time with its zone, as TOML's own or as text; raises Unusable."""
    at = value
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
    if not isinstance(at, datetime) or at.tzinfo is None or not 1970 < at.year < 9000:
        raise Unusable(f"{quoted(value)} is not a time with its zone", "write one such as 2026-11-23T12:00:00Z")
    return at


def _event(text: str) -> str:
    if text not in TESTED_EVENTS:
        raise Unusable(f"{quoted(text)} is not an event", lambda: one_of(text, TESTED_EVENTS))
    return text


def _moment(value: Any) -> Any:
    moment(value)
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Moment = Annotated[Any, AfterValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]
EventKind = Annotated[str, AfterValidator(_event), WithJsonSchema({"type": "string", "enum": list(TESTED_EVENTS)})]
Points = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "array", "items": {"type": "string"}}]})
]


def _points(value: Any) -> Any:
    counted = type(value) is int and 0 <= value <= 1_000_000
    if not counted and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise Unusable(f"{quoted(value)} is neither a number nor a list of ids", 'write 14 or ["monthly-1"]')
    return value


PointsExpected = Annotated[Points, AfterValidator(_points)]


class DiskFixture(Table):
    """A disk of a VM of a test."""

    label: str | None = key(None, "Its label; `Hard disk 1` and so on without it.", "Hard disk 1")
    capacity_bytes: Annotated[int, Field(ge=0, le=2**62)] | None = key(None, "Its size.", 107374182400)
    datastore: str | None = key(None, "Where it lies.", "ssd-1")


class VmChanges(Table):
    """What a VM of a test is like. What is left out is as in the inventory, or empty."""

    folder: str | None = key(None, "The path below the datacenter.", "/Prod/SQL")
    tags: list[str] | None = key(None, "Its tags, as `category=name`.", ["env=prod"])
    attributes: dict[str, str] | None = key(None, "Its custom attributes.", {"Owner": "dba"})
    power: Power | None = key(None, "`on`, `off` or `suspended`; `on` without it.", "off")
    datacenter: str | None = key(None, "Where it is.", "Berlin")
    cluster: str | None = key(None, "Where it is.", "c1")
    host: str | None = key(None, "Where it runs.", "esx1")
    resource_pool: str | None = key(None, "Where it is.", "gold")
    datastores: list[str] | None = key(None, "Where its disks lie.", ["ssd-1"])
    networks: list[str] | None = key(None, "What it is connected to.", ["dmz"])
    guest_os: str | None = key(None, "The guest system that vSphere names.", "rhel9_64Guest")
    template: bool | None = key(None, "Whether it is a template.", True)
    refusal: str | None = key(None, "Why it cannot be backed up; it can without this key.", "it is a template")
    disks: list[DiskFixture] | None = key(None, "Its disks.", [{"label": "Hard disk 1", "capacity_bytes": 1073741824}])


class VmFixture(VmChanges):
    """A VM of a test, besides those of its inventory. What is left out is empty."""

    name: Name = Field(description="What the test calls it.", examples=["sql9"])


class PointFixture(Table):
    """A restore point, or a series of them, that is there when the test begins."""

    vm: Name = Field(description="Whose.", examples=["sql9"])
    age: Duration | None = key(None, "How old it is when the test begins; `0s` without it.", "26h")
    count: Annotated[int, Field(ge=1, le=MOST_COPIES)] | None = key(
        None, "So many of them, the newest of `age`; `1` without it.", 30
    )
    every: Duration | None = key(None, "How far they are apart; `1d` without it.", "1d")
    id: Name | None = key(
        None, "What expectations call it; of a series the names end in `-1` (the newest), `-2` and so on.", "monthly"
    )
    consistency: Level | None = key(None, "What was achieved; `application` without it.", "crash")
    complete: bool | None = key(None, "`false` for one that misses a disk.", False)
    damaged: bool | None = key(None, "`true` for one that failed a verification.", True)
    hold: str | None = key(None, "Held, for this reason.", "audit 2026")
    lock: Duration | None = key(None, "Locked, for so long from when it was taken.", "14d")
    marked: Duration | None = key(None, "Marked so long ago as one that nothing keeps (see `grace`).", "2d")
    policy: Name | None = key(None, "The policy that made it; without it no policy did.", "gold")


class EventFixture(Table):
    """Something that happens during a test. The VM changes as vCenter would change it, and as `set` says."""

    at: Duration | None = key(None, "How long after the test's beginning; `0s` without it.", "90s")
    type: EventKind | None = key(None, "What happens.", "vm.migrated")
    vm: Name | None = key(None, "To which VM. One whose first event is its creation is there from then on.", "sql9")
    set: VmChanges | None = key(None, "What else of the VM changes, as in `[[test.vm]]`.")
    cause: str | None = key(None, "Why, as in a trigger's `cause`.", "drs")
    from_host: str | None = key(None, "Of a move; where the VM is without it.", "esx1")
    to_host: str | None = key(None, "Of a move.", "esx2")
    user: str | None = key(None, "Who did it or asked for it.", "alice")
    detail: dict[str, str] | None = key(None, "More that the event says.", {"reason": "before the upgrade"})
    clock: Moment | None = key(
        None, "In place of `type`: the clock jumps, and shows this from then on.", "2026-11-23T02:00:00+01:00"
    )


class Expectation(Table):
    """What a test expects of one VM. Backups are counted during the test, all else is looked at when it ends."""

    policies: list[Name] | None = key(None, "Exactly these policies select the VM.", ["gold", "everything"])
    policy: Name | None = key(None, "The policy of highest priority that selects it.", "gold")
    unprotected: bool | None = key(None, "No policy selects it, or with `false` one does.", True)
    rpo: Duration | None = key(None, "The strictest goal that counts.", "4h")
    consistency: Level | None = key(None, "What a snapshot is asked for.", "application")
    fallback: Level | None = key(None, "The weakest level that is accepted.", "filesystem")
    transports: list[str] | None = key(None, "The ways to the disks, in order.", ["hotadd", "nbd"])
    copies: list[str] | None = key(None, "The second copies.", ["offsite"])
    lock: Duration | None = key(None, "The lock of its new restore points.", "14d")
    no_backup: bool | None = key(None, "With `true` no backup is decided.", True)
    backups: Count | None = key(None, "So many backups.", 1)
    backup_by: Duration | None = key(None, "The first backup starts at the latest so long after the beginning.", "15m")
    backup_after: Duration | None = key(None, "The first backup does not start earlier.", "10m")
    backup_policy: Name | None = key(None, "The policy that asks for the first backup.", "gold")
    backup_rule: Name | None = key(None, "The rule that asks for it.", "trigger[0]")
    reason: Name | None = key(
        None, "A part of the sentence that says why there is a backup, or why there is none.", "cools down"
    )
    full_read: bool | None = key(None, "Whether the next backup reads in full.", True)
    held: bool | None = key(None, "Whether its restore points were asked to be held.", True)
    keeps: PointsExpected | None = key(
        None, "Restore points that a rule or a guard keeps, as a number or by their ids. Grace does not count.", 14
    )
    expires: PointsExpected | None = key(
        None, "Restore points that nothing keeps: they go when their grace is over.", ["monthly-13"]
    )


class PlanExpectation(Table):
    """A change of the policies and what its plan says: which guard stops a mistake."""

    without: list[Name] = Field(
        min_length=1, description="The change: these policies are removed.", examples=[["gold"]]
    )
    refused: bool | None = key(None, "Whether a guard refuses it.", True)
    loses: list[Name] | None = key(None, "The VMs that would lose protection.", ["sql9"])
    expires: PointsExpected | None = key(None, "The restore points that would newly expire.", 0)


class Fixture(Table):
    """A test of these policies, run by `backstay policy test`. Policies do not change by it.

    Without events, `for` and expectations about backups a test looks at one instant, and nothing runs.
    """

    name: Name = Field(description="The claim.", examples=["a new database is backed up soon"])
    now: Moment | None = key(
        None,
        "When the test begins; without it when its inventory was written, else 2026-01-05T12:00:00Z, a Monday.",
        "2026-11-23T12:00:00+01:00",
    )
    for_: Duration | None = key(
        None,
        "How long the clock goes on; until the last time that an event or expectation names without it.",
        "2d",
        alias="for",
    )
    inventory: str | None = key(
        None,
        "A file of VMs and restore points as `backstay policy state` writes it, JSON or TOML, relative to this.",
        "../inventory.json",
    )
    backup_takes: Duration | None = key(None, "How long a backup runs; `0s` without it.", "20m")
    vm: list[VmFixture] | None = key(None, "VMs of this test.")
    point: list[PointFixture] | None = key(None, "Restore points that are there when it begins.")
    event: list[EventFixture] | None = key(None, "What happens.")
    expect: dict[str, Expectation] | None = key(None, "What is expected of each VM, by its name.")
    plan: PlanExpectation | None = key(None, "What is expected of a change.")
