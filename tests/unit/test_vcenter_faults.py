"""What an operator reads when vCenter, its network or its certificate says no."""

import ssl
from http.client import RemoteDisconnected
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from connectors import errors
from connectors.errors import Rejected
from connectors.vsphere.faults import Failed, SessionLost, Unreadable, translate


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (vim.fault.NotAuthenticated(), SessionLost),
        (vim.fault.InvalidLogin(), errors.LoginRefused),
        (vim.fault.NoPermission(privilegeId="System.View"), errors.NotPermitted),
        (vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine("vm-1")), errors.Gone),
        (vmodl.query.InvalidCollectorVersion(), errors.Gone),
        (vim.fault.TaskInProgress(), errors.Busy),
        (vim.fault.FileLocked(file="x"), errors.Busy),
        (vim.fault.MethodDisabled(source="other"), errors.Busy),
        (vmodl.fault.HostNotConnected(), errors.Unreachable),
        (vim.fault.ApplicationQuiesceFault(), errors.SnapshotFailed),
        (vim.fault.NoDiskSpace(file="x", datastore="fast-1"), errors.SnapshotFailed),
        (vmodl.fault.InvalidArgument(invalidProperty="spec"), Rejected),
        (vim.fault.DuplicateName(name="web-01", object=vim.VirtualMachine("vm-1")), Rejected),
        (vim.fault.InvalidPowerState(requestedState="poweredOn", existingState="poweredOff"), errors.Busy),
        (vim.fault.GenericVmConfigFault(reason="msg.snapshot.error"), Failed),
        (vmodl.fault.SystemError(reason="internal"), Failed),
        (ConnectionRefusedError(111, "refused"), errors.Unreachable),
        (RemoteDisconnected("closed"), errors.Unreachable),
        (TimeoutError(), errors.Unreachable),
        (ssl.SSLCertVerificationError(1, "self-signed"), errors.LoginRefused),
        (KeyError("NoSuchType"), Unreadable),
    ],
)
def test_each_fault_becomes_the_error_that_tells_what_to_do(fault: Any, kind: type[errors.ConnectorError]) -> None:
    error = translate(fault, "vCenter vc.example")
    assert type(error) is kind
    assert str(error).startswith("vCenter vc.example: ")


def test_a_missing_privilege_is_named() -> None:
    entry = vim.fault.NoPermission.EntityPrivileges(
        entity=vim.VirtualMachine("vm-1"), privilegeIds=["VirtualMachine.State.CreateSnapshot"]
    )
    fault = vim.fault.NoPermission(privilegeId="VirtualMachine.Config.ChangeTracking", missingPrivileges=[entry])
    message = str(translate(fault, "vCenter"))
    assert "VirtualMachine.Config.ChangeTracking" in message
    assert "VirtualMachine.State.CreateSnapshot" in message


def test_an_error_of_ours_passes_unchanged() -> None:
    ours = errors.Busy("later")
    assert translate(ours, "vCenter") is ours
