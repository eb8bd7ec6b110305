"""Names in policies that stand for something in the engine's configuration. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from policies.errors import quoted
from policies.policy import Policy
from policies.policyset import PolicySet


def unknown_names(
    policies: PolicySet, *, targets: Collection[str], destinations: Collection[str], copies: Collection[str]
) -> tuple[str, ...]:
    """A sentence for each name that policies use and the configuration does not have; the arguments are what it has."""
    return (
        *unknown_targets(policies, targets).values(),
        *unknown_destinations(policies, destinations).values(),
        *unknown_copies(policies, copies).values(),
    )


def unknown_destinations(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The destinations that policies name and the configuration does not have, each with a sentence."""
    return _unknown(policies, known, lambda policy: (policy.destination,), "has the destination", "repositories")


def unknown_copies(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The second copies that policies ask for and the configuration does not have, each with a sentence."""
    return _unknown(policies, known, lambda policy: policy.copies, "asks for the second copy", "copies")


def unknown_targets(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The targets of notices that policies name and the configuration does not have, each with a sentence."""
    return _unknown(policies, known, lambda policy: policy.notify, "notifies", "notify")


def _unknown(
    policies: PolicySet, known: Collection[str], named: Callable[[Policy], Iterable[str]], says: str, table: str
) -> dict[str, str]:
    found: dict[str, str] = {}
    for policy in policies.policies:
        for name in named(policy):
            if name and name not in known and name not in found:
                place = f"{policy.source.file}:{policy.source.line}:{policy.source.column}"
                found[name] = (
                    f"{place}: policy {quoted(policy.name)} {says} {quoted(name)}, "
                    f"and the configuration has no [{table}.{name}]"
                )
    return found
