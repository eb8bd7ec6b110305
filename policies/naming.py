"""Names in policies that stand for something in the engine's configuration. Pure."""

from __future__ import annotations

from collections.abc import Collection

from policies.errors import quoted
from policies.policyset import PolicySet


def unknown_destinations(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The destinations that policies name and the configuration does not have, each with a sentence."""
    found: dict[str, str] = {}
    for policy in policies.policies:
        name = policy.destination
        if name and name not in known and name not in found:
            place = f"{policy.source.file}:{policy.source.line}:{policy.source.column}"
            found[name] = f"{place}: policy {quoted(policy.name)} has the destination {quoted(name)}, and the"
            found[name] += f" configuration has no [repositories.{name}]"
    return found


def unknown_copies(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The second copies that policies ask for and the configuration does not have, each with a sentence."""
    found: dict[str, str] = {}
    for policy in policies.policies:
        for name in policy.copies:
            if name not in known and name not in found:
                place = f"{policy.source.file}:{policy.source.line}:{policy.source.column}"
                found[name] = f"{place}: policy {quoted(policy.name)} asks for the second copy {quoted(name)}, and the"
                found[name] += f" configuration has no [copies.{name}]"
    return found


def unknown_targets(policies: PolicySet, known: Collection[str]) -> dict[str, str]:
    """The targets of notices that policies name and the configuration does not have, each with a sentence."""
    found: dict[str, str] = {}
    for policy in policies.policies:
        for name in policy.notify:
            if name not in known and name not in found:
                place = f"{policy.source.file}:{policy.source.line}:{policy.source.column}"
                found[name] = f"{place}: policy {quoted(policy.name)} notifies {quoted(name)}, and the configuration"
                found[name] += f" has no [notify.{name}]"
    return found
