"""Storage policies of VMs and disks: asked of vCenter's policy service, and chosen by name for a VM that is restored.

The service (PBM) is an endpoint of its own with the login of vCenter; neither a policy nor who has it is part of a
VM's configuration (API: VirtualMachineDefinedProfileSpec). Nothing of this fails a backup.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pyVmomi import SoapStubAdapter, pbm, vim, vmodl

from connectors.errors import ConnectorError, NotPermitted, Rejected
from connectors.vsphere.faults import Failed
from connectors.vsphere.session import Session

T = TypeVar("T")

log = logging.getLogger(__name__)

HOME = "home"
"""The key of a VM's home among the keys of its disks."""

PATH, VERSION = "/pbm/sdk", "pbm.version.version1"

ANSWER_SECONDS = 15.0
"""The service is asked while a snapshot stands, and it is known to hang: no longer than this."""

SILENT_SECONDS = 600.0
"""A service that did not answer, or refused, is not asked again for this long: the next snapshot does not wait."""

PRIVILEGE = "StorageProfile.View on the vCenter's root"

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a VM to be made: ids by HOME or the disk's key, their names by id, and what is lacking.

    Where they are `needed` nothing is made without them.
    """

    ids: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    needed: bool = False

    def of(self, key: str) -> str:
        """The policy's id; empty for the datastore's default."""
        return self.ids.get(key, "")


def remembered(summary: Mapping[str, Any], keys: Collection[int] = ()) -> dict[str, str]:
    """The names of policies that a restore point remembers, by HOME or the disk's key; `keys` leaves out others. Pure.

    Restore points that were made before policies were kept, or without the privilege, remember none.
    """
    found = {HOME: str(summary.get("storage_policy") or "")}
    for disk in summary.get("disks") or ():
        if not keys or disk.get("key") in keys:
            found[str(disk.get("key"))] = str(disk.get("storage_policy") or "")
    return {key: name for key, name in found.items() if name}


def choose(had: Mapping[str, str], asked: Mapping[str, str], there: Mapping[str, str], unknown: str) -> Policies:
    """Which policies a new VM gets. `there` are ids by name, `unknown` why they could not be told. Pure.

    Rejected for a name that somebody gave and that is not there. One that is only remembered is told instead: the
    policy can be set later, and a VM that is needed now is not to wait for it.
    """
    if strange := sorted(set(asked) - set(had.values())):
        names = ", ".join(sorted(set(had.values()))) or "none that the restore point knows"
        raise Rejected(f"the VM had no storage policy {strange[0]}", hint=f"it had: {names}")
    if asked and unknown:
        raise Rejected(f"no storage policy can be set: {unknown}", hint=f"it takes {PRIVILEGE}")
    for name in asked.values():
        if name not in there:
            raise Rejected(f"there is no storage policy {name}", hint=_there_are(there))
    if unknown:
        lost = ", ".join(sorted(set(had.values())))
        return Policies(warnings=(f"without its storage policies ({lost}): {unknown}",) if had else ())
    wanted = {key: asked.get(name, name) for key, name in had.items()}
    absent = sorted({name for name in wanted.values() if name not in there})
    return Policies(
        {key: there[name] for key, name in wanted.items() if name in there},
        {there[name]: name for name in wanted.values() if name in there},
        tuple(
            f"without the storage policy {name}, which is not there: the datastore's default counts" for name in absent
        ),
    )


def specification(policy: str) -> list[Any] | None:
    """How a VM or disk is given the policy with this id, in the specification that makes it."""
    return [vim.vm.DefinedProfileSpec(profileId=policy)] if policy else None


async def with_policy(put: Callable[[str], Awaitable[T]], chosen: Policies, key: str, what: str) -> tuple[T, list[str]]:
    """Make something with its policy or, where vCenter refuses that, without it; what was made, and what it lacks.

    `put` makes nothing when it is refused. Raises the refusal where the policy is needed.
    """
    policy = chosen.of(key)
    if not policy:
        return await put(""), []
    try:
        return await put(policy), []
    except (Rejected, NotPermitted, Failed) as refused:
        if chosen.needed or not isinstance(refused.__cause__, vmodl.MethodFault):
            raise
        made = await put("")
        name = chosen.names.get(policy, policy)
        return made, [f"{what} is without the storage policy {name}, which vCenter refused: {refused.what}"]


async def names_of(session: Session, moref: str, keys: Sequence[int]) -> tuple[dict[str, str], str]:
    """The policies of a VM's home and of its disks by HOME or the disk's key, and why they are not known."""
    server, kinds = session.vcenter, pbm.ServerObjectRef.ObjectType
    entities = [pbm.ServerObjectRef(objectType=kinds.virtualMachine, key=moref, serverUuid=server)]
    entities += [
        pbm.ServerObjectRef(objectType=kinds.virtualDiskId, key=f"{moref}:{key}", serverUuid=server) for key in keys
    ]
    return await _asked(session, _associated, entities)


async def ids_by_name(session: Session) -> tuple[dict[str, str], str]:
    """The ids of all policies by name, and why they are not known. Asked however silent the service was before."""
    _silent.pop(session, None)
    return await _asked(session, _all)


@dataclass(frozen=True, slots=True)
class _Silence:
    why: str
    until: float


_silent: WeakKeyDictionary[Session, _Silence] = WeakKeyDictionary()
"""The logins whose policy service did not answer, or refused."""


async def _asked(session: Session, ask: Callable[..., dict[str, str]], *args: Any) -> tuple[dict[str, str], str]:
    before = _silent.get(session)
    if before is not None and time.monotonic() < before.until:
        return {}, before.why
    try:
        found = await session.call(_through, session, ask, *args)
    except ConnectorError as error:
        lacks = isinstance(error.__cause__, pbm.fault.NoPermission)
        why = f"the account lacks the privilege {PRIVILEGE}" if lacks else error.what
        if before is None or why != before.why:
            log.warning("storage policies are not known", extra={"vcenter": session.where, "why": why})
        _silent[session] = _Silence(why, time.monotonic() + SILENT_SECONDS)
        return {}, why
    _silent.pop(session, None)
    return found, ""


def _through(session: Session, ask: Callable[..., dict[str, str]], *args: Any) -> dict[str, str]:
    """Ask over a connection of its own, under the present login. Blocking; raises as a pyVmomi call does."""
    settings = session.settings
    stub = SoapStubAdapter(
        host=settings.host,
        port=settings.port,
        path=PATH,
        version=VERSION,
        sslContext=session.tls,
        httpConnectionTimeout=min(ANSWER_SECONDS, settings.answer_seconds),
        poolSize=1,
        # The service knows a login by the header of the call, not by a cookie of HTTP.
        requestContext={"vcSessionCookie": session.cookie.partition("=")[2].strip('"')},
    )
    try:
        content = pbm.ServiceInstance("ServiceInstance", stub).RetrieveContent()
        return ask(content.profileManager, *args)
    except AttributeError as error:
        # pyVmomi's parser takes the service's faults, which are vCenter's, for the plainest one, and stumbles over
        # their properties. These belong to NoPermission and to NotAuthenticated, which this call then raises.
        if error.args[:1] not in (("object",), ("privilegeId",)):
            raise ValueError(f"an answer of the policy service was not understood: {error}") from error
        session.now()
        raise vim.fault.NoPermission(privilegeId="StorageProfile.View") from error
    finally:
        stub.DropConnections()


def _associated(manager: Any, entities: Sequence[Any]) -> dict[str, str]:
    found = {
        str(one.object.key): one.profileId[0]
        for one in manager.QueryAssociatedProfiles(entities) or ()
        if one.profileId
    }
    names = _names(manager, {id_.uniqueId: id_ for id_ in found.values()}.values())
    return {key.partition(":")[2] or HOME: names.get(id_.uniqueId, "") for key, id_ in found.items()}


def _all(manager: Any) -> dict[str, str]:
    kind = pbm.profile.ResourceType(resourceType="STORAGE")
    ids = manager.QueryProfile(kind, "REQUIREMENT") or ()
    return {name: id_ for id_, name in _names(manager, ids).items()}


def _names(manager: Any, ids: Collection[Any]) -> dict[str, str]:
    profiles = manager.RetrieveContent(list(ids)) if ids else ()
    return {profile.profileId.uniqueId: str(profile.name) for profile in profiles or ()}


def _there_are(there: Mapping[str, str]) -> str:
    names = sorted(there)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there are: {', '.join(names[:_SHOWN])}{more}" if names else "there is none"
