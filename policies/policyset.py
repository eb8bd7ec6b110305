"""All policies that are in force, and which of them a VM's protection and retention come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from policies.copied import in_copy
from policies.facts import Facts, RestorePoint, Vm, VmId
from policies.leaving import left_with
from policies.policy import Policy
from policies.selection import Index

DEFAULT_MAX_EXPIRE_SHARE = 0.50
"""Retention of a few points a VM expires a good part of them day by day; more than half is a mistake."""

DEFAULT_ADD_UP_OVER = timedelta(days=30)
"""VMs that vanish by mistake, a few per cent a day, are half of all within three weeks or so."""


HELD_UNTIL_CONFIRMED = Policy(name="(restore points held until the change is confirmed)", hash="")
"""Stands for no policy at all, under which nothing expired until now."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Limits of what one change, or one run of retention, may do before it asks. The share is of 1.

    What expired of VMs that left or are not selected any more counts for so long in further runs (`add_up_over`).
    """

    max_vms_losing_protection: int = 0
    max_expire_share: float = DEFAULT_MAX_EXPIRE_SHARE
    add_up_over: timedelta = DEFAULT_ADD_UP_OVER


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Policies by descending priority, then name.

    `texts` are the files that it was made from: keep them to make the same set again with `load_texts`.
    While a change is pending, `kept_protection` names policies that still protect a VM which the new files leave
    without any, `kept_retention` policies whose retention a VM's restore points still enjoy, and `kept_copies` for
    second copies the policies whose retention all restore points there still enjoy; "" stands for all repositories.
    """

    policies: tuple[Policy, ...] = ()
    guard: Guard = Guard()
    texts: Mapping[str, str] = field(default_factory=dict)
    kept_protection: Mapping[VmId, tuple[Policy, ...]] = field(default_factory=dict)
    kept_retention: Mapping[VmId, tuple[Policy, ...]] = field(default_factory=dict)
    kept_copies: Mapping[str, PolicySet] = field(default_factory=dict)
    _index: Index = field(init=False, repr=False, compare=False)
    _by_name: Mapping[str, Policy] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.policies, key=_precedence))
        object.__setattr__(self, "policies", ordered)
        object.__setattr__(self, "_index", Index(ordered))
        object.__setattr__(self, "_by_name", {policy.name: policy for policy in ordered})

    @property
    def hash(self) -> str:
        """32 hexadecimal digits of all policies and the guard."""
        parts = [f"{policy.name}={policy.hash}" for policy in self.policies] + [repr(self.guard)]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    @property
    def commit(self) -> str:
        """The commit that the policies were read at, where it is known."""
        return next((policy.source.commit for policy in self.policies), "")

    def at_commit(self, commit: str) -> PolicySet:
        """The same policies, known to have been read at this commit."""
        read = tuple(replace(policy, source=replace(policy.source, commit=commit)) for policy in self.policies)
        return replace(self, policies=read)

    def policy(self, name: str) -> Policy | None:
        """The policy of that name."""
        return self._by_name.get(name)

    def matching(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that protect the VM, highest priority first."""
        found = self._index.matching(vm)
        kept = self.kept_protection.get(vm.id) if self.kept_protection else None
        return _distinct((*found, *kept)) if kept else found

    def excluding(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that would select the VM, were it not for a term of their `none`, highest priority first."""
        return self._index.excluding(vm)

    def retaining(
        self, vm: Vm | None, points: Sequence[RestorePoint] = (), *, removed: bool = False, copy: str = ""
    ) -> tuple[Policy, ...]:
        """The policies whose retention counts for the VM's restore points, all of which are `points`; none keeps all.

        `vm` is None where it is not in the inventory. Only with `removed` is it known to have left; otherwise its
        vCenter may just not be known, so nothing of it expires. With `copy` they are those of this second copy.
        """
        if copy:
            return self._retaining_in(copy, vm, points, removed)
        found = self.matching(vm) if vm is not None else ()
        if not found and (vm is not None or removed):
            found = left_with(points, self.policy, removed=vm is None)
        if not found:
            return found
        kept = self.kept_retention.get(vm.id if vm is not None else points[0].vm, ()) if self.kept_retention else ()
        before = self.kept_copies.get("") if self.kept_copies else None
        if before is not None:
            kept = (*kept, *(before.retaining(vm, points, removed=removed) or (HELD_UNTIL_CONFIRMED,)))
        return _distinct((*found, *kept)) if kept else found

    def _retaining_in(
        self, copy: str, vm: Vm | None, points: Sequence[RestorePoint], removed: bool
    ) -> tuple[Policy, ...]:
        def made_it(name: str) -> Policy | None:
            policy = self.policy(name)
            return in_copy(policy, copy) if policy is not None else None

        found = tuple(in_copy(policy, copy) for policy in self.matching(vm)) if vm is not None else ()
        if not found and (vm is not None or removed):
            found = left_with(points, made_it, removed=vm is None)
        before = self.kept_copies.get(copy) if found else None
        if before is None:
            return found
        kept = before.retaining(vm, points, removed=removed, copy=copy) or (HELD_UNTIL_CONFIRMED,)
        return _distinct((*found, *kept))

    def retaining_of(self, vm: VmId, facts: Facts, copy: str = "") -> tuple[Policy, ...]:
        """The same for a VM of these facts."""
        points = facts.points_in(copy).get(vm, ())
        return self.retaining(facts.vms.get(vm), points, removed=vm in facts.left, copy=copy)

    def unprotected(self, vms: Iterable[Vm]) -> tuple[Vm, ...]:
        """The VMs that no policy selects."""
        return tuple(vm for vm in vms if not self.matching(vm))


def _distinct(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    once = {(policy.name, policy.hash): policy for policy in policies}
    return tuple(sorted(once.values(), key=_precedence))


def _precedence(policy: Policy) -> tuple[int, str]:
    return (-policy.priority, policy.name)
