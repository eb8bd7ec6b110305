"""The one place where faults of pyVmomi and errors of sockets and TLS become ConnectorErrors."""

from __future__ import annotations

import ssl
from http.client import HTTPException
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from connectors.errors import (
    Busy,
    ConnectorError,
    Gone,
    LoginRefused,
    NotPermitted,
    Rejected,
    SnapshotFailed,
    Unreachable,
)


class SessionLost(Unreachable):
    """The login is not valid any more, and with it every collector, view and filter that it had made."""


class Failed(ConnectorError):
    """vCenter took the call and could not carry it out; later it may."""

    retry = True


class Unreadable(ConnectorError):
    """vCenter's answer holds something that pyVmomi cannot make an object of."""


_NOT_UNDERSTOOD: tuple[type[BaseException], ...] = (KeyError, TypeError, ValueError)
"""What pyVmomi's parser raises for an unknown type, a missing field or a value out of its set."""

FOREIGN: tuple[type[BaseException], ...] = (
    vmodl.MethodFault,
    OSError,
    HTTPException,
    ExpatError,
    *_NOT_UNDERSTOOD,
)
"""Everything that a pyVmomi call may raise and `translate` understands."""

CONNECTION: tuple[type[BaseException], ...] = (OSError, HTTPException, ExpatError)
"""The connection broke: whether the call was carried out is not known."""

_HOPELESS: tuple[type[BaseException], ...] = (
    vmodl.fault.InvalidArgument,
    vmodl.fault.InvalidRequest,
    vmodl.fault.InvalidType,
    vmodl.fault.NotSupported,
    vmodl.fault.NotImplemented,
    vim.fault.InvalidName,
    vim.fault.DuplicateName,
    vim.fault.AlreadyExists,
)
"""The call was wrong as it was put."""

NEVER_SENT: tuple[type[BaseException], ...] = (ConnectionRefusedError, ssl.SSLCertVerificationError)
"""The request did not leave: it is safe to put it again."""


def translate(error: BaseException, where: str) -> ConnectorError:
    """The ConnectorError that says what this error means to an operator. The caller raises it `from error`."""
    if isinstance(error, ConnectorError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return LoginRefused(
            f"the certificate of the server is not trusted: {getattr(error, 'verify_message', error)}",
            where=where,
            hint="give its CA, or the certificate itself, as ca_file",
        )
    if isinstance(error, TimeoutError):
        return Unreachable("no answer in time", where=where, hint="check the network and the load of vCenter")
    if isinstance(error, CONNECTION):
        return Unreachable(
            f"the connection failed: {error or type(error).__name__}",
            where=where,
            hint="check the address, the port and the firewall",
        )
    if isinstance(error, _NOT_UNDERSTOOD):
        return Unreadable(
            f"an answer was not understood ({type(error).__name__})",
            where=where,
            hint="a newer pyVmomi may know this version of vCenter",
        )
    return _fault(error, where)


def fault_key(error: BaseException) -> str:
    """The stable message key of a fault (its text is localised), or an empty string."""
    messages = getattr(error, "faultMessage", None) or ()
    return next((str(m.key) for m in messages if m.key), "")


def _fault(error: BaseException, where: str) -> ConnectorError:
    text = _text(error)
    if isinstance(error, vim.fault.NotAuthenticated):
        return SessionLost("the login is not valid any more", where=where, hint="a new login follows by itself")
    if isinstance(error, vim.fault.NoPermission):
        return NotPermitted(
            f"the account lacks the privilege {_privileges(error)}",
            where=where,
            hint="add it to the role of the backup account",
        )
    if isinstance(error, vim.fault.InvalidLogin):
        return LoginRefused("user name or password was not accepted", where=where, hint="check the credentials")
    if isinstance(error, vmodl.query.InvalidCollectorVersion):
        return Gone("the collector has forgotten where it was", where=where)
    if isinstance(error, (vmodl.fault.ManagedObjectNotFound, vim.fault.NotFound)):
        return Gone(f"the object is not there any more: {text}", where=where)
    if isinstance(error, (vim.fault.MethodDisabled, vim.fault.RestrictedByAdministrator)):
        return Busy(f"another product has locked this operation: {text}", where=where, hint="see vCenter's tasks")
    if isinstance(
        error, (vim.fault.TaskInProgress, vim.fault.ConcurrentAccess, vim.fault.FileLocked, vim.fault.ResourceInUse)
    ):
        return Busy(f"the object is in use: {text}", where=where, hint="it is tried again later")
    if isinstance(error, (vmodl.fault.HostCommunication, vmodl.fault.RequestCanceled)):
        return Unreachable(f"vCenter does not reach the ESXi host: {text}", where=where)
    if isinstance(error, vim.fault.NoDiskSpace):
        return SnapshotFailed(f"the datastore {error.datastore} is full", where=where, hint="free space on it")
    if isinstance(error, vim.fault.SnapshotIncompatibleDeviceInVm):
        cause = getattr(error.fault, "fault", None) or error.fault
        told = ": ".join(
            filter(None, (str(getattr(cause, "device", "") or ""), str(getattr(cause, "reason", "") or "")))
        )
        return SnapshotFailed(
            f"a device of the VM does not allow snapshots: {told or _text(cause)}",
            where=where,
            hint="take the device out, or back the VM up while it is powered off",
        )
    if isinstance(error, vim.fault.SnapshotFault):
        return SnapshotFailed(text, where=where)
    if isinstance(error, _HOPELESS):
        return Rejected(f"vCenter refused: {text}", where=where)
    if isinstance(error, vim.fault.InvalidState):
        return Busy(f"the object is not in a state that allows this: {text}", where=where)
    return Failed(f"vCenter failed: {text}", where=where)


def _text(error: BaseException) -> str:
    message = str(getattr(error, "msg", "") or "").strip()
    kind = type(error).__name__.rpartition(".")[2]
    extra = next(
        (str(value) for name in ("reason", "invalidProperty", "method") if (value := getattr(error, name, None))), ""
    )
    return ": ".join(part for part in (kind, extra, message) if part)


def _privileges(error: BaseException) -> str:
    named = {str(p) for e in getattr(error, "missingPrivileges", None) or () for p in e.privilegeIds or ()}
    if single := getattr(error, "privilegeId", None):
        named.add(str(single))
    return ", ".join(sorted(named)) or "for this operation (vCenter does not name it)"
