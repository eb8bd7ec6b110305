"""Whether a VM can reach the consistency that its policies ask for, as far as that is foreseen. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.facts import CONSISTENCY_ORDER, Consistency, Vm
from policies.protection import Protection


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run of now would reach. `enough` is False when the policies accept no level that low."""

    wanted: Consistency
    accepted: Consistency
    reached: Consistency
    why: str

    @property
    def enough(self) -> bool:
        """Whether a run can succeed."""
        return _rank(self.reached) >= _rank(self.accepted)

    @property
    def sentence(self) -> str:
        """For a person."""
        if not self.enough:
            return f"{self.reached} at most, so runs fail, as at least {self.accepted} is asked for: {self.why}"
        if self.reached is not self.wanted:
            return f"{self.reached}, not {self.wanted}: {self.why}"
        return f"{self.reached}, {self.why}" if self.why else str(self.reached)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "wanted": self.wanted.value,
            "at_least": self.accepted.value,
            "expected": self.reached.value,
            "enough": self.enough,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Prospect:
    """What runs of a VM would reach before a change of its policies and after it; None where none is foreseen."""

    before: Outlook | None
    after: Outlook | None

    @property
    def changes(self) -> bool:
        """Whether the change makes a difference to what is reached, or to whether that is enough."""
        return self._told(self.before) != self._told(self.after)

    @property
    def words(self) -> str:
        """For a person: "filesystem → crash, not application: why", or one side where nothing changes."""
        if not self.changes:
            return self.after.sentence if self.after is not None else "nothing foreseen"
        before, after = (one.sentence if one is not None else "none" for one in (self.before, self.after))
        return f"{before} → {after}"

    @staticmethod
    def _told(one: Outlook | None) -> tuple[Consistency, bool] | None:
        return (one.reached, one.enough) if one is not None else None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "before": self.before.as_json() if self.before is not None else None,
            "after": self.after.as_json() if self.after is not None else None,
        }


def outlook(effective: Protection, vm: Vm) -> Outlook | None:
    """What a snapshot of the VM is expected to reach; None where nothing is foreseen or nothing is to be made."""
    if vm.reach is None or vm.refusal or not effective.policies:
        return None
    limited = _rank(vm.reach) < _rank(effective.want)
    reached = vm.reach if limited else effective.want
    return Outlook(effective.want, effective.fallback, reached, vm.reach_why if limited else "")


def _rank(level: Consistency) -> int:
    return CONSISTENCY_ORDER.index(level)
