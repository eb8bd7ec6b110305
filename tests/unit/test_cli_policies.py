"""The commands about policy files, as a user and a CI system run them."""

from __future__ import annotations

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
