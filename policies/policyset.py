"""All policies that are in force, and which of them a VM's protection and retention come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policies.facts import Vm, VmId
from policies.policy import Policy
from policies.selection import Index

DEFAULT_MAX_EXPIRE_SHARE = 0.50
"""Retention of a few points a VM expires a good part of them day by day; more than half is a mistake."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Limits of what one change, or one run of retention, may do before it asks. The share is of 1."""

    max_vms_losing_protection: int = 0
    max_expire_share: float = DEFAULT_MAX_EXPIRE_SHARE


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Policies by descending priority, then name.

    `texts` are the files that it was made from: keep them to make the same set again with `load_texts`.
    While a change is pending, `kept_protection` names policies that still protect a VM which the new files leave
    without any, and `kept_retention` policies whose retention a VM's restore points still enjoy.
    """

    policies: tuple[Policy, ...] = ()
    guard: Guard = Guard()
    texts: Mapping[str, str] = field(default_factory=dict)
    kept_protection: Mapping[VmId, tuple[Policy, ...]] = field(default_factory=dict)
    kept_retention: Mapping[VmId, tuple[Policy, ...]] = field(default_factory=dict)
    _index: Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.policies, key=_precedence))
        object.__setattr__(self, "policies", ordered)
        object.__setattr__(self, "_index", Index(ordered))

    @property
    def hash(self) -> str:
        """32 hexadecimal digits of all policies and the guard."""
        parts = [f"{policy.name}={policy.hash}" for policy in self.policies] + [repr(self.guard)]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def policy(self, name: str) -> Policy | None:
        """The policy of that name."""
        return next((policy for policy in self.policies if policy.name == name), None)

    def matching(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that protect the VM, highest priority first."""
        found = self._index.matching(vm)
        kept = self.kept_protection.get(vm.id) if self.kept_protection else None
        return _distinct((*found, *kept)) if kept else found

    def excluding(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that would select the VM, were it not for a term of their `none`, highest priority first."""
        return self._index.excluding(vm)

    def retaining(self, vm: Vm | None) -> tuple[Policy, ...]:
        """The policies whose retention counts for the VM's restore points; None is a VM that is gone."""
        if vm is None:
            return ()
        kept = self.kept_retention.get(vm.id) if self.kept_retention else None
        return _distinct((*self.matching(vm), *kept)) if kept else self.matching(vm)

    def unprotected(self, vms: Iterable[Vm]) -> tuple[Vm, ...]:
        """The VMs that no policy selects."""
        return tuple(vm for vm in vms if not self.matching(vm))


def _distinct(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    once = {(policy.name, policy.hash): policy for policy in policies}
    return tuple(sorted(once.values(), key=_precedence))


def _precedence(policy: Policy) -> tuple[int, str]:
    return (-policy.priority, policy.name)
