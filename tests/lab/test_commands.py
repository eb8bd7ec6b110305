"""look, init, check, and the commands that ask a running engine, through the real console script on the lab."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.client import Engine
from engine.commands import Rehearse
from engine.trust import fetch_certificate
from tests.console import BACKSTAY, Ran, backstay, environment, on_terminal
from tests.lab.vcenter import MIB, Lab, Machine

Start = Callable[..., Lab]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def account(lab: Lab) -> dict[str, str]:
    return {
        "BACKSTAY_VCENTER_USER": lab.user,
        "BACKSTAY_VCENTER_PASSWORD": lab.password,
        "BACKSTAY_LAB_ROOT": str(lab.root),
    }


def init(lab: Lab, home: Path, *more: str, expect: int | None = 0) -> Ran:
    config = home / "etc" / "backstay.toml"
    return backstay("init", "--vcenter", lab.url, "--config", config, *more, home=home, env=account(lab), expect=expect)


def test_look_tells_what_can_be_protected_and_touches_nothing(fresh_lab: Start, home: Path) -> None:
    special = Machine(name="special", independent=(1,), disks=(16 * MIB, 16 * MIB), power="off")
    lab = fresh_lab(vms=3, disk_bytes=16 * MIB, content=False, extra=[special])
    lab.snapshot("web-01", "before the patch")
    before = lab.calls()
    env = account(lab) | {"BACKSTAY_VCENTER_USER": lab.viewer}
    found = backstay("look", lab.url, "--ca-file", lab.ca_file, "--json", home=home, env=env).data
    changed = {name for name, count in lab.calls().items() if count != before.get(name, 0) and name.endswith("_Task")}
    assert changed == set()
    vms = {row["vm"]: row for row in found["vms"]}
    assert set(vms) == {"web-01", "app-02", "db-03", "special"}
    assert [disk["protectable"] for disk in vms["special"]["disks"]] == [True, False]
    assert "independent" in vms["special"]["disks"][1]["why_not"]
    assert [one["name"] for one in vms["web-01"]["snapshots"]] == ["before the patch"]
    assert vms["web-01"]["snapshots"][0]["age_seconds"] >= 0
    assert vms["web-01"]["tracking"] == "off"
    assert all(disk["transport"] or disk["fallbacks"] for disk in vms["web-01"]["disks"])
    assert {one["policy"] for one in found["policies"]} >= {"everything"}
    assert found["selected_by_none"] == [] and found["summary"]["protectable_disks"] == found["summary"]["disks"] - 1
    table = backstay("look", lab.url, "--ca-file", lab.ca_file, home=home, env=env)
    assert "before the patch" in table.out and "can be protected" in table.err


def test_look_shows_what_no_policy_selects(lab: Lab, home: Path) -> None:
    policies = home / "policies.d"
    policies.mkdir()
    (policies / "a.toml").write_text("schema = 1\n[policy.web]\nrpo = '4h'\nselect.all = ['name:web-*']\n")
    found = backstay(
        "look", lab.url, "--ca-file", lab.ca_file, "--policies", policies, "--json", home=home, env=account(lab)
    ).data
    assert all(name.startswith("web-") for name in found["policies"][0]["vms"])
    assert found["selected_by_none"] and not any(name.startswith("web-") for name in found["selected_by_none"])


def test_a_thousand_vms_are_looked_at_in_less_than_a_minute(fresh_lab: Start, home: Path) -> None:
    lab = fresh_lab(vms=1000, disk_bytes=MIB, content=False)
    began = time.monotonic()
    found = backstay("look", lab.url, "--ca-file", lab.ca_file, "--json", home=home, env=account(lab)).data
    assert found["summary"]["vms"] == 1000
    assert time.monotonic() - began < 60


def test_a_login_that_is_refused_ends_with_six_and_without_the_password(lab: Lab, home: Path) -> None:
    env = account(lab) | {"BACKSTAY_VCENTER_PASSWORD": "wrong-secret-9"}
    ran = backstay("look", lab.url, "--ca-file", lab.ca_file, home=home, env=env, expect=6)
    assert "wrong-secret-9" not in ran.err + ran.out
    ran = backstay("look", f"https://user:wrong-secret-9@{lab.host}", home=home, expect=2)
    assert "wrong-secret-9" not in ran.err + ran.out


def test_a_certificate_that_nobody_vouches_for_is_refused(lab: Lab, home: Path) -> None:
    refused = backstay("look", lab.url, home=home, env=account(lab), expect=6).err
    assert "not trusted" in refused and fetch_certificate(lab.host, lab.port).fingerprint in refused
    other = "00:" * 31 + "00"
    ran = backstay("look", lab.url, "--fingerprint", other, home=home, env=account(lab), expect=2)
    shown = fetch_certificate(lab.host, lab.port).fingerprint
    assert shown in ran.err
    backstay("look", lab.url, "--fingerprint", shown, "--json", home=home, env=account(lab))


def test_init_refuses_a_certificate_without_confirmation_and_names_its_fingerprint(lab: Lab, home: Path) -> None:
    ran = init(lab, home, expect=5)
    assert fetch_certificate(lab.host, lab.port).fingerprint in ran.err
    assert not (home / "etc").exists()


def test_init_trusts_on_first_use_what_a_person_confirms(lab: Lab, home: Path) -> None:
    config = home / "etc" / "backstay.toml"
    arguments = ["init", "--vcenter", lab.url, "--config", str(config), "--vddk", str(lab.root)]
    code, shown = on_terminal(home, arguments, [("Trust it?", "n")], account(lab))
    assert code == 5 and not config.exists()
    code, shown = on_terminal(home, arguments, [("Trust it?", "y")], account(lab))
    assert code == 0 and fetch_certificate(lab.host, lab.port).fingerprint in shown
    assert "BEGIN CERTIFICATE" in (home / "etc" / "vcenter-main.pem").read_text()
    assert backstay("check", "--config", config, home=home).code == 0


@pytest.mark.parametrize("content", [b"nothing of the kind\n", b"\xff\xfe\x00"])
def test_an_authority_that_is_none_is_told_before_anything_is_asked(lab: Lab, home: Path, content: bytes) -> None:
    authority = home / "ca.pem"
    authority.write_bytes(content)
    assert "no certificate" in init(lab, home, "--ca-file", str(authority), expect=2).err
    assert "no certificate" in backstay(
        "look", lab.url, "--ca-file", authority, home=home, env=account(lab), expect=2
    ).err  # fmt: skip
    assert "No such file" in init(lab, home, "--ca-file", str(home / "none.pem"), expect=2).err


def test_init_leaves_nothing_when_the_login_is_refused(lab: Lab, home: Path) -> None:
    config = home / "etc" / "backstay.toml"
    env = account(lab) | {"BACKSTAY_VCENTER_PASSWORD": "wrong-secret-9"}
    ran = backstay(
        "init", "--vcenter", lab.url, "--ca-file", lab.ca_file, "--config", config, home=home, env=env, expect=6
    )
    assert "wrong-secret-9" not in ran.err and not (home / "etc").exists()


def test_init_writes_what_check_finds_ready_and_only_we_may_read(lab: Lab, home: Path) -> None:
    fingerprint = fetch_certificate(lab.host, lab.port).fingerprint
    ran = init(lab, home, "--fingerprint", fingerprint, "--vddk", str(lab.root))
    config = home / "etc" / "backstay.toml"
    assert lab.password not in ran.err + ran.out + config.read_text()
    for path in [home / "etc", *(home / "etc").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert {path.name for path in (home / "etc" / "policies.d").iterdir()} == {"everything.toml"}
    found = backstay("check", "--config", config, "--json", home=home).data
    assert [one for one in found if one["exit_code"]] == []
    assert any(one["check"] == "vcenter main" for one in found)
    assert "already" in init(lab, home, "--fingerprint", fingerprint, expect=5).err
    assert backstay("points", "--config", config, "--json", home=home).data == []


def test_init_and_check_say_so_when_no_transport_reaches_a_disk(fresh_lab: Start, home: Path) -> None:
    lab = fresh_lab(vms=0, extra=[Machine(name="sealed", disks=(4 * MIB, 4 * MIB), encrypted=True, content=False)])
    ran = init(lab, home, "--ca-file", str(lab.ca_file))
    assert "Not ready yet" in ran.err and "VDDK" in ran.err
    checked = backstay("check", "--config", home / "etc" / "backstay.toml", home=home, expect=6)
    assert "disks cannot be read from here" in checked.out and "Not ready: vcenter main" in checked.err
    looked = backstay("look", lab.url, "--ca-file", lab.ca_file, home=home, env=account(lab))
    assert "No transport reaches" in looked.err


def test_without_an_engine_policies_explain_a_vm_as_vcenter_shows_it(lab: Lab, home: Path) -> None:
    init(lab, home, "--ca-file", str(lab.ca_file))
    config = home / "etc" / "backstay.toml"
    ran = backstay("policy", "explain", "web-01", "--config", config, "--json", home=home)
    assert ran.data["winner"] == "everything" and "No engine runs" in ran.err
    assert "selects it" in backstay("policy", "explain", "web-01", "--config", config, home=home).out
    backstay("policy", "explain", "nobody", "--config", config, home=home, expect=2)


def test_without_an_engine_a_change_is_planned_from_vcenter_and_the_repository(lab: Lab, home: Path) -> None:
    init(lab, home, "--ca-file", str(lab.ca_file))
    config = home / "etc" / "backstay.toml"
    (home / "new").mkdir()
    everything = (home / "etc" / "policies.d" / "everything.toml").read_text()
    (home / "new" / "web.toml").write_text(everything.replace('["*"]', '["name:web-*"]'))
    ran = backstay("policy", "plan", "new", "--config", config, "--json", "--exit-code", home=home, expect=5)
    assert {one["name"] for one in ran.data["vms"] if one["kind"] == "loses"} >= {"app-02"}
    assert "No engine runs here" in ran.err
    backstay("policy", "state", "--config", config, "--out", "state.json", home=home)
    later = backstay("policy", "plan", "new", "--state", "state.json", "--json", home=home).data
    assert (later["id"], later["old"]) == (ran.data["id"], ran.data["old"])


def test_check_names_what_is_not_ready(lab: Lab, home: Path) -> None:
    init(lab, home, "--ca-file", str(lab.ca_file))
    config = home / "etc" / "backstay.toml"
    (home / "etc" / "vcenter-main.password").write_text("wrong-secret-9")
    (home / "etc" / "policies.d" / "bad.toml").write_text("schema = 1\n[policy.x]\nrpoo = '4h'\n")
    found = {one["check"]: one for one in backstay("check", "--config", config, "--json", home=home, expect=2).data}
    assert found["vcenter main"]["exit_code"] == 6 and "wrong-secret-9" not in str(found)
    assert "bad.toml:3:1" in found["policies"]["said"] and found["repository"]["exit_code"] == 0


@contextmanager
def engine(config: Path, home: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`backstay run`, ready when its API answers; ended by SIGTERM."""
    log = home / "engine.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [BACKSTAY, "run", "--config", config], env=environment(home) | env, cwd=home,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, text=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not _ready(config):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def _ready(config: Path) -> bool:
    """Asked of the API alone: a command could take the repository before the engine does."""
    api = Engine(config.parent / "state" / "backstay.sock")
    return api.listens() and bool(api.get("/v1/status")["coverage"]["vms"])


def test_after_init_run_needs_nothing_else_and_commands_go_through_the_engine(fresh_lab: Start, home: Path) -> None:
    partly = Machine(name="partly", independent=(1,), disks=(16 * MIB, 16 * MIB))
    lab = fresh_lab(vms=2, disk_bytes=16 * MIB, tracking=True, extra=[partly])
    init(lab, home, "--ca-file", str(lab.ca_file))
    config = home / "etc" / "backstay.toml"
    with config.open("a") as file:
        plugin = json.dumps(["python", lab.facts()["vddk_plugin"]])
        file.write(f'\n[transport]\norder = ["nbd"]\nplugin = {plugin}\nlibdir = "{lab.root}"\n')
    repo = home / "etc" / "repository"
    with engine(config, home, account(lab)):
        made = backstay("backup", "web-01", "--config", config, "--json", home=home).data
        assert made["vm"] == "web-01"
        listed = backstay("points", "--repo", repo, "--json", home=home).data
        assert made["id"] in [row["id"] for row in listed]
        socket = home / "etc" / "state" / "backstay.sock"
        assert socket.stat().st_mode & 0o777 == 0o600
        counted = backstay("sql", "SELECT count(*) AS n FROM restore_points", "--repo", repo, "--json", home=home)
        assert counted.data[0]["n"] >= 1
        assert "getenv" in backstay("sql", "SELECT getenv('HOME')", "--repo", repo, home=home, expect=2).err
        backstay("hold", made["id"], "--repo", repo, home=home)
        backstay("expire", made["id"], "--repo", repo, home=home, expect=5)
        backstay("release", made["id"], "--config", config, home=home)
        explained = backstay("policy", "explain", "web-01", "--config", config, home=home).out
        assert "everything" in explained and "lately decided:" in explained and ": done" in explained
        assert re.search(r": done at [0-9-]{10} [0-9:]{8} UTC", explained)
        newest = backstay("policy", "explain", "web-01@latest", "--config", config, home=home).out
        assert "kept by:" in newest and "until: about" in newest and "backup.requested at" in newest
        backstay("policy", "explain", "nobody", "--config", config, home=home, expect=2)
        assert "No policy change" in backstay("policy", "apply", "--config", config, home=home).err
        assert backstay("verify", "--repo", repo, "--json", home=home).data["damaged"] == []
        backstay("reclaim", "--repo", repo, "--json", home=home)
        back = home / "back.img"
        backstay("restore", "web-01@latest", "--to-file", back, "--config", config, home=home)
        assert back.stat().st_size == 16 * MIB
        tried = backstay("rehearse", "web-01", "--heartbeat", "--config", config, "--json", home=home).data
        assert (tried["passed"], tried["heartbeat"]["seen"]) == (True, True)
        said = backstay("rehearse", "web-01@latest", "--config", config, home=home).err
        assert "passed" in said and "nothing differs" in said and "none was asked for" in said
        assert "rehearsed" in backstay("points", "web-01@latest", "--config", config, home=home).out
        begun = Engine(socket).submit(Rehearse("web-01"))  # as by a command that was interrupted
        assert backstay("task", begun, "--config", config, "--json", home=home).data["passed"]
        for more in ((), ("--cancel",)):
            assert (
                "no task nobody-1" in backstay("task", "nobody-1", *more, "--config", config, home=home, expect=2).err
            )
        backstay("rehearse", "web-01", "--heartbeat-within", "1m", "--config", config, home=home, expect=2)
        assert "web-01" in backstay("status", "--config", config, home=home).out
        assert "Not protected" in backstay("backup", "partly", "--config", config, home=home, expect=3).err
        raw = home / "raw.img"
        raw.write_bytes(os.urandom(MIB))
        backstay("disk", "backup", raw, "--name", "raw", "--repo", repo, home=home)
        backstay("disk", "restore", "raw@latest", "--repo", repo, "--to", home / "raw2.img", home=home)
        assert (home / "raw2.img").read_bytes() == raw.read_bytes()
        pid = backstay("status", "--config", config, "--json", home=home).data["engine"]["pid"]
        assert f"pid {pid}" in backstay("catalog", "rebuild", "--repo", repo, home=home, expect=11).err
        assert "no VM is known" in backstay("backup", "nobody", "--config", config, home=home, expect=2).err
    secrets = [lab.password, (home / "etc" / "repository.passphrase").read_text()]
    log = (home / "engine.log").read_text()
    assert not any(secret in log for secret in secrets)
    assert backstay("points", "--config", config, "--json", home=home).data


def test_a_change_that_takes_protection_away_waits_until_it_is_confirmed(fresh_lab: Start, home: Path) -> None:
    lab = fresh_lab(vms=2, disk_bytes=MIB, content=False)
    init(lab, home, "--ca-file", str(lab.ca_file))
    config, policies = home / "etc" / "backstay.toml", home / "etc" / "policies.d" / "everything.toml"
    with engine(config, home, account(lab)):
        policies.write_text(policies.read_text().replace('["*"]', '["name:web-*"]'))
        shown = backstay("policy", "apply", "--config", config, home=home, expect=3)
        assert "app-02" in shown.out and "web-01" not in shown.out and "--yes" in shown.err
        assert "winner" in backstay("policy", "explain", "app-02", "--config", config, "--json", home=home).data
        pending = backstay("status", "--config", config, "--json", home=home).data["policies"]["pending"]
        backstay("policy", "apply", "another-plan", "--config", config, home=home, expect=5)
        ran = backstay("policy", "apply", pending, "--config", config, home=home, expect=5)
        assert "a guard refuses it" in ran.err
        backstay("policy", "apply", pending, "--override-guard", "--config", config, home=home)
        assert "UNPROTECTED" in backstay("status", "--config", config, home=home).out
        policies.write_text("schema = 1\n[policy.broken]\nrpoo = '4h'\n")
        assert "No policy change" in backstay("policy", "apply", "--config", config, home=home).err
        assert any(
            "everything.toml:3:1" in said
            for said in backstay("status", "--config", config, "--json", home=home).data["problems"]
        )
