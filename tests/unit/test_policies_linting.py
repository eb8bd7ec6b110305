"""What lint finds odd, and where it says that it stands."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from connectors.vsphere import eventfacts
from policies.advice_rules import CAUSES
from policies.linting import lint
from policies.policy import Selection
from policies.policyset import PolicySet
from policies.termlogic import covers, exclude, matches_nothing, taken_away, within
from policies.terms import parse_term
from tests.policies.building import a_vm, facts, policies

WEB = a_vm("web-3", tags=frozenset({"env=prod"}), cluster="c1")
ALL = 'select.all = ["*"]\n'
KEPT = "retention.keep_daily = 14\n"
SOUND = f'rpo = "1d"\n{KEPT}'


def linted(*texts: str) -> list[str]:
    return [str(one) for one in lint(policies(*texts))]


@pytest.mark.parametrize(
    ("body", "place", "advice"),
    [
        (SOUND, "2:9", "selects nothing, write select.all"),
        (f'{SOUND}select.none = ["*"]', "5:1", "selects nothing, write select.all"),
        (f'{SOUND}select.all = ["*"]\nselect.none = ["*"]', "6:8", 'excludes all that it selects by "*"'),
        (
            f'{SOUND}select = {{ any = ["name:a"], none = ["name:A*"] }}',
            "5:30",
            'excludes all that it selects by "',
        ),
        (
            f'{SOUND}select = {{ any = ["name:a1", "name:b1"], none = ["name:a*", "name:b*"] }}',
            "5:42",
            "excludes all that it selects",
        ),
        (
            f'{SOUND}select.all = ["power:on", "power:off"]',
            "5:1",
            'selects nothing: no VM matches both "power:on" and "power:off", remove one of them',
        ),
        (
            f'{SOUND}select = {{ all = ["name:db-*"], any = ["name:web-*", "name:app-*"] }}',
            "5:1",
            'selects nothing: no VM matches both "name:db-*" and "name:web-*"',
        ),
        (ALL + KEPT, "2:9", "never backs anything up, write rpo, schedule or a trigger"),
        (
            f'{ALL}{KEPT}trigger = [{{ on = "vm.powered_off", action = "hold" }}]',
            "5:1",
            "only holds or distrusts, and never backs anything up, write rpo or schedule",
        ),
        (
            f'{ALL}rpo = "4h"\nwindow = ["mon..fri 18:00-06:00"]\n{KEPT}',
            "4:1",
            "has an rpo of 4 h, but its windows stay closed for up to 2 d 12 h, write a longer rpo or more windows",
        ),
        (
            f'{ALL}rpo = "1d"\nblackout = ["12-24..12-26"]\n{KEPT}',
            "4:1",
            "has an rpo of 1 d, but its blackouts leave no time to start in for 3 d, from 2026-12-24 00:00 UTC on",
        ),
        (
            f'{ALL}schedule = "0 12 * * *"\nwindow = ["18:00-06:00"]\n{KEPT}',
            "4:1",
            'has the time "0 12 * * *", which never falls into its windows: its runs start when they open, such as '
            "at 2026-01-05 18:00 UTC, write a time inside a window",
        ),
        (
            f'{ALL}schedule = ["0 20 * * *", "0 12 * * *"]\nwindow = ["18:00-06:00"]\nstart_within = "1h"\n{KEPT}',
            "4:27",
            'has the time "0 12 * * *", which never falls into its windows, and start_within = 1 h is over before they '
            "open: it never runs, write a time inside a window, or a longer start_within",
        ),
        (f'{ALL}rpo = "4h"', "2:9", "has no retention rule and keeps everything"),
        (f'{ALL}rpo = "4h"\nretention.min_good = 2', "5:1", "has no retention rule and keeps everything"),
        (
            f'{ALL}rpo = "4d"\nretention.keep_within = "2d"',
            "5:11",
            'keeps restore points for less than its rpo of 4 d, write keep_within = "8d"',
        ),
        (
            f'{ALL}rpo = "1h"\nretention.keep_last = 3',
            "5:11",
            "keeps restore points of the last 3 h only (keep_last, one every 1 h), write keep_daily = 7",
        ),
        (
            f'{ALL}schedule = "*/30 * * * *"\nretention.keep_last = 4',
            "5:11",
            "keeps restore points of the last 2 h only (keep_last, one every 30 m)",
        ),
        (f'{ALL}{SOUND}retention.grace = "0s"', "6:11", "has no grace: what a mistaken change lets go expires at once"),
        (
            f'{ALL}{SOUND}retention.lock = "30d"',
            "6:11",
            "locks restore points for 30 d, but its rules keep them for some 14 d, write a shorter lock",
        ),
        (
            f'{ALL}rpo = "1d"\nretention = {{ keep_last = 2, min_good = 3 }}',
            "5:15",
            "keeps 3 restore points by min_good: keep_last = 2 has no effect",
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "vm.created", from_host = "esx1" }}]',
            "6:33",
            "has from_host in trigger[0], but none of its events is a move: it never fires, write on",
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", cause = "drss" }}]',
            "6:34",
            'has the cause "drss" in trigger[0], which no event of vCenter has, write "drs"',
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", cause = "zzz" }}]',
            "6:34",
            'has the cause "zzz" in trigger[0], which no event of vCenter has, write one of discovered, drs',
        ),
        (
            f'select.all = ["power:on"]\n{SOUND}trigger = [{{ on = "vm.powered_off" }}]',
            "6:14",
            'selects "power:on", but after vm.powered_off the VM is off: trigger[0] never fires',
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", settle = "2d" }}]',
            "6:34",
            "settles 2 d in trigger[0], and its rpo asks for a run sooner, write less than 1 d",
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "hold.requested", action = "hold" }}]',
            "6:37",
            "holds in trigger[0] what a hold.requested holds without it, leave action out for a restore point more",
        ),
        (
            f'{ALL}{SOUND}spread = "1h"',
            "6:1",
            "has a spread, but no schedule that it spreads, write schedule, or leave it out",
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", settle = "10m", cooldown = "5m" }}]',
            "6:50",
            "has a cooldown of 5 m in trigger[0] that is over before the run starts, write more than",
        ),
        (
            f'{ALL}{SOUND}trigger = [{{ on = ["vm.migrated", "vm.created"] }}, {{ on = "vm.created" }}]',
            "6:52",
            "has trigger[1] that fires only when trigger[0] does, which comes first, remove one of them",
        ),
    ],
)
def test_lint_warns_at_the_key(body: str, place: str, advice: str) -> None:
    found = linted(f"[policy.p]\n{body}")
    assert len(found) == 1, found
    assert found[0].startswith(f'0.toml:{place}: policy "p" ')
    assert advice in found[0]


@pytest.mark.parametrize(
    "body",
    [
        f'{ALL}rpo = "1d"\nretention.keep_last = 1',
        f'{ALL}schedule = "0 22 * * mon-fri"\nwindow = ["mon..fri 18:00-06:00"]\n{KEPT}',
        f'{ALL}schedule = "0 12 * * *"\nwindow = ["sun 11:00-13:00"]\n{KEPT}',
        f'{ALL}schedule = "RRULE:FREQ=DAILY;BYHOUR=12;UNTIL=20260115"\nwindow = ["wed 18:00-19:00"]\n{KEPT}',
        f'{ALL}{SOUND}trigger = [{{ on = ["vm.migrated", "vm.created"], from_host = "esx1" }}]',
        f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", cause = "m*" }}, {{ on = "vm.migrated", cause = "drs" }}]',
        f'{ALL}{SOUND}trigger = [{{ on = "vm.migrated", cooldown = "1h" }}, {{ on = "vm.migrated" }}]',
        f'select.all = ["power:on"]\n{SOUND}trigger = [{{ on = ["vm.powered_off", "vm.powered_on"] }}]',
        f'select.any = ["name:a*", "name:b*"]\nselect.none = ["name:a*"]\n{SOUND}',
        f'{ALL}{SOUND}retention.lock = "14d"',
        f'{ALL}trigger = [{{ on = "vm.created" }}]\nretention.keep_last = 1',
    ],
)
def test_lint_does_not_warn_of_what_makes_sense(body: str) -> None:
    assert linted(f"[policy.p]\n{body}") == []


def test_a_warning_stands_where_the_template_says_it() -> None:
    text = f'[template.t]\nretention.grace = "0s"\n[policy.p]\ntemplate = "t"\n{ALL}{SOUND}'
    assert linted(text)[0].startswith('0.toml:3:11: policy "p" has no grace')
    assert linted(f"[policy.p]\n{ALL}{SOUND}", '[template.t]\nrpo = "4h"') == [
        '1.toml:2:11: template "t" is used by no policy, remove it, or write it into a policy'
    ]


def test_a_policy_that_is_outranked_on_all_its_vms_is_told_what_has_no_effect() -> None:
    high = f'[policy.high]\npriority = 9\nselect.all = ["folder:/Prod/**"]\nconsistency.want = "application"\n{SOUND}'
    low = (
        '[policy.low]\nselect.all = ["folder:/Prod/SQL/**", "name:x*"]\nrpo = "4h"\nretention.keep_daily = 14\n'
        'transports = ["nbd"]\nconsistency.want = "crash"'
    )
    said = 'policy "high" of priority 9 selects all its VMs and decides (retention, triggers, copies and locks of both'
    assert [one.partition(" count)")[0] for one in linted(low, high)] == [
        f'0.toml:4:1: policy "low" never decides when it backs up: {said}',
        f'0.toml:7:1: policy "low" never decides its consistency: {said}',
    ]
    assert linted(low.replace("[policy.low]", "[policy.low]\npriority = 10"), high) == []


def test_what_is_said_of_doubts_and_moves_may_be_outranked_too() -> None:
    keys = 'select.all = ["*"]\non_cbt_invalid = "verify"\non_migrate = "requeue"\n'
    said = "\n".join(linted(f"[policy.high]\npriority = 9\n{keys}{SOUND}", f"[policy.low]\n{keys}{SOUND}"))
    assert "never decides what a run does when change tracking is in doubt" in said
    assert "never decides what a run does when its VM moves" in said


@pytest.mark.parametrize(
    ("one", "other", "competing"),
    [
        ('rpo = "1d"', 'rpo = "2d"', True),
        ('rpo = "1d"', 'rpo = "1d"', False),
        ('rpo = "1d"\nconsistency.want = "crash"', 'rpo = "1d"\nconsistency.want = "application"', True),
        ('rpo = "1d"\ntransports = ["nbd"]', 'rpo = "1d"\ntransports = ["hotadd"]', True),
        ('rpo = "1d"\ntransports = ["nbd"]', 'rpo = "1d"', False),
    ],
)
def test_lint_finds_policies_that_compete(one: str, other: str, competing: bool) -> None:
    select = 'select.all = ["*"]\nretention.keep_last = 3'
    texts = (f"[policy.a]\npriority = 1\n{one}\n{select}", f"[policy.b]\npriority = 1\n{other}\n{select}")
    found = linted(*texts)
    assert bool(found) is competing
    inventory = [str(advice) for advice in lint(policies(*texts), facts(WEB))]
    if competing:
        assert found == [
            '0.toml:3:1: policy "a" has priority 1 like policy "b" on all their VMs: the stricter values count, '
            "write different priorities"
        ]
        assert inventory == [found[0].replace("all their VMs", "web-3")]
    else:
        assert not inventory


def test_an_overlap_with_a_narrower_policy_names_it() -> None:
    found = linted(f"[policy.a]\n{ALL}{SOUND}", f'[policy.b]\nselect.all = ["name:x*"]\nrpo = "4h"\n{KEPT}')
    assert found == [
        '0.toml:2:9: policy "a" has priority 0 like policy "b" on all VMs of policy "b": the stricter values count, '
        "write different priorities"
    ]


def test_lint_with_an_inventory_finds_what_selects_nothing_and_what_nothing_selects() -> None:
    template = a_vm("golden-image", template=True)
    many = [a_vm(f"x-{number}") for number in range(7)]
    text = f'[policy.p]\n{SOUND}select.all = ["name:nobody"]'
    assert [str(one) for one in lint(policies(text), facts(template, *many))] == [
        "x-0, x-1, x-2, x-3, x-4 and 2 more are selected by no policy, add a policy that selects them",
        '0.toml:5:1: policy "p" selects no VM of the inventory, correct its select or remove it',
    ]
    assert [str(one) for one in lint(PolicySet(), facts(WEB))] == [
        "web-3 is selected by no policy, add a policy that selects it"
    ]


def test_lint_with_an_inventory_finds_what_decides_nothing() -> None:
    low = f'[policy.low]\nselect.all = ["tag:env=prod"]\n{SOUND}'
    high = f'[policy.high]\npriority = 1\nselect.all = ["name:web-*"]\nrpo = "4h"\n{KEPT}'
    assert linted(low, high) == []
    assert [str(one) for one in lint(policies(low, high), facts(WEB))] == [
        '0.toml:4:1: policy "low" decides of none of its 1 VM when to back it up: high of higher priority does, '
        "write a higher priority, or remove the key"
    ]


def test_lint_looks_at_the_year_to_come() -> None:
    text = f'[policy.p]\n{ALL}{SOUND}blackout = ["2030-03-01..2030-03-05"]'
    assert lint(policies(text)) == ()
    assert "from 2030-03-01" in str(lint(policies(text), now=datetime(2029, 6, 1, tzinfo=UTC))[0])


def test_the_causes_that_lint_knows_are_those_of_vcenter() -> None:
    always = (classify(None) for _, classify in eventfacts._RULES if classify.__qualname__.startswith("_always"))
    told = {found[1] for found in always if found is not None}
    assert told | {eventfacts.DRS, eventfacts.MANUAL, "guest"} == CAUSES


@pytest.mark.parametrize(
    ("one", "other", "excluding"),
    [
        ("power:on", "power:OFF", True),
        ("power:on", "power:suspended", True),
        ("name:web-1", "name:web-*", False),
        ("name:db-1", "name:web-*", True),
        ("name:web-*", "name:WEB-1*", False),
        ("name:*-prod", "name:*-test", True),
        ("name:*-prod", "name:*-[pt]rod", False),
        ("name:a?c", "name:abc", False),
        ("tag:a=b", "tag:a=c", False),
        ("datastore:a", "datastore:b", False),
        ("name:a", "cluster:b", False),
        ("size:>10GiB", "size:<5GiB", True),
        ("size:>=10GiB", "size:<=10GiB", False),
        ("size:>10GiB", "size:<=10GiB", True),
        ("disks:>2", "disks:<4", False),
        ("folder:/a/**", "folder:/b/**", True),
        ("folder:/a/**", "folder:/a", False),
        ("folder:/a/**", "folder:/a/b/*", False),
        ("template:yes", "template:no", True),
        ("*", "name:a", False),
    ],
)
def test_terms_exclude_each_other(one: str, other: str, excluding: bool) -> None:
    assert exclude(parse_term(one), parse_term(other)) is excluding
    assert exclude(parse_term(other), parse_term(one)) is excluding


@pytest.mark.parametrize(
    ("wide", "narrow", "covering"),
    [
        ("*", "name:a", True),
        ("name:a", "*", False),
        ("name:WEB-*", "name:web-*", True),
        ("name:web-*", "name:web-1", True),
        ("name:web-*", "name:web-1*", True),
        ("name:*-x", "name:web-*-x", True),
        ("name:a*b", "name:a*", False),
        ("name:a*a", "name:a", False),
        ("name:*", "name:?[ab]", True),
        ("name:?", "name:a*", False),
        ("name:a", "cluster:a", False),
        ("tag:*=prod", "tag:env=prod", True),
        ("size:>1GiB", "size:>10GiB", True),
        ("size:>10GiB", "size:>1GiB", False),
        ("folder:/a/**", "folder:/a/b/**", True),
        ("folder:/a/**", "folder:/ab/**", False),
        ("folder:/a/*", "folder:/a/b/c", False),
        ("folder:/a/*/c", "folder:/a/b/*", False),
    ],
)
def test_terms_cover_others(wide: str, narrow: str, covering: bool) -> None:
    assert covers(parse_term(wide), parse_term(narrow)) is covering


def selection(**lists: list[str]) -> Selection:
    return Selection(**{name: tuple(map(parse_term, texts)) for name, texts in lists.items()})


def test_a_selection_lies_within_another() -> None:
    web = selection(all=["tag:env=prod", "name:web-1"])
    assert within(web, selection(all=["name:web-*"]))
    assert within(web, selection(any=["name:db-*", "name:web-*"]))
    assert within(selection(any=["name:web-1", "name:web-2"]), selection(all=["name:web-*"]))
    assert within(selection(any=["name:web-1", "name:db-2"]), selection(any=["name:db-*", "name:web-*"]))
    assert not within(selection(any=["name:web-1", "name:x"]), selection(any=["name:db-*", "name:web-*"]))
    assert not within(web, selection(all=["name:web-*"], none=["name:web-1"]))
    assert within(selection(all=["name:web-1"], none=["tag:a=*"]), selection(all=["name:web-*"], none=["tag:a=b"]))
    assert not within(selection(), selection(all=["*"]))
    assert not within(web, selection())
    assert matches_nothing(web) is None
    assert taken_away(web) is None
