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


def outlook(effective: Protection, vm: Vm) -> Outlook | None:
    """What a snapshot of the VM is expected to reach; None where nothing is foreseen or nothing is to be made."""
    if vm.reach is None or vm.refusal or not effective.policies:
        return None
    limited = _rank(vm.reach) < _rank(effective.want)
    reached = vm.reach if limited else effective.want
    return Outlook(effective.want, effective.fallback, reached, vm.reach_why if limited else "")


def _rank(level: Consistency) -> int:
    return CONSISTENCY_ORDER.index(level)
