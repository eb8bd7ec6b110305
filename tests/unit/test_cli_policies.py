"""The commands about policy files, as a user and a CI system run them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

from tests.console import backstay

POLICY = """schema = 1
[policy.gold]
select.all = ["tag:backup=gold"]
rpo = "4h"
retention.keep_daily = 7
"""
PASSES = """
[[test]]
name = "gold is <gold> & more"
vm = [{ name = "sql9", tags = ["backup=gold"] }]
expect.sql9.policy = "gold"
"""
FAILS = """
[[test]]
name = "silver is gold"
vm = [{ name = "sql\\u0007", tags = ["backup=silver"] }]
expect."sql\\u0007".policy = "gold"
"""


def test_tests_that_pass_end_with_zero(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    (tmp_path / "tests.toml").write_text("schema = 1" + PASSES)
    ran = backstay("policy", "test", tmp_path, home=tmp_path)
    assert ran.out == "ok    gold is <gold> & more\n"
    assert ran.err == f"1 test in {tmp_path}: 1 passed.\n"
    assert backstay("policy", "test", tmp_path, "--json", home=tmp_path).data["passed"] == 1


def test_a_test_that_fails_is_explained_and_ends_with_three(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY + PASSES + FAILS)
    ran = backstay("policy", "test", tmp_path, home=tmp_path, expect=3)
    assert ran.out.splitlines()[1:] == [
        "FAIL  silver is gold",
        "      gold.toml:15:20: policy of sql\\x07: expected gold, got no policy",
        "        policy gold (priority 0, gold.toml:2) does not select it: tag:backup=gold does not match "
        "(the VM has backup=silver)",
    ]
    assert ran.err.endswith("1 passed, 1 failed.\n")
    told = backstay("policy", "test", tmp_path, "--json", home=tmp_path, expect=3).data
    assert (told["passed"], told["failed"]) == (1, 1)
    difference = told["tests"][1]["differences"][0]
    assert (difference["line"], difference["key"], difference["expected"]) == (15, "policy", "gold")
    assert backstay("policy", "test", tmp_path, "-k", "GOLD IS", home=tmp_path).out.startswith("ok")


def test_ci_systems_read_the_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "gold.toml").write_text(POLICY + PASSES)
    (folder / "more.toml").write_text("schema = 1" + FAILS)
    backstay("policy", "test", folder, "--junit", "out.xml", home=tmp_path, expect=3)
    root = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "2", "1")
    suites = root.findall("testsuite")
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("gold.toml", "1", "0"),
        ("more.toml", "1", "1"),
    ]
    for suite in suites:
        assert {"name", "tests", "failures", "errors", "skipped", "time"} == set(suite.keys())
        assert {case.tag for case in suite} == {"testcase"}
        for case in suite:
            assert {"classname", "name", "file", "line", "time"} == set(case.keys())
            assert float(case.get("time", "")) >= 0
    assert root.findall("testsuite/testcase")[0].get("name") == "gold is <gold> & more"
    (failure,) = root.iter("failure")
    assert failure.get("message") == "policy of sql\\u0007: expected gold, got no policy"
    assert "does not select it" in (failure.text or "")
    no_place = backstay("policy", "test", folder, "--junit", "no/where.xml", home=tmp_path, expect=2)
    assert "no/where.xml: cannot be written" in no_place.err


def test_no_test_at_all_is_not_a_pass(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    assert "no policy file has a [[test]]" in backstay("policy", "test", tmp_path, home=tmp_path, expect=2).err
    (tmp_path / "gold.toml").write_text(POLICY + PASSES)
    assert 'no test has "x"' in backstay("policy", "test", tmp_path, "-k", "x", home=tmp_path, expect=2).err


def test_an_empty_name_is_not_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY + PASSES)
    for command in ("test", "lint"):
        assert "an empty name is no directory" in backstay("policy", command, "", home=tmp_path, expect=2).err


def test_warnings_end_with_zero_and_with_three_when_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    (tmp_path / "odd.toml").write_text(POLICY.replace("gold", "odd").replace("rpo", 'window = ["01:00-02:00"]\nrpo'))
    ran = backstay("policy", "lint", tmp_path / "odd.toml", home=tmp_path)
    assert ran.out.startswith(
        'odd.toml:5:1: policy "odd" has an rpo of 4 h, but its windows stay closed for up to 23 h'
    )
    assert ran.err == f"1 policy in {tmp_path / 'odd.toml'}: valid, 1 warning.\n"
    backstay("policy", "lint", tmp_path, "--strict", home=tmp_path, expect=3)
    assert "valid, no warnings" in backstay("policy", "lint", tmp_path / "gold.toml", "--strict", home=tmp_path).err
    assert backstay("policy", "lint", tmp_path, "--json", home=tmp_path).data["advice"][0]["line"] == 5


def test_lint_looks_at_the_vms_of_a_state_file(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "gold.toml").write_text(POLICY)
    (tmp_path / "state.json").write_text('{"now": "2026-11-23T12:00:00Z", "vms": [{"name": "web"}]}')
    ran = backstay("policy", "lint", "policies", "--state", "state.json", home=tmp_path)
    assert ran.out.splitlines() == [
        "web is selected by no policy, add a policy that selects it",
        'gold.toml:3:1: policy "gold" selects no VM of the inventory, correct its select or remove it',
    ]


STATE = """{"now": "2026-11-23T12:00:00Z", "vms": [{"name": "sql9", "tags": ["backup=gold"]}, {"name": "web"}],
 "points": [{"id": "20261122t1", "vm": "sql9", "taken_at": "2026-11-22T12:00:00Z"},
            {"id": "20261122t2", "vm": "sql9", "taken_at": "2026-11-22T11:00:00Z"}]}"""


def test_a_vm_and_a_restore_point_of_a_state_file_are_explained(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "gold.toml").write_text(POLICY)
    (tmp_path / "state.json").write_text(STATE)
    explain = ("policy", "explain", "--state", "state.json", "--policies", "policies")
    ran = backstay(*explain, "sql9", home=tmp_path)
    assert ran.out.startswith("sql9: protected by gold, last good restore point 1 d ago; due now under gold")
    assert backstay(*explain, "web", "--json", home=tmp_path).data["protected"] is False
    assert backstay(*explain, "20261122t1", home=tmp_path).out.startswith("20261122t1: stays\n")
    told = backstay(*explain, "--point", "20261122t2", "--json", home=tmp_path).data
    assert told["status"] == "marked, and stays while its grace lasts"
    assert told["expires_without_new_points"] == "2026-11-24T12:00:00Z"
    assert "2 restore points begin with" in backstay(*explain, "2026", home=tmp_path, expect=2).err
    assert "no VM is called nobody" in backstay(*explain, "nobody", home=tmp_path, expect=2).err
    assert "there is no restore point x" in backstay(*explain, "--point", "x", home=tmp_path, expect=2).err
    assert "nothing was named" in backstay(*explain, home=tmp_path, expect=2).err
    unknown = backstay(*explain[:4], "sql9", home=tmp_path, expect=2)
    assert "it is not known which policies are in force" in unknown.err


def test_a_pipe_or_a_device_is_written_to_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY + PASSES)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        (folder := tmp_path / "policies").mkdir()
        (tmp_path / "gold.toml").rename(folder / "gold.toml")
        backstay("policy", "test", folder, "--junit", "pipe", home=tmp_path)
        assert os.read(reader, 1 << 16).startswith(b"<?xml")
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    (tmp_path / "link.xml").symlink_to("real.xml")
    backstay("policy", "test", folder, "--junit", "link.xml", home=tmp_path)
    assert (tmp_path / "link.xml").is_symlink() and (tmp_path / "real.xml").read_bytes().startswith(b"<?xml")
    assert not [*tmp_path.glob(".*")]


def test_a_full_disk_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY + PASSES)
    (tmp_path / "full.xml").symlink_to("/dev/full")
    told = backstay("policy", "test", tmp_path, "--junit", "full.xml", home=tmp_path, expect=7)
    assert "full.xml: no space left (free some, then run the command again)" in told.err
    beneath = backstay("policy", "test", tmp_path, "--junit", "gold.toml/x.xml", home=tmp_path, expect=2)
    assert "gold.toml/x.xml: cannot be written: Not a directory" in beneath.err


def test_a_pipe_among_the_policies_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gold.toml")
    told = backstay("policy", "lint", tmp_path, home=tmp_path, expect=2)
    assert told.err == "gold.toml:1:1: cannot be read (it is no file), make it a file that this user can read\n"


def test_lint_tells_programs_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY.replace('"4h"', '"4 hours"'))
    told = backstay("policy", "lint", tmp_path, "--json", home=tmp_path, expect=2)
    assert told.err.startswith('gold.toml:4:7: "4 hours" is not a duration')
    [problem] = told.data["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == ("gold.toml", 4, 7)
    assert (told.data["policies"], told.data["advice"]) == ([], [])


def test_a_plan_from_a_state_without_vms_says_so(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    (tmp_path / "state.json").write_text('{"format": 1, "now": "2026-11-23T12:00:00Z", "policies": {}}')
    told = backstay("policy", "plan", tmp_path, "--state", "state.json", home=tmp_path)
    assert told.err == "No VM is known there: what the change takes away cannot be told.\n"


def test_numbers_and_years_that_cannot_be_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    many = f'[{{"name": {"9" * 5000}}}]'
    (tmp_path / "state.json").write_text(f'{{"now": "2026-11-23T12:00:00Z", "vms": {many}}}')
    told = backstay("policy", "simulate", tmp_path, "--state", "state.json", home=tmp_path, expect=2)
    assert "state.json:1:1: is no JSON text" in told.err
    for option in ("--until", "--at"):
        asked = ("policy", "simulate", tmp_path, "--fleet", "2", option, "9999-12-31T23:00:00-11:00")
        assert "write a year from 1970 to 8999" in backstay(*asked, home=tmp_path, expect=2).err


def test_a_name_with_a_new_line_cannot_fake_a_line(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    vm = {"id": "x", "name": "a\nNothing changes.\x1b[2J", "tags": ["backup=gold"]}
    state = {"now": "2026-11-23T12:00:00Z", "policies": {}, "vms": [vm]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    for asked in (("plan", tmp_path), ("explain", "x", "--policies", tmp_path), ("simulate", tmp_path, "--days", "2")):
        told = backstay("policy", *asked, "--state", "state.json", home=tmp_path)
        assert "Nothing changes." not in told.out.splitlines() and "\x1b" not in told.out
    unknown = backstay("policy", "explain", "\x1b[2J", "--state", "state.json", home=tmp_path, expect=2)
    assert "no VM is called \\x1b[2J" in unknown.err


def test_what_a_simulation_cannot_use_is_refused_and_not_left_aside(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(POLICY)
    both = backstay("policy", "simulate", tmp_path, "--fleet", "2", "--state", "s.json", home=tmp_path, expect=2)
    assert "--state and --fleet each say which VMs there are" in both.err
    first = backstay("policy", "simulate", tmp_path, "--from", "2026-11-23", home=tmp_path, expect=2)
    assert "--from is the first day of a made-up fleet" in first.err
    nothing = backstay("policy", "simulate", tmp_path, home=tmp_path, expect=2)
    assert "give --state FILE that policy state wrote, --fleet N for a made-up fleet, or --config FILE" in nothing.err


def test_what_a_template_brings_on_many_policies_is_one_line(tmp_path: Path) -> None:
    template = '[template.t]\nrpo = "4h"\nblackout = ["12-24..12-26"]\nretention.keep_daily = 7\n'
    three = "".join(f'[policy.{name}]\ntemplate = "t"\nselect.all = ["tag:t={name}"]\n' for name in ("a", "b", "c"))
    (tmp_path / "t.toml").write_text(f"schema = 1\n{template}{three}")
    ran = backstay("policy", "lint", tmp_path, home=tmp_path)
    assert ran.out.startswith('t.toml:3:1: policy "a" has an rpo of 4 h') and len(ran.out.splitlines()) == 1
    assert ran.out.endswith('; the same for "b", "c"\n') and "3 warnings" in ran.err
    assert len(backstay("policy", "lint", tmp_path, "--json", home=tmp_path).data["advice"]) == 3


def test_a_directory_without_policies_is_told(tmp_path: Path) -> None:
    assert "No policy is there" in backstay("policy", "lint", tmp_path, home=tmp_path).err
    backstay("policy", "lint", tmp_path, "--strict", home=tmp_path, expect=3)


def test_a_state_written_by_hand_may_be_toml(tmp_path: Path) -> None:
    (folder := tmp_path / "policies").mkdir()
    (folder / "gold.toml").write_text(POLICY)
    state = tmp_path / "state.toml"
    state.write_text('now = 2026-11-23T12:00:00Z\n[[vms]]\nname = "sql9"\ntags = ["backup=gold"]\n')
    asked = ("policy", "explain", "sql9", "--policies", folder, "--state", "state.toml")
    assert backstay(*asked, home=tmp_path).out.startswith("sql9: protected by gold, never backed up; due now")
    state.write_text('now = 2026-11-23T12:00:00Z\n[[vms]\nname = "sql9"\n')
    assert "state.toml:2:6: is no TOML: expected" in backstay(*asked, home=tmp_path, expect=2).err
