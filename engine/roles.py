"""The minimal roles for vCenter, as data and as the lines that create them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.privileges import ROLES, Role, of_role, purposes_of

IMPLIED = "System."
"""vCenter puts these privileges into every role by itself, and takes them in no list."""


@dataclass(frozen=True, slots=True)
class RoleText:
    """A role: what it is called, its privileges, and the lines that make it and give it to an account."""

    role: Role
    name: str
    privileges: tuple[str, ...]
    purposes: tuple[str, ...]
    powercli: tuple[str, ...]
    govc: tuple[str, ...]


def roles(user: str = "") -> Sequence[RoleText]:
    """Both roles, for an account such as backup@vsphere.local."""
    return [_role(role, user or "backup@vsphere.local") for role in ROLES]


def _role(role: Role, user: str) -> RoleText:
    name = ROLES[role]
    ids = tuple(one for one in of_role(role) if not one.startswith(IMPLIED))
    listed = ",".join(f"'{one}'" for one in ids)
    principal = _principal(user)
    return RoleText(
        role=role,
        name=name,
        privileges=ids,
        purposes=tuple(purpose.name for purpose in purposes_of(role)),
        powercli=(
            f"New-VIRole -Name {name} -Privilege (Get-VIPrivilege -Id {listed})",
            f"New-VIPermission -Entity (Get-Folder -NoRecursion) -Principal {_quoted(principal)} -Role {name}"
            " -Propagate $true",
        ),
        govc=(
            f"govc role.create {name} {' '.join(ids)}",
            f"govc permissions.set -principal {_quoted(principal)} -role {name} -propagate=true /",
        ),
    )


def _principal(user: str) -> str:
    """The account as vCenter's permissions name it: DOMAIN\\name for name@domain."""
    name, at, domain = user.rpartition("@")
    return f"{domain.upper()}\\{name}" if at else user


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
