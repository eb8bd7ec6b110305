"""Which policies select a VM, and clause by clause why. Letter case does not count; `none` wins."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from policies.facts import Vm
from policies.policy import Policy, Selection
from policies.terms import Term, shown, source, values

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MOST_REMEMBERED = 200_000
"""How many property values and VMs an index remembers before it forgets all of them: bounds its memory."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One term, whether it matches, and what the VM has for its property."""

    list: Literal["all", "any", "none"]
    term: str
    matches: bool
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """Whether a policy selects a VM, with every clause and the sentence that decides."""

    policy: str
    selected: bool
    clauses: tuple[Clause, ...]
    why: str


def match(policy: Policy, vm: Vm) -> Match:
    """Every clause of the policy's selection against the VM."""
    selection = policy.selection
    clauses = (
        *(_clause("all", term, vm) for term in selection.all),
        *(_clause("any", term, vm) for term in selection.any),
        *(_clause("none", term, vm) for term in selection.none),
    )
    selected, why = _verdict(selection, clauses)
    return Match(policy.name, selected, clauses, why)


def _clause(kind: Literal["all", "any", "none"], term: Term, vm: Vm) -> Clause:
    if not term.property:
        return Clause(kind, term.text, True, ())
    found = values(vm, term.property)
    return Clause(kind, term.text, any(term.matches(value) for value in found), shown(vm, term.property))


def _verdict(selection: Selection, clauses: Sequence[Clause]) -> tuple[bool, str]:
    excluded = [clause for clause in clauses if clause.list == "none" and clause.matches]
    if excluded:
        return False, f"excluded by none: {excluded[0].term}"
    missing = [clause for clause in clauses if clause.list == "all" and not clause.matches]
    if missing:
        return False, f"{missing[0].term} does not match ({_has(missing[0])})"
    chosen = [clause for clause in clauses if clause.list == "any" and clause.matches]
    if selection.any and not chosen:
        return False, "none of the terms of any matches"
    if not selection.all and not selection.any:
        return False, "the policy selects nothing: it has neither all nor any"
    decisive = [clause.term for clause in clauses if clause.list == "all"] + [clause.term for clause in chosen[:1]]
    return True, f"selected by {', '.join(decisive)}"


def _has(clause: Clause) -> str:
    has = ", ".join(value for value in clause.found if value)
    return f"the VM has {has}" if has else "the VM has none"


_Facet = tuple[Callable[[Vm], Hashable], dict[Hashable, int], str]
"""A property that terms look at: what its values are made of, the bits of those that were seen, and its name."""


@dataclass(frozen=True, slots=True)
class _Masks:
    """The bits of a policy's selection; `number` is its place among the policies."""

    number: int
    every: int
    some: int
    never: int
    policy: Policy

    def includes(self, bits: int) -> bool:
        return bits & self.every == self.every and (not self.some or bool(bits & self.some))


@dataclass(slots=True)
class Index:
    """The same answer as `match` for many policies at once, in the time of some dictionary look-ups.

    Every distinct term is a bit. The bits that a property's value sets are computed once a value, the policies that
    a VM's bits select once a combination, the bits of a VM once for each value of `Vm`. What it remembers never
    changes an answer; it may be shared by threads.
    """

    policies: tuple[Policy, ...]
    _terms: dict[str, list[tuple[int, Term]]] = field(default_factory=dict)
    _masks: list[_Masks] = field(default_factory=list)
    _always: int = 0
    _free: list[_Masks] = field(default_factory=list)
    """Those policies that no single bit rules out."""
    _behind: dict[int, list[_Masks]] = field(default_factory=dict)
    """Of all others, those that need this bit, or one of several of which it is one."""
    _facets: list[_Facet] = field(default_factory=list)
    _by_value: dict[tuple[str, str], int] = field(default_factory=dict)
    _by_bits: dict[int, tuple[Policy, ...]] = field(default_factory=dict)
    _by_vm: dict[str, tuple[Vm, tuple[Policy, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bits: dict[str, int] = {}
        for policy in self.policies:
            selection = policy.selection
            every, some, never = (self._mask(terms, bits) for terms in (selection.all, selection.any, selection.none))
            if selection.all or selection.any:
                self._masks.append(_Masks(len(self._masks), every, some, never, policy))
        self._facets = [(source(name), {}, name) for name in self._terms]
        for one in self._masks:
            needed = _single(one.every & ~self._always)
            several = () if needed or one.some & self._always else _single(one.some)
            # Behind the bit with the fewest others, so that few are looked at in vain.
            for bit in (min(needed, key=lambda bit: len(self._behind.get(bit, ()))),) if needed else several:
                self._behind.setdefault(bit, []).append(one)
            if not needed and not several:
                self._free.append(one)

    def _mask(self, terms: Sequence[Term], bits: dict[str, int]) -> int:
        mask = 0
        for term in terms:
            if term.text not in bits:
                bits[term.text] = 1 << len(bits)
                if term.property:
                    self._terms.setdefault(term.property, []).append((bits[term.text], term))
                else:
                    self._always |= bits[term.text]
            mask |= bits[term.text]
        return mask

    def matching(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that select the VM, in the order of `policies`."""
        remembered = self._by_vm.get(vm.id)
        if remembered is not None and remembered[0] is vm:
            return remembered[1]
        bits = self._bits(vm)
        found = self._by_bits.get(bits)
        if found is None:
            selecting = {
                one.number: one.policy for one in self._candidates(bits) if one.includes(bits) and not bits & one.never
            }
            found = tuple(selecting[number] for number in sorted(selecting))
            _remember(self._by_bits, bits, found)
        _remember(self._by_vm, vm.id, (vm, found))
        return found

    def excluding(self, vm: Vm) -> tuple[Policy, ...]:
        """The policies that would select the VM, were it not for a term of their `none`."""
        bits = self._bits(vm)
        return tuple(one.policy for one in self._masks if bits & one.never and one.includes(bits))

    def _candidates(self, bits: int) -> Iterator[_Masks]:
        yield from self._free
        for bit in _single(bits):
            yield from self._behind.get(bit, ())

    def _bits(self, vm: Vm) -> int:
        """The bits of the terms that match the VM."""
        bits = self._always
        for made_of, remembered, name in self._facets:
            key = made_of(vm)
            known = remembered.get(key)
            if known is None:
                known = self._of_values(vm, name)
                _remember(remembered, key, known)
            bits |= known
        return bits

    def _of_values(self, vm: Vm, name: str) -> int:
        bits = 0
        for value in values(vm, name):
            known = self._by_value.get((name, value))
            if known is None:
                known = sum(bit for bit, term in self._terms[name] if term.matches(value))
                _remember(self._by_value, (name, value), known)
            bits |= known
        return bits


def _single(bits: int) -> tuple[int, ...]:
    """Each bit that is set, by itself."""
    found = []
    while bits:
        found.append(bits & -bits)
        bits &= bits - 1
    return tuple(found)


def _remember(into: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(into) >= MOST_REMEMBERED:
        into.clear()
    into[key] = value
