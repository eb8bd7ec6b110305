"""Marks: small create-once objects beside a restore point that say what happened to it since.

Nothing edits a manifest. A mark's name carries a sequence number, so that the state is what reading them in order says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from policies.facts import PointId
from storage import randomness
from storage.errors import Damaged, Refused
from storage.moments import legible, moment, stamp

PREFIX = "marks/"


class MarkKind(StrEnum):
    """What a mark says."""

    HOLD = "hold"
    RELEASE = "release"
    LOCK = "lock"
    EXPIRING = "expiring"
    UNMARK = "unmark"
    VERIFIED = "verified"
    DAMAGED = "damaged"
    LOST = "lost"
    JOINED = "joined"
    EXPIRED = "expired"


LASTING = (MarkKind.HOLD, MarkKind.RELEASE, MarkKind.LOCK)
"""Marks that go with their restore point and never before."""

MAX_SEQUENCE = 999_999_999
"""Of a mark. Written with six digits at least, so a name has six to nine."""

OWNER_SEQUENCES = 900_000_000
"""From here on only the owner of an append-only repository numbers marks: its writer cannot use all numbers up."""

_NAME = re.compile(rf"([0-9]{{6,9}})-({'|'.join(MarkKind)})-[0-9a-f]{{8}}")


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark. `until` is only for locks; `text` of a lost point is JSON: what the catalog knew of it.

    `text` of a joined one is the VM whose history it belongs to, in place of the one that its manifest names.
    """

    key: str
    point: PointId
    sequence: int
    kind: MarkKind
    at: datetime
    text: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class MarkState:
    """What all marks of one restore point come to."""

    holds: tuple[str, ...] = ()
    locked_until: datetime | None = None
    expiring_since: datetime | None = None
    verified_at: datetime | None = None
    damaged: str = ""
    lost: bool = False
    expired: bool = False
    vm: str = ""


def new_mark(
    point: PointId, sequence: int, kind: MarkKind, at: datetime, text: str = "", until: datetime | None = None
) -> Mark:
    """A mark with a key that no other has; Refused when the numbers are used up."""
    if sequence > MAX_SEQUENCE:
        raise Refused(
            f"restore point {point} has had {MAX_SEQUENCE} marks, and there are no more", where=PREFIX + point
        )
    key = f"{PREFIX}{point}/{sequence:06d}-{kind.value}-{randomness.token_hex(4)}"
    return Mark(key, point, sequence, kind, at, legible(text), until)


def encode(mark: Mark) -> bytes:
    """Canonical JSON."""
    document = {"at": stamp(mark.at), "text": mark.text, "until": stamp(mark.until) if mark.until else None}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def parse_key(key: str) -> tuple[PointId, int, MarkKind]:
    """(point, sequence, kind) of a mark's key; Damaged if it is none."""
    point, _, name = key.removeprefix(PREFIX).partition("/")
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise Damaged("this is not a mark", where=key)
    return PointId(point), int(parts[1]), MarkKind(parts[2])


def lasts(key: str, points: set[PointId]) -> bool:
    """Whether the mark under a key must be there as long as these restore points are."""
    point, _, kind = parse_key(key)
    return kind in LASTING and point in points


def decode(key: str, payload: bytes) -> Mark:
    """The mark under a key."""
    point, sequence, kind = parse_key(key)
    try:
        document = json.loads(payload)
        until = moment(document["until"]) if document["until"] else None
        text = document["text"]
        if not isinstance(text, str):
            raise TypeError("its text is none")
        return Mark(key, point, sequence, kind, moment(document["at"]), legible(text), until)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"the mark does not say what a mark says: {error}", where=key) from error


def fold(marks: Iterable[Mark]) -> MarkState:
    """The state that the marks of one restore point come to."""
    holds: list[str] = []
    locked_until = expiring = verified = None
    damaged, lost, expired, vm = "", False, False, ""
    for mark in sorted(marks, key=lambda m: (m.sequence, m.key)):
        match mark.kind:
            case MarkKind.HOLD if mark.text not in holds:
                holds.append(mark.text)
            case MarkKind.RELEASE:
                holds = [hold for hold in holds if mark.text and hold != mark.text]
            case MarkKind.LOCK if mark.until is not None:
                locked_until = max(locked_until or mark.until, mark.until)
            case MarkKind.EXPIRING:
                expiring = expiring or mark.at
            case MarkKind.UNMARK:
                expiring = None
            case MarkKind.VERIFIED:
                verified, damaged = mark.at, ""
            case MarkKind.DAMAGED:
                verified, damaged = mark.at, mark.text or "damaged"
            case MarkKind.LOST:
                lost = True
            case MarkKind.JOINED:
                vm = mark.text
            case MarkKind.EXPIRED:
                expired = True
            case _:
                pass
    return MarkState(tuple(holds), locked_until, expiring, verified, damaged, lost, expired, vm)
