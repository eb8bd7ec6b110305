"""Tests that stand beside policies: what they mean, what comes of them, how a difference is told."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from policies.errors import PolicyError
from policies.facts import Disk, Vm
from policies.fixture_tables import DiskFixture, VmFixture
from policies.fixtures import case_of, inventory_of
from policies.loading import load, load_tests, load_texts
from policies.reading import read_tests
from policies.verdicts import Verdict, judge

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"

GOLD = """
schema = 1
[policy.gold]
priority = 30
rpo = "4h"
timezone = "Europe/Berlin"
transports = ["nbd"]
copies = ["offsite"]
consistency = { want = "application", fallback = "filesystem" }
select.all = ["tag:backup=gold"]
retention = { keep_daily = 3, lock = "1d", grace = "7d" }
trigger = [{ on = "vm.migrated", cause = "drs", settle = "10m", cooldown = "6h" }]
[policy.everything]
select.all = ["*"]
select.none = ["name:scratch*"]
schedule = "0 22 * * *"
retention.keep_within = "2d"
"""
VM = 'vm = [{ name = "sql9", tags = ["backup=gold"], host = "esx1" }]'
FRESH = 'point = [{ vm = "sql9", age = "1h" }]'


def run(body: str, policies: str = GOLD, inventory: Mapping[str, Any] | None = None) -> tuple[Verdict, ...]:
    texts = {"a.toml": f"{policies}\n{body}"}
    found = load_texts(texts)
    return tuple(
        judge(case_of(test, found, inventory_of(inventory, "i.json") if inventory else None), found)
        for test in read_tests(texts)
    )


def one(body: str, policies: str = GOLD, inventory: Mapping[str, Any] | None = None) -> Verdict:
    (verdict,) = run(f'[[test]]\nname = "t"\n{body}', policies, inventory)
    return verdict


def differences(body: str, policies: str = GOLD) -> list[str]:
    return [str(difference).partition(": ")[2] for difference in one(body, policies).differences]


def refused(body: str, inventory: Mapping[str, Any] | None = None) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        one(body, inventory=inventory)
    return str(caught.value).splitlines()


def test_the_tests_in_the_docs_pass() -> None:
    blocks = [part.partition("```")[0] for part in DOCS.read_text().split("```toml\n")[1:]]
    texts = {f"{number}.toml": text for number, text in enumerate(blocks) if text.startswith("schema")}
    texts |= {"t.toml": "schema = 1\n" + next(text for text in blocks if text.startswith("[[test]]"))}
    policies = load_texts(texts)
    verdicts = [judge(case_of(test, policies), policies) for test in read_tests(texts)]
    assert len(verdicts) == 4
    assert [str(difference) for verdict in verdicts for difference in verdict.differences] == []


@pytest.mark.parametrize(
    "expected",
    [
        'policies = ["everything", "gold"]',
        'policy = "gold"',
        "unprotected = false",
        'rpo = "4h"',
        'consistency = "application"',
        'fallback = "filesystem"',
        'transports = ["nbd"]',
        'copies = ["offsite"]',
        'lock = "1d"',
        "no_backup = false",
        "backups = 1",
        'backup_by = "10m"',
        'backup_after = "10m"',
        'backup_policy = "gold"',
        'backup_rule = "trigger[0]"',
        'reason = "by DRS from esx1 to esx2"',
        "full_read = false",
        "held = false",
        "keeps = 2",
        'keeps = ["sql9-point-1", "sql9-backup-1"]',
        "expires = 0",
        "expires = []",
    ],
)
def test_what_comes_true_passes(expected: str) -> None:
    moved = 'event = [{ type = "vm.migrated", vm = "sql9", cause = "drs", to_host = "esx2" }]'
    body = f'{VM}\n{FRESH}\n{moved}\nfor = "15m"\nexpect.sql9.{expected}'
    assert differences(body) == []


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ('policies = ["gold"]', "policies of sql9: expected gold, got everything, gold"),
        ('policy = "everything"', "policy of sql9: expected everything, got gold"),
        ("unprotected = true", "unprotected of sql9: expected true, got false"),
        ('rpo = "3h"', "rpo of sql9: expected 3 h, got 4 h"),
        ('consistency = "crash"', "consistency of sql9: expected crash, got application"),
        ('fallback = "crash"', "fallback of sql9: expected crash, got filesystem"),
        ('transports = ["hotadd"]', "transports of sql9: expected hotadd, got nbd"),
        ("copies = []", "copies of sql9: expected none, got offsite"),
        ('lock = "2d"', "lock of sql9: expected 2 d, got 1 d"),
        ("no_backup = true", "no_backup of sql9: expected true, got 1 backup"),
        ("backups = 2", "backups of sql9: expected 2, got 1"),
        (
            'backup_by = "9m"',
            "backup_by of sql9: expected a start within 9 m, got a start after 10 m, at 2026-01-05 13:10 CET",
        ),
        (
            'backup_after = "11m"',
            "backup_after of sql9: expected none before 11 m, got a start after 10 m, at 2026-01-05 13:10 CET",
        ),
        ('backup_policy = "everything"', "backup_policy of sql9: expected everything, got gold"),
        ('backup_rule = "rpo"', "backup_rule of sql9: expected rpo, got trigger[0]"),
        ("full_read = true", "full_read of sql9: expected true, got false"),
        ("held = true", "held of sql9: expected true, got false"),
        ("keeps = 3", "keeps of sql9: expected 3, got 1"),
        ('expires = ["sql9-point-1"]', "expires of sql9: expected sql9-point-1, got none"),
    ],
)
def test_what_differs_is_told_with_its_place_and_why(expected: str, told: str) -> None:
    moved = 'event = [{ type = "vm.migrated", vm = "sql9", cause = "drs", to_host = "esx2" }]'
    verdict = one(f"{VM}\n{FRESH}\n{moved}\nexpect.sql9.{expected}")
    (difference,) = verdict.differences
    assert str(difference).partition(": ")[2] == told
    assert (difference.source.file, difference.source.line, difference.source.column) == ("a.toml", 24, 13)
    assert difference.why


def test_the_explanation_of_a_selection_has_every_policy() -> None:
    verdict = one('vm = [{ name = "scratch1" }]\nexpect.scratch1.policy = "gold"')
    assert verdict.differences[0].got == "no policy"
    assert verdict.differences[0].why == (
        "policy gold (priority 30, a.toml:3) does not select it: tag:backup=gold does not match (the VM has none)",
        "policy everything (priority 0, a.toml:13) does not select it: excluded by none: name:scratch*",
    )


def test_the_explanation_of_a_backup_has_the_decisions() -> None:
    verdict = one(f"{VM}\nexpect.sql9.no_backup = true")
    assert verdict.differences[0].why == (
        "at 0 s: backup by gold, rpo: sql9: never backed up; RPO is 4 h; policy gold backs it up",
    )
    nothing = one(f"{VM}\n{FRESH}\nexpect.sql9.backups = 1")
    assert nothing.differences[0].why == (
        "at the end: sql9 is due at 15:30 CET: last good restore point is 1 h old; RPO is 4 h",
    )
    said = one(f'{VM}\n{FRESH}\nexpect.sql9.reason = "the moon"')
    assert (
        said.differences[0].got
        == "at the end: sql9 is due at 15:30 CET: last good restore point is 1 h old; RPO is 4 h"
    )
    for key, value in (("backup_by", '"5m"'), ("backup_rule", '"rpo"'), ("backup_after", '"1m"')):
        assert differences(f"{VM}\n{FRESH}\nexpect.sql9.{key} = {value}")[0].endswith("got no backup")


def test_the_explanation_of_retention_has_the_rule_of_each_point() -> None:
    body = f'{VM}\npoint = [{{ vm = "sql9", id = "day", count = 6 }}]\nexpect.sql9'
    wrong = one(f'{body} = {{ keeps = ["day-1"], expires = 0 }}')
    keeps, expires = wrong.differences
    assert keeps.got == "day-1, day-2, day-3"
    assert keeps.why == (
        "day-2, 1 d old: policy gold: keep_daily 2 of 3; policy everything: keep_within 2 d",
        "day-3, 2 d old: policy gold: keep_daily 3 of 3; policy everything: keep_within 2 d",
    )
    assert expires.got == "3"
    assert expires.why[0] == "day-4, 3 d old: no rule and no guard keeps it"


def test_a_long_explanation_is_cut() -> None:
    verdict = one(f'{VM}\npoint = [{{ vm = "sql9", count = 100 }}]\nexpect.sql9.expires = 1')
    assert verdict.differences[0].why[-1] == "and 67 more"


def test_a_vm_that_an_event_makes_is_there_from_then_on() -> None:
    made = '{ at = "1h", type = "vm.created", vm = "sql9", set = { tags = ["backup=gold"] } }'
    assert differences(f'event = [{made}]\nexpect.sql9 = {{ backup_after = "1h", backups = 1, policy = "gold" }}') == []
    declared = 'vm = [{ name = "sql9", tags = ["backup=gold"] }]'
    assert differences(f'{declared}\nevent = [{made}]\nexpect.sql9 = {{ backup_after = "1h", backups = 1 }}') == []


def test_a_removed_vm_is_not_backed_up() -> None:
    nightly = GOLD.replace('timezone = "Europe/Berlin"', 'window = ["18:00-06:00"]')
    events = """event = [
        { type = "vm.migrated", cause = "drs", vm = "sql9" },
        { at = "1h", type = "vm.removed", vm = "sql9" },
    ]"""
    expected = 'expect.sql9 = { no_backup = true, reason = "was removed", keeps = 1 }'
    assert differences(f"{VM}\n{FRESH}\n{events}\n{expected}", nightly) == []


def test_what_waits_at_the_end_starts_when_its_window_opens() -> None:
    nightly = GOLD.replace('timezone = "Europe/Berlin"', 'window = ["18:00-06:00"]')
    moved = 'event = [{ type = "vm.migrated", vm = "sql9", cause = "drs" }]'
    expected = 'expect.sql9 = { backup_after = "6h", backup_by = "6h", reason = "when its window opens" }'
    assert differences(f"{VM}\n{FRESH}\n{moved}\n{expected}", nightly) == []
    assert differences(f'{VM}\n{FRESH}\n{moved}\nfor = "1m"\nexpect.sql9.backups = 1', nightly) == []


def test_events_change_the_vm_as_vcenter_does() -> None:
    policies = 'schema = 1\n[policy.p]\nselect.all = ["power:off", "host:esx2"]\nrpo = "1d"'
    events = """event = [
        { type = "vm.migrated", vm = "a", to_host = "esx2" },
        { at = "1m", type = "vm.powered_off", vm = "a" },
    ]"""
    assert differences(f'vm = [{{ name = "a", host = "esx1" }}]\n{events}\nexpect.a.policy = "p"', policies) == []


def test_disks_that_change_lead_to_a_full_read_and_a_request_to_hold_is_heard() -> None:
    changed = 'event = [{ type = "vm.reconfigured", vm = "sql9", set = { disks = [{ label = "new" }] } }]'
    assert differences(f"{VM}\n{FRESH}\n{changed}\nexpect.sql9 = {{ full_read = true, held = false }}") == []
    asked = 'event = [{ type = "hold.requested", vm = "sql9", user = "bob", detail = { reason = "audit" } }]'
    assert differences(f'{VM}\n{FRESH}\n{asked}\nexpect.sql9 = {{ held = true, reason = "bob asked (audit)" }}') == []


def test_cooldowns_count_and_a_clock_that_jumps_does_not_fire_twice() -> None:
    moved = '{ at = "AT", type = "vm.migrated", vm = "sql9", cause = "drs" }'
    first, second = moved.replace("AT", "0s"), moved.replace("AT", "2h")
    rare = GOLD.replace('"4h"', '"30d"')
    assert differences(f"{VM}\n{FRESH}\nevent = [{first}, {second}]\nexpect.sql9.backups = 1", rare) == []
    jump = '{ at = "1h", clock = 2026-01-05T20:00:00Z }'
    assert differences(f"{VM}\n{FRESH}\nevent = [{first}, {jump}, {second}]\nexpect.sql9.backups = 2", rare) == []


def test_the_clock_asks_for_what_is_due_for_as_long_as_the_test_goes_on() -> None:
    assert differences(f'{VM}\nfor = "2d"\nexpect.sql9.backups = 14') == []
    night = 'vm = [{ name = "web" }]\nfor = "3d"\nexpect.web = { backups = 3, backup_after = "10h", backup_by = "10h" }'
    assert differences(night) == []
    slow = f'{VM}\nfor = "12h"\nbackup_takes = "6h"\nexpect.sql9.backups = 3'
    assert differences(slow) == []


def test_without_events_and_time_nothing_runs() -> None:
    assert one(f"{VM}\nexpect.sql9.keeps = 0").backups == 0


def test_a_run_that_is_not_needed_any_more_is_given_up() -> None:
    nightly = GOLD.replace('timezone = "Europe/Berlin"', 'window = ["18:00-06:00"]')
    events = """event = [
        { type = "vm.migrated", vm = "sql9", cause = "drs" },
        { at = "1h", type = "vm.reconfigured", vm = "sql9", set = { tags = [] } },
    ]"""
    body = f'{VM}\n{FRESH}\n{events}\nfor = "7h"\nexpect.sql9 = {{ no_backup = true, reason = "does not select" }}'
    assert differences(body, nightly) == []


def test_a_test_that_does_not_end_is_told() -> None:
    often = 'schema = 1\n[policy.p]\nselect.all = ["*"]\nrpo = "1m"'
    assert differences('vm = [{ name = "a" }]\nfor = "300d"\nexpect.a.policy = "p"', often)[0].startswith(
        "for: expected an end, got no end yet"
    )


def test_a_change_and_its_guard() -> None:
    plan = 'plan = { without = ["gold", "everything"], '
    assert differences(f'{VM}\n{plan} refused = true, loses = ["sql9"], expires = 0 }}') == []
    wrong = one(f'{VM}\n{plan} refused = false, loses = [], expires = ["x"] }}')
    assert [str(found).partition(": ")[2] for found in wrong.differences] == [
        "plan.refused: expected false, got true",
        "plan.loses: expected none, got sql9",
        "plan.expires: expected x, got none",
    ]
    assert "1 VM would lose protection" in wrong.differences[0].why[0]


def test_an_inventory_gives_vms_and_points() -> None:
    inventory = {
        "now": "2026-11-23T12:00:00Z",
        "vms": [{"name": "sql9", "tags": ["backup=gold"]}],
        "points": [{"id": "p1", "vm": "sql9", "taken_at": "2026-11-20T12:00:00Z"}],
    }
    assert one('expect.sql9 = { policy = "gold", keeps = ["p1"] }', inventory=inventory).passed
    assert refused('vm = [{ name = "sql9" }]\nexpect.sql9.keeps = 1', inventory) == [
        'a.toml:21:9: there is a VM "sql9" already, write another name'
    ]
    assert refused('point = [{ vm = "sql9", id = "p1" }]\nexpect.sql9.keeps = 1', inventory) == [
        'a.toml:21:10: there is a restore point "p1" already, write another id'
    ]
    twins = {"vms": [{"name": "a", "id": "1"}, {"name": "a", "id": "2"}]}
    assert refused("expect.a.keeps = 1", twins) == ['a.toml:21:8: 2 VMs are called "a", write an id such as "1"']
    assert one("expect.2.keeps = 0", inventory=twins).passed


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("expect.sql8.keeps = 1", '8: there is no VM "sql8" in the test, write "sql9"'),
        ("expect.x.keeps = 1", '8: there is no VM "x" in the test, write it as [[test.vm]]'),
        ('expect.sql9.policy = "glod"', '13: there is no policy "glod", write "gold"'),
        ('expect.sql9.policies = ["zzz"]', '13: there is no policy "zzz", write the name of a policy'),
        ('plan.without = ["glod"]', '6: there is no policy "glod", write "gold"'),
        ('plan = { without = ["gold"], loses = ["sql8"] }', '30: there is no VM "sql8" in the test'),
        ('event = [{ vm = "sql9" }]\nexpect.sql9.keeps = 1', "10: the event does not say what happens to which VM"),
        (
            'event = [{ vm = "sql9", clock = 2026-01-01T00:00:00Z }]\nexpect.sql9.keeps = 1',
            "10: an event is either something of a VM or a jump of the clock",
        ),
        ('event = [{ type = "vm.renamed", vm = "w" }]\nexpect.sql9.keeps = 1', '33: there is no VM "w" in the test'),
        ('point = [{ vm = "w" }]\nexpect.sql9.keeps = 1', '12: there is no VM "w" in the test'),
        (
            'point = [{ vm = "sql9", count = 10000, every = "36525d" }]\nexpect.sql9.keeps = 1',
            "10: the points go back more than a century",
        ),
    ],
)
def test_what_a_test_cannot_mean_is_told_at_its_place(body: str, problem: str) -> None:
    assert refused(f"{VM}\n{body}")[0].startswith(f"a.toml:22:{problem}")


def test_a_test_that_expects_nothing_is_a_mistake() -> None:
    assert refused(VM) == ["a.toml:19:3: the test expects nothing, write [test.expect.VM] or [test.plan]"]


def test_tests_change_no_policy() -> None:
    with_tests = load_texts({"a.toml": f'{GOLD}\n[[test]]\nname = "t"\n'})
    assert with_tests.hash == load_texts({"a.toml": GOLD}).hash


def test_a_vm_of_a_test_has_only_keys_that_a_vm_has() -> None:
    assert set(VmFixture.model_fields) <= {field.name for field in fields(Vm)}
    assert set(DiskFixture.model_fields) <= {field.name for field in fields(Disk)}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("i.json", None, 'a.toml:21:1: "'),
        ("i.json", '{"vms": [', "i.json:1:10: is not valid JSON"),
        ("i.toml", "vms = [", "i.toml:1:8: is not valid TOML"),
        ("i.json", "[]", "i.json:1:1: is not a table"),
        ("i.json", "\x1f\udc8bxx", "i.json:1:1: cannot be decompressed"),
        ("i.json", "[" * 100_000, "i.json:1:1: is not UTF-8 text of JSON or TOML"),
        ("i.json", '{"vms": [{"nam": "x"}]}', "i.json:1:1: vms[0] has an unknown key"),
    ],
)
def test_an_inventory_that_cannot_be_used_is_told(tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "a.toml").write_text(
        f'{GOLD}\n[[test]]\nname = "t"\ninventory = "../{name}"\nexpect.a.keeps = 0\n'
    )
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    policies = load(tmp_path / "policies")
    with pytest.raises(PolicyError) as caught:
        for test, inventory in load_tests(tmp_path / "policies", policies):
            case_of(test, policies, inventory_of(inventory or {}, name))
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["i.json", "i.json.gz", "i.toml"])
def test_an_inventory_is_read_relative_to_the_file_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "policies" / "deep").mkdir(parents=True)
    file = tmp_path / "policies" / "deep" / "a.toml"
    file.write_text(
        f'{GOLD}\n[[test]]\nname = "t"\ninventory = "../../{name}"\nexpect.sql9.policy = "gold"\n'
        f'[[test]]\nname = "u"\ninventory = "../../{name}"\nexpect.sql9.policy = "gold"\n'
    )
    record = {"name": "sql9", "tags": ["backup=gold"]}
    written = json.dumps({"vms": [record]}) if "json" in name else '[[vms]]\nname = "sql9"\ntags = ["backup=gold"]\n'
    (tmp_path / name).write_bytes(gzip.compress(written.encode()) if name.endswith(".gz") else written.encode())
    for place in (tmp_path / "policies", file):
        policies = load(place)
        verdicts = [
            judge(case_of(test, policies, inventory_of(data or {}, name)), policies)
            for test, data in load_tests(place, policies)
        ]
        assert [verdict.passed for verdict in verdicts] == [True, True]


def test_every_kind_of_decision_has_its_words_in_an_explanation() -> None:
    events = """event = [
        { type = "vm.reconfigured", vm = "sql9", set = { disks = [{ label = "new" }], power = "off" } },
        { at = "1m", type = "hold.requested", vm = "sql9", user = "bob" },
        { at = "2m", type = "backup.requested", vm = "sql9", user = "eve" },
        { at = "3m", type = "vm.removed", vm = "sql9" },
    ]"""
    verdict = one(f"{VM}\n{FRESH}\n{events}\nexpect.sql9.backups = 9")
    assert [sentence.split(":")[1].strip() for sentence in verdict.differences[0].why] == [
        "full read",
        "no backup",
        "hold",
        "backup by gold, request",
        "retired",
    ]


def test_a_vm_of_the_inventory_may_be_called_by_its_name() -> None:
    inventory = {"vms": [{"name": "a", "id": "1"}]}
    assert one("expect.a.keeps = 0", inventory=inventory).passed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('now = "2026-11-23"', '"2026-11-23" is not a time with its zone, write one such as'),
        ('now = "soon"', '"soon" is not a time with its zone'),
        ("now = 3", '"3" is not a time with its zone'),
        ('event = [{ type = "vm.migratd", vm = "a" }]', '"vm.migratd" is not an event, write "vm.migrated"'),
        ("expect.a.keeps = -1", '"-1" is neither a number nor a list of ids, write 14'),
        ("expect.a.keeps = [1]", "is neither a number nor a list of ids"),
    ],
)
def test_a_value_that_means_nothing_in_a_test_is_told(body: str, said: str) -> None:
    assert said in refused(body)[0]


def test_an_inventory_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.loading.LARGEST_DOCUMENT_BYTES", 1 << 20)
    (tmp_path / "a.toml").write_text(f'{GOLD}\n[[test]]\nname = "t"\ninventory = "i.json.gz"\nexpect.a.keeps = 0\n')
    (tmp_path / "i.json.gz").write_bytes(gzip.compress(b" " * (2 << 20)))
    with pytest.raises(PolicyError, match=r"i\.json\.gz:1:1: is larger than 1 MiB"):
        load_tests(tmp_path, load(tmp_path))


def test_of_many_policies_those_that_select_and_that_are_expected_are_told_first() -> None:
    many = "".join(f'[policy.p{number}]\nselect.all = ["tag:t=p{number}"]\nrpo = "4h"\n' for number in range(20))
    said = one('vm = [{ name = "a", tags = ["t=p17"] }]\nexpect.a.policy = "p9"', f"schema = 1\n{many}")
    told = said.differences[0].why
    assert told[1].startswith("policy p9 (") and "does not select it: tag:t=p9" in told[1]
    assert told[0].startswith("policy p17 (") and "selects it" in told[0]
    assert (len(told), told[-1]) == (8, "and 13 more that do not select it")
