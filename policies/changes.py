"""What a change of the policies does, as values: VM by VM and restore point by restore point."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from policies.facts import PointId, VmId, instant_text
from policies.policyset import PolicySet

Kind = Literal["gains", "loses", "changes"]


@dataclass(frozen=True, slots=True)
class VmChange:
    """What the change does to one VM. `points` are its restore points that stay, when it loses protection.

    `what` is the sentence without the VM's name: it is the same for VMs that change in the same way. `parts` are the
    single differences of a VM that stays protected, and `weaker` those of them that protect it less, at once.
    """

    vm: VmId
    name: str
    kind: Kind
    before: tuple[str, ...]
    after: tuple[str, ...]
    what: str
    points: tuple[PointId, ...] = ()
    parts: tuple[str, ...] = ()
    weaker: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """For a person."""
        if self.kind == "changes":
            return f"{self.name}: {self.what}"
        held = len(self.points)
        stays = f"; its {held} restore point{'s' if held > 1 else ''} would stay" if held and not self.after else ""
        return f"{self.name} {self.what}{stays}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "vm": self.vm,
            "name": self.name,
            "kind": self.kind,
            "before": [*self.before],
            "after": [*self.after],
            "sentence": self.sentence,
            "points": [*self.points],
            "weaker": [*self.weaker],
        }


@dataclass(frozen=True, slots=True)
class GuardChange:
    """A limit of the guard that the change sets anew; a `looser` one lets more happen unasked than before."""

    key: str
    before: str
    after: str
    looser: bool

    def __str__(self) -> str:
        return f"{self.key} {self.before} → {self.after}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"key": self.key, "before": self.before, "after": self.after, "looser": self.looser}


@dataclass(frozen=True, slots=True)
class PointChange:
    """A restore point that would expire, and before would not, or only later (`instead_of`).

    `expires_at` is when retention may expire it, grace and lock included, were no further backup made. `kept` says
    what keeps it until now. `copy` is the second copy that it is in, "" in the first repository.
    """

    vm: VmId
    name: str
    point: PointId
    taken_at: datetime
    expires_at: datetime
    instead_of: datetime | None
    kept: str
    stored_bytes: int
    copy: str = ""

    @property
    def key(self) -> str:
        """Which restore point in which repository."""
        return f"{self.copy}/{self.point}" if self.copy else self.point

    @property
    def where(self) -> str:
        """Such as " in the copy offsite"."""
        return f" in the copy {self.copy}" if self.copy else ""

    @property
    def sentence(self) -> str:
        """For a person."""
        sooner = f", instead of {_shown(self.instead_of)}" if self.instead_of is not None else ""
        return (
            f"{self.name}: restore point {self.point} of {_shown(self.taken_at)}{self.where} would expire on "
            f"{_shown(self.expires_at)}{sooner}, kept until now ({self.kept})"
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "vm": self.vm,
            "name": self.name,
            "point": self.point,
            "taken_at": instant_text(self.taken_at),
            "expires_at": instant_text(self.expires_at),
            "instead_of": instant_text(self.instead_of) if self.instead_of is not None else None,
            "kept_until_now": self.kept,
            "stored_bytes": self.stored_bytes,
            "copy": self.copy,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """The way from one policy set to another.

    `effective` is in force while the plan is pending, `new` once it is confirmed; they are the same when nothing is
    pending. `refusals` are the sentences of the guards that it breaks. `id` is the same for the same policies before
    and after and the same that is taken away, and another one when any of it has changed.
    """

    old: PolicySet
    new: PolicySet
    effective: PolicySet
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    vms: tuple[VmChange, ...]
    expiring: tuple[PointChange, ...]
    refusals: tuple[str, ...]
    id: str
    guard: tuple[GuardChange, ...] = ()

    @property
    def losing(self) -> tuple[VmChange, ...]:
        """The VMs that would lose protection."""
        return tuple(change for change in self.vms if change.kind == "loses")

    @property
    def weakened(self) -> tuple[VmChange, ...]:
        """The VMs that stay protected, but less than before; this waits for nobody."""
        return tuple(change for change in self.vms if change.weaker)

    @property
    def pending(self) -> bool:
        """Whether a part of it waits for confirmation."""
        return bool(self.expiring or self.refusals or self.losing)

    @property
    def empty(self) -> bool:
        """Whether nothing at all changes."""
        return not (
            self.added or self.removed or self.changed or self.vms or self.expiring or self.refusals or self.guard
        )

    def as_json(self, most: int | None = None) -> dict[str, Any]:
        """For `--json`, and what a plan file keeps; with `most` at most so many VMs and restore points are listed."""
        return {
            "id": self.id,
            "old": self.old.hash,
            "new": self.new.hash,
            "pending": self.pending,
            "policies": {"added": [*self.added], "removed": [*self.removed], "changed": [*self.changed]},
            "vms_total": len(self.vms),
            "weaker_total": len(self.weakened),
            "vms": [change.as_json() for change in self.vms[:most]],
            "expiring_total": len(self.expiring),
            "expiring": [change.as_json() for change in self.expiring[:most]],
            "refusals": [*self.refusals],
            "guard": [change.as_json() for change in self.guard],
        }


def plan_id(old: PolicySet, new: PolicySet, losing: Iterable[VmId], expiring: Iterable[str]) -> str:
    """16 hexadecimal digits of what a change is from, leads to and takes away."""
    parts = [old.hash, new.hash, *sorted(losing), "", *sorted(expiring)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _shown(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
