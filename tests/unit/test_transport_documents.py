"""docs/transports.md says what the code does: the command for nbdkit, and the one list of privileges."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from connectors.privileges import PURPOSES, ROLES, Purpose, at, of_role
from connectors.vsphere.nbdkit import Spot
from connectors.vsphere.session import Session
from connectors.vsphere.transport_settings import TRANSPORTS, TransportSettings
from connectors.vsphere.vddk import NetworkDisk, command
from engine.roles import roles

DOCUMENT = (Path(__file__).parents[2] / "docs" / "transports.md").read_text()


def nbdkit(disk: NetworkDisk, **settings: Any) -> list[str]:
    """The command for a vCenter at its usual port."""
    login = SimpleNamespace(settings=SimpleNamespace(host="VCENTER", user="USER", port=443))
    usual = {"libdir": "DIR"} | settings
    return command(disk, cast(Session, login), TransportSettings(**usual), "AA:BB:..", Spot(Path("/run/x"), 7))


READ = NetworkDisk("vm-16", "[ds] vm/vm.vmdk", "run", "snapshot-42")


def test_the_documented_command_is_the_one_that_runs() -> None:
    shown = DOCUMENT.partition("```text\nnbdkit ")[2].partition("```")[0].replace("\\\n", " ")
    stand_ins = {"SOCKET": "/run/x/nbd", "PIDFILE": "/run/x/pid", "password=-FD": "password=-7"}
    documented = ["nbdkit", *(stand_ins.get(word, word) for word in shlex.split(shown))]
    assert sorted(nbdkit(READ)) == sorted(documented)
    written = nbdkit(NetworkDisk("vm-16", "[ds] vm/vm.vmdk", "run"))
    assert set(nbdkit(READ)) - set(written) == {"-r", "snapshot=snapshot-42"}


def test_vddk_compresses_as_configured_and_decides_itself_otherwise() -> None:
    assert "compression=none" in nbdkit(READ, compression="none")
    assert not [word for word in nbdkit(READ) if word.startswith("compression")]


def test_the_filter_that_tries_again_sits_next_to_the_plugin_and_requests_stay_small() -> None:
    line = nbdkit(READ)
    assert [word for word in line if word.startswith("--filter")] == ["--filter=blocksize", "--filter=retry"]
    assert int(next(word for word in line if word.startswith("maxdata=")).partition("=")[2]) <= 2 << 20


@pytest.mark.parametrize("purpose", PURPOSES, ids=lambda purpose: purpose.name)
def test_each_purpose_s_privileges_are_documented_checked_and_in_its_role(purpose: Purpose) -> None:
    listed = ", ".join(f"`{one}`" for one in purpose.privileges)
    (row,) = (line for line in DOCUMENT.splitlines() if line.startswith(f"| {purpose.name} | "))
    assert f"| {ROLES[purpose.role]} |" in row and f"| {listed} | {purpose.without}" in row
    assert row.endswith(" (optional) |") is not purpose.needed
    assert set(purpose.privileges) <= set(at(purpose.place))
    (made,) = (one for one in roles() if one.role == purpose.role)
    assert {one for one in purpose.privileges if not one.startswith("System.")} <= set(made.privileges)
    assert set(made.privileges) <= set(of_role(purpose.role))
    assert purpose.transport in ("", *TRANSPORTS)


def test_no_privilege_is_documented_that_nothing_checks() -> None:
    table = DOCUMENT.partition("## Privileges")[2]
    assert sum(line.startswith("| ") for line in table.splitlines()) == len(PURPOSES) + 1


@pytest.mark.parametrize("name", TRANSPORTS)
def test_each_transport_is_documented(name: str) -> None:
    assert f"| `{name}` | " in DOCUMENT
