"""`backstay doctor` on the lab: what would not work is told with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from connectors.privileges import PURPOSES, ROLES, of_role
from engine.cli.doctor import doctor
from engine.failures import BadInput
from storage.repository import create
from tests.console import backstay
from tests.lab.vcenter import MIB, Lab

Start = Callable[..., Lab]
PROXY = "app-02"


def written(lab: Lab, home: Path, *more: str) -> Path:
    """A configuration with a repository, policies and the lab's vCenter, as init writes it."""
    config = home / "backstay.toml"
    password = home / "password"
    password.write_text(f"{lab.password}\n")
    password.chmod(0o600)
    (home / "policies.d").mkdir(exist_ok=True)
    config.write_text(
        "\n".join(
            [
                'schema = 1\nname = "test"\nstate_dir = "state"\n[repository]\npath = "repo"',
                f'[vcenter.main]\nhost = "{lab.host}"\nport = {lab.port}\nuser = "{lab.user}"',
                f'password = "file:{password}"\nca_file = "{lab.ca_file}"',
                *more,
            ]
        )
    )
    return config


def transport(lab: Lab, *more: str) -> str:
    """The transports with the lab's stand-ins."""
    plugin = Path(__file__).parent / "nbdkit" / "vddk_standin.py"
    return "\n".join(
        [
            f'[transport]\nproxy = "{PROXY}"\ndevice_folder = "{lab.device_folder}"',
            f'plugin = ["python", "{plugin}"]',
            *more,
        ]
    )


Examined = Callable[..., dict[str, list[dict[str, Any]]]]


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Examined:
    """Call it with a lab and a configuration: what doctor finds, by check. In this process, which saves its start."""

    def examine(lab: Lab, config: Path, *, expect: int = 0) -> dict[str, list[dict[str, Any]]]:
        monkeypatch.setenv("BACKSTAY_LAB_ROOT", str(lab.root))
        code = doctor(config=config, json=True)
        shown = capsys.readouterr().out
        assert code == expect, shown
        return by_check(json.loads(shown))

    return examine


def by_check(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Findings by what was looked at."""
    sorted_out: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        sorted_out.setdefault(one["check"], []).append(one)
    return sorted_out


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    create(place / "repo", now=datetime.now(UTC))
    return place


def test_where_all_is_well_each_check_says_what_it_found_and_nothing_is_changed(fresh_lab: Start, home: Path) -> None:
    lab = fresh_lab(vms=3, disk_bytes=4 * MIB, content=False)
    before = lab.calls()
    config = written(lab, home, transport(lab))
    found = by_check(
        backstay("doctor", "--config", config, "--json", home=home, env={"BACKSTAY_LAB_ROOT": str(lab.root)}).data
    )
    assert {one["level"] for ones in found.values() for one in ones} == {"ok", "note"}
    says = {
        "login": f"as {lab.user} at VMware vCenter Server",
        "certificate": "days left",
        "clock": "vCenter's clock is 0 s",
        "privileges": f"{lab.user} has all that",
        "change tracking": "on for 0 of 3 VMs, 3 get it at the first backup",
        "VMs": "3 VMs, none is refused",
        "ways to disks": "by hotadd",
        "hot-add": f"{PROXY}: 14 free places on",
        "datastores": "2 datastores with room for snapshots",
        "nbdkit and VDDK": "nbdkit 1.",
        "repository": "0 restore points",
        "state directory": "free",
        "scratch directory": "free",
        "repository directory": "free",
    }
    for check, sentence in says.items():
        assert sentence in found[check][0]["said"], check
    assert [f"may move {PROXY}" in one["said"] for one in found["hot-add"]] == [False, True]
    changed = {name for name, count in lab.calls().items() if count != before.get(name, 0) and name.endswith("_Task")}
    assert changed == set()


@pytest.mark.parametrize("privilege", ["VirtualMachine.State.CreateSnapshot", "Datastore.FileManagement"])
def test_a_privilege_that_lacks_is_named_with_where_and_with_what_does_not_work(
    lab: Lab, home: Path, examined: Examined, privilege: str
) -> None:
    lab.surroundings(user=lab.user, denied=[privilege])
    try:
        found = examined(lab, written(lab, home, transport(lab)), expect=3)
    finally:
        lab.surroundings(user=lab.user, denied=[])
    told = [one for check, ones in found.items() if check.startswith("privileges for") for one in ones]
    assert told and all(one["level"] == "problem" for one in told)
    assert all(one["said"].startswith(f"{privilege} lacks on all") and "Without them" in one["said"] for one in told)
    assert all("backstay doctor --role" in one["do"] for one in told)
    assert {one["check"].removeprefix("privileges for ") for one in told} == {
        purpose.name for purpose in PURPOSES if privilege in purpose.privileges
    }


def test_an_account_without_the_role_for_restores_is_a_note_and_what_only_adds_is_one_too(
    lab: Lab, home: Path, examined: Examined
) -> None:
    kept = set(of_role("backup"))
    denied = [one for one in of_role("restore") if one not in kept] + ["Cryptographer.Access"]
    lab.surroundings(user=lab.user, denied=denied)
    gone = {"Obj": {"Type": "VirtualMachine", "Value": "vm-1"}}  # while it was asked about
    lab.inject("HasPrivilegeOnEntities", "ManagedObjectNotFound", times=2, fields=gone)
    try:
        found = examined(lab, written(lab, home, transport(lab)))
    finally:
        lab.surroundings(user=lab.user, denied=[])
    assert "may make no VM anywhere" in found["privileges for restores"][0]["said"]
    assert found["privileges for encrypted VMs"][0]["level"] == "note"


def test_a_refused_login_and_a_vcenter_that_is_not_there_end_with_six(lab: Lab, home: Path, examined: Examined) -> None:
    config = written(lab, home)
    (home / "password").write_text("wrong-secret-9\n")
    found = examined(lab, config, expect=6)
    assert found["login"][0]["level"] == "unreachable"
    assert "wrong-secret-9" not in str(found)
    config.write_text(config.read_text().replace(f"port = {lab.port}", "port = 1"))
    assert examined(lab, config, expect=6)["login"][0]["level"] == "unreachable"


def test_what_would_not_work_is_a_problem_and_says_what_to_do(
    fresh_lab: Start, home: Path, examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = fresh_lab(vms=2, disk_bytes=4 * MIB, content=False)
    lab.surroundings(datastore="fast-1", free_bytes=1 << 30)
    config = written(lab, home, transport(lab, 'order = ["hotadd"]\nhotadd = "never"', 'nbdkit = ["no-such-nbdkit"]'))
    (home / "policies.d" / "a.toml").write_text("schema = 1\n[policy.a]\nselect.all = ['*']\ntransports = ['nbd']\n")
    found = examined(lab, config, expect=3)
    assert "no-such-nbdkit is not installed" in found["nbdkit and VDDK"][0]["said"]
    assert "Fedora, RHEL and Ubuntu" in found["nbdkit and VDDK"][0]["do"]
    assert found["ways to disks"][0]["level"] == "problem"
    assert "fast-1" in found["datastores"][0]["said"] and found["datastores"][0]["level"] == "problem"
    assert doctor("main", config=config) == 3
    shown = capsys.readouterr()
    assert "PROBLEM" in shown.out and "docs/transports.md" in shown.err
    with pytest.raises(BadInput, match="there are: main"):
        doctor("other", config=config)


@pytest.mark.parametrize("role", ROLES)
def test_the_written_role_is_one_that_vcenter_takes_and_holds_what_doctor_asks_for(
    lab: Lab, home: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    config = written(lab, home)
    assert doctor(role=True, json=True, config=config) == 0
    (made,) = (one for one in json.loads(capsys.readouterr().out)["roles"] if one["role"] == role)
    lab.add_role(f"{made['name']}-{role}", made["privileges"])
    asked = {one for p in PURPOSES if role == "restore" or p.role == role for one in p.privileges}
    assert set(made["privileges"]) == {one for one in asked if not one.startswith("System.")}
    assert doctor(role=True, config=config) == 0
    text = capsys.readouterr().out
    assert "-Principal 'VSPHERE.LOCAL\\backup'" in text
    assert f"New-VIRole -Name {made['name']} -Privilege (Get-VIPrivilege -Id '{made['privileges'][0]}'," in text
    assert f"govc role.create {made['name']} {made['privileges'][0]} " in text


def test_where_export_is_the_only_way_doctor_says_what_that_means(
    fresh_lab: Start, home: Path, examined: Examined
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB, content=False)
    lab.surroundings(user=lab.user, denied=["VApp.Export"])
    found = examined(lab, written(lab, home, '[transport]\norder = ["export"]'), expect=3)
    assert "VApp.Export lacks on web-01" in found["privileges for exports"][0]["said"]
    assert [one["said"] for one in found["ways to disks"]] == [
        "1 disk by export",
        "by export no disk is written into a VM that is there: a restore makes a new VM or goes to files",
    ]
    assert "3 of 3 hosts do not answer on TCP 443, so export reads nothing there" in found["ESXi hosts"][0]["said"]
