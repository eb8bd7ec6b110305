"""What protects a VM less, without leaving it unprotected, stands under a heading of its own in a plan."""

from __future__ import annotations

import pytest

from policies.planning import plan_reload
from policies.planwords import reload_words
from tests.policies.building import a_disk, a_vm, facts, policies

_LEVELS = "consistency application, at least filesystem"
_NEAR = "gold in near: keep_daily 9, min_good 1, grace 1 d"
VM = a_vm("web-1", disks=(a_disk(2000), a_disk(2001)))
GOLD = """
[policy.gold]
select.all = ["*"]
rpo = "4h"
consistency = { want = "application", fallback = "filesystem" }
copies = ["far", "near"]
copy.near.retention = { keep_daily = 9, lock = "20d" }
retention = { keep_daily = 7, lock = "14d" }
verify.every = "7d"
on_cbt_invalid = "verify"
tracking_sample = 200
on_migrate = "block"
"""


@pytest.mark.parametrize(
    ("old", "new", "weaker", "rest"),
    [
        ('rpo = "4h"', 'rpo = "1d"', ["rpo 4 h → 1 d"], []),
        (
            'rpo = "4h"',
            'schedule = "0 22 * * *"',
            ["rpo 4 h → none"],
            ["schedule none → 0 22 * * * UTC"],
        ),
        (
            '"application"',
            '"filesystem"',
            ["consistency application, at least filesystem → filesystem, at least filesystem"],
            [],
        ),
        (
            'fallback = "filesystem"',
            'fallback = "crash"',
            ["consistency application, at least filesystem → application, at least crash"],
            [],
        ),
        (
            'fallback = "filesystem"',
            'fallback = "filesystem", retries = 1, retry_wait = "30s"',
            [f"{_LEVELS} → {_LEVELS.removeprefix('consistency ')}, 1 retry after 30 s, quiesced within 15 m"],
            [],
        ),
        (
            'fallback = "filesystem"',
            'fallback = "filesystem", quiesce_timeout = "5m"',
            [f"{_LEVELS} → {_LEVELS.removeprefix('consistency ')}, 2 retries 1 m apart, quiesced within 5 m"],
            [],
        ),
        ('"far", ', "", ["copies far, near → near"], []),
        ('"14d"', '"1d"', ["lock 14 d → 1 d"], []),
        ('"20d"', '"2d"', [f"copy_retention {_NEAR}, lock 20 d → {_NEAR}, lock 2 d"], []),
        ('every = "7d"', 'every = "30d"', ["verify every 7 d → every 30 d"], []),
        ('verify.every = "7d"', "", ["verify every 7 d → none"], []),
        ("200", "0", ["tracking_sample 200 → 0"], []),
        ("tracking_sample = 200", "", ["tracking_sample 200 → none"], []),
        ("200", "150", ["tracking_sample 200 → 150"], []),
        ('"block"', '"requeue"', ["on_migrate block → requeue"], []),
        ('on_migrate = "block"', "", ["on_migrate block → none"], []),
        ('"verify"', '"fail"', ["on_cbt_invalid verify → fail"], []),
        ('rpo = "4h"', 'rpo = "4h"\ndisks.exclude = ["number:2"]', ["disks none → without gold: number:2"], []),
        ('rpo = "4h"', 'rpo = "4h"\ndisks.exclude = ["number:9"]', [], ["disks none → without gold: number:9"]),
    ],
)
def test_what_gets_weaker_is_told_apart(old: str, new: str, weaker: list[str], rest: list[str]) -> None:
    found = plan_reload(policies(GOLD), policies(GOLD.replace(old, new)), facts(VM))
    (change,) = found.vms
    assert (change.kind, [*change.weaker]) == ("changes", weaker)
    assert [part for part in change.parts if part not in change.weaker] == rest
    assert not found.pending
    shown = reload_words(found)
    assert ("Weaker: 1 VM\n" in shown) is bool(weaker)
    assert ("Change: 1 VM\n" in shown) is bool(rest)
    assert found.as_json()["vms"][0]["weaker"] == weaker
    assert found.as_json()["weaker_total"] == len(found.weakened) == bool(weaker)

    back = plan_reload(policies(GOLD.replace(old, new)), policies(GOLD), facts(VM))
    assert not back.weakened


def test_what_gets_weaker_comes_before_what_only_changes() -> None:
    schedule = GOLD.replace('rpo = "4h"', 'schedule = ["0 22 * * *", "0 4 * * *"]')
    found = plan_reload(policies(schedule), policies(schedule.replace(', "0 4 * * *"', "")), facts(VM))
    assert [*found.vms[0].weaker] == ["schedule 0 22 * * * UTC; 0 4 * * * UTC → 0 22 * * * UTC"]
    both = GOLD.replace('rpo = "4h"', 'rpo = "1d"\nwindow = ["18:00-06:00"]')
    for everything in (False, True):
        shown = reload_words(plan_reload(policies(GOLD), policies(both), facts(VM)), everything=everything)
        assert shown.splitlines()[2:] == [
            "Weaker: 1 VM",
            "  web-1: rpo 4 h → 1 d",
            "",
            "Change: 1 VM",
            "  web-1: window any time → 18:00-06:00 UTC",
        ]
