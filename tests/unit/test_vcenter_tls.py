"""Which certificates are trusted, and when their names are compared."""

import ssl
from pathlib import Path

import pytest

from connectors.errors import LoginRefused
from connectors.vsphere.endpoint import tls_context
from tests.lab.process import make_certificates


def test_a_ca_is_trusted_for_hosts_that_its_certificates_name(tmp_path: Path) -> None:
    context = tls_context(make_certificates(tmp_path).ca)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_servers_own_certificate_is_trusted_for_itself_whatever_it_names(tmp_path: Path) -> None:
    context = tls_context(make_certificates(tmp_path).certificate)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.check_hostname


def test_a_file_that_also_holds_a_ca_has_names_compared(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(made.certificate.read_bytes() + made.ca.read_bytes())
    assert tls_context(both).check_hostname


def test_without_a_file_the_systems_cas_decide() -> None:
    context = tls_context(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoginRefused, match=r"nowhere\.pem"):
        tls_context(tmp_path / "nowhere.pem")
