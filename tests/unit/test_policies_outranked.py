"""What a policy says in vain, as another one that selects the VM decides otherwise, is told."""

from __future__ import annotations

from policies.explanation import explain
from policies.linting import lint
from tests.policies.building import a_disk, a_vm, facts, policies

VM = a_vm("erp-1", disks=(a_disk(2000), a_disk(2001)))
WEB = a_vm("web-1")
GOLD = """
[policy.erp-gold]
rpo = "4h"
select.all = ["name:erp-*"]
consistency = { want = "application", fallback = "application" }
transports = ["hotadd"]
retention.keep_daily = 7
"""
PATCHDAY = """
[policy.patchday]
priority = 60
schedule = "0 22 * * 2"
select.any = ["name:web-*", "name:erp-1"]
consistency.want = "crash"
transports = ["nbd"]
retention.keep_daily = 7
"""


def vain(*texts: str) -> list[str]:
    return [one.sentence for one in explain(policies(*texts), VM, facts(VM)).vain]


def test_an_explanation_says_what_does_not_count_and_why() -> None:
    found = explain(policies(GOLD, PATCHDAY), VM, facts(VM))
    assert [one.sentence for one in found.vain] == [
        "rpo 4 h of erp-gold does not count: patchday (priority 60) decides when",
        "consistency application, at least application of erp-gold does not count: "
        "patchday (priority 60) decides the consistency",
        "transports hotadd of erp-gold does not count: patchday (priority 60) decides the transports",
    ]
    assert "\n  rpo 4 h of erp-gold does not count: patchday (priority 60) decides when\n" in found.render()
    assert found.as_json()["does_not_count"][0] == {
        "policy": "erp-gold",
        "setting": "rpo",
        "value": "4 h",
        "because_of": ["patchday"],
        "sentence": "rpo 4 h of erp-gold does not count: patchday (priority 60) decides when",
    }


def test_what_counts_is_not_told_as_if_it_did_not() -> None:
    assert vain(GOLD) == []
    assert vain(GOLD, PATCHDAY.replace("priority = 60", "")) == []
    same = GOLD.replace("erp-gold", "twin").replace('rpo = "4h"', 'priority = 3\nrpo = "4h"')
    assert vain(GOLD, same) == []
    two = PATCHDAY.replace("patchday", "other")
    assert vain(GOLD.replace('rpo = "4h"', 'schedule = "0 1 * * *"'), PATCHDAY, two)[0] == (
        "schedule 0 1 * * * of erp-gold does not count: other and patchday (priority 60) decide when"
    )


def test_lint_with_vms_warns_of_a_goal_that_is_lost() -> None:
    assert not [one for one in lint(policies(GOLD, PATCHDAY)) if "rpo" in str(one)]
    known = facts(VM, WEB, a_vm("erp-2"))
    said = [str(one) for one in lint(policies(GOLD, PATCHDAY), known)]
    assert said == [
        '0.toml:4:1: policy "erp-gold" has an rpo of 4 h that does not count for erp-1: policy "patchday" of '
        "priority 60 decides when and has no rpo, write the rpo there too, or a higher priority here"
    ]
    longer = PATCHDAY.replace('schedule = "0 22 * * 2"', 'rpo = "1d"')
    assert "decides when and has an rpo of 1 d, write" in str(lint(policies(GOLD, longer), known)[0])
    shorter = PATCHDAY.replace('schedule = "0 22 * * 2"', 'rpo = "1h"')
    assert lint(policies(GOLD, shorter), known) == ()
    assert [str(one).split(", write")[0] for one in lint(policies(GOLD, PATCHDAY), facts(VM, WEB))] == [
        '0.toml:4:1: policy "erp-gold" has an rpo of 4 h that does not count for erp-1: policy "patchday" of '
        "priority 60 decides when and has no rpo"
    ]


NET = '[policy.net]\nrpo = "1d"\nselect.all = ["*"]\nretention.keep_daily = 7\n'
SPARING = f'{NET.replace("net", "gold").replace("*", "name:erp-*")}disks.exclude = ["number:2"]\n'


def test_a_disk_that_another_policy_keeps_is_told() -> None:
    assert vain(SPARING, NET) == ["number:2 of gold has no effect: policy net keeps the disk"]
    assert vain(SPARING) == []
    assert vain(SPARING.replace("number:2", "number:3"), NET) == []
    part = SPARING.replace("number:2", "label:*")
    assert vain(part, f'{NET}disks.exclude = ["number:1"]') == [
        "label:* of gold has no effect on Hard disk 2: policy net keeps the disk"
    ]
    third = NET.replace("net", "third")
    assert vain(part, NET, third) == ["label:* of gold has no effect: policies net and third keep the disks"]
    assert [str(one) for one in lint(policies(SPARING, NET), facts(VM, WEB))] == [
        '0.toml:6:7: policy "gold" leaves disks out by "number:2" without effect on erp-1: policy "net" keeps them, '
        "write disks.exclude there too, or remove the term"
    ]
