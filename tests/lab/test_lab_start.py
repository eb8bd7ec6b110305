"""The lab opens as a vCenter that a client can trust and log in to."""

import ssl
from collections.abc import Callable

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim

from tests.lab.vcenter import Lab


def test_a_client_that_verifies_the_lab_s_certificate_can_log_in(lab: Lab) -> None:
    session = lab.connect(lab.user)
    assert session.content.about.instanceUuid == lab.instance_uuid
    assert session.content.sessionManager.currentSession.userName == lab.user
    Disconnect(session)


def test_a_client_that_does_not_know_the_lab_s_ca_refuses_it(lab: Lab) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(
            host=lab.host, port=lab.port, user=lab.user, pwd=lab.password, sslContext=ssl.create_default_context()
        )


def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        lab.connect(lab.user, "not the password")


def test_a_thousand_machines_start_in_seconds(fresh_lab: Callable[..., Lab]) -> None:
    big = fresh_lab(vms=1000, hosts=8, clusters=2, content=False, disk_bytes=1 << 30)
    assert len(big.vms()) == 1000
    assert sum(len(vm.disks) for vm in big.vms()) == 1333
