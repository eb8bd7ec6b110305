"""The lab opens as a vCenter that a client can trust and log in to."""

import hashlib
import socket
import ssl
from collections.abc import Callable

import pytest
from pyVmomi import vim

from tests.lab.vcenter import Lab


def test_a_client_that_verifies_the_lab_s_certificate_can_log_in(lab: Lab) -> None:
    with lab.session(lab.user) as session:
        assert session.content.about.instanceUuid == lab.instance_uuid
        assert session.content.sessionManager.currentSession.userName == lab.user


def test_a_client_that_does_not_know_the_lab_s_ca_refuses_it(lab: Lab) -> None:
    context = ssl.create_default_context()
    with (
        socket.create_connection((lab.host, lab.port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
        context.wrap_socket(plain, server_hostname="localhost"),
    ):
        pass


def test_the_thumbprint_is_that_of_the_certificate_that_the_server_shows(lab: Lab) -> None:
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((lab.host, lab.port)))
    assert lab.thumbprint.replace(":", "").lower() == hashlib.sha1(shown, usedforsecurity=False).hexdigest()


def test_a_wrong_password_is_refused(lab: Lab) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        lab.connect(lab.user, "not the password")


def test_a_thousand_machines_start_in_seconds(fresh_lab: Callable[..., Lab]) -> None:
    big = fresh_lab(vms=1000, hosts=8, clusters=2, content=False, disk_bytes=1 << 30)
    assert len(big.vms()) == 1000
    assert sum(len(vm.disks) for vm in big.vms()) == 1333
