"""As whom a host is asked, what its certificate is held against, and that a host without a proof is sent nothing."""

from __future__ import annotations

import hashlib
import ssl

import pytest
from pyVmomi import vim

from connectors.errors import Rejected, TransportFailed
from connectors.vsphere import host_files
from connectors.vsphere.host_files import _Watch, read_part_at
from connectors.vsphere.session import Session, SessionSettings
from connectors.vsphere.thumbprint import check_host, host_context

SHA1, SHA256 = "AA:" * 19 + "AA", "BB:" * 31 + "BB"
CERTIFICATE = b"a certificate"


async def test_a_step_of_a_request_before_the_certificate_was_seen_ends_it() -> None:
    watch = _Watch(SHA1, "esx-1", "[ssd-1] web/vmware.log")
    await watch("connection.connect_tcp.started", {})
    with pytest.raises(Rejected, match="not verified"):
        await watch("http11.send_request_headers.started", {})


@pytest.mark.parametrize(
    ("ticket", "listed", "host", "chosen"),
    [
        (SHA1, [SHA256], "", SHA1),
        ("", ["CC:" * 63 + "CC", SHA256], SHA1, SHA256),
        (None, [], SHA1, SHA1),
        ("unknown", [], "", ""),
    ],
    ids=["ticket", "list", "host", "none"],
)
def test_a_thumbprint_is_the_first_that_can_be_compared(
    ticket: str | None, listed: list[str], host: str, chosen: str
) -> None:
    made = vim.SessionManager.GenericServiceTicket(
        id="t", sslThumbprint=ticket, certThumbprintList=[vim.vm.CertThumbprint(thumbprint=each) for each in listed]
    )
    assert host_files._thumbprint(made, host) == chosen


@pytest.mark.parametrize(
    "name",
    ["", "esx-1/folder", "esx-1@other", "esx 1", "esx-1:80", "esx-1?x", "ésx", "192.0.2.7:8443", "999.1.1.1", "1:2"],
)
async def test_a_name_that_is_no_address_is_asked_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    session = Session(SessionSettings(host="vc", user="u", password=lambda: "p", engine_id="e"))

    async def told(managed: object, paths: object) -> dict[str, str]:
        return {"name": name}

    monkeypatch.setattr(session, "properties", told)
    with pytest.raises(Rejected, match="is no address"):
        await read_part_at(session, None, "[ssd-1] web/vmware.log", 0, 10)


def test_a_host_of_which_neither_an_authority_nor_a_thumbprint_tells_is_not_spoken_to() -> None:
    pinned = ssl.create_default_context()
    assert host_context(pinned, "", "esx-1", "here") is pinned
    pinned.check_hostname = False
    with pytest.raises(TransportFailed, match="tells no thumbprint of it"):
        host_context(pinned, "", "esx-1", "here")


def test_a_certificate_is_held_against_thumbprints_of_both_kinds() -> None:
    for own, other in ((hashlib.sha1(CERTIFICATE, usedforsecurity=False), SHA1), (hashlib.sha256(CERTIFICATE), SHA256)):
        check_host(CERTIFICATE, own.hexdigest().upper(), "esx-1", "here")
        for shown, told in ((CERTIFICATE, other), (b"", own.hexdigest()), (None, own.hexdigest())):
            with pytest.raises(TransportFailed, match="shows another certificate"):
                check_host(shown, told, "esx-1", "here")
