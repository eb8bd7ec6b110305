"""Which disks the policies leave out, and what becomes of a VM without any that is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.decision import BackUp, Skip
from policies.disks import number_of, parse_disk_term
from policies.errors import Unusable
from policies.evaluation import evaluate
from policies.explanation import explain
from policies.facts import EventType, Vm
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import left_out, protection, refusal_of
from policies.settings import settings_of
from tests.policies.building import a_disk, a_vm, an_event, facts, policies

DISKS = (a_disk(2000), a_disk(2001, label="Festplatte 2"), a_disk(2016, label="Hard disk 12", datastore="ssd-tmp"))
DB = a_vm("db", disks=DISKS)


def excluding(*terms: str, name: str = "gold", more: str = "") -> str:
    listed = ", ".join(f'"{term}"' for term in terms)
    return f'[policy.{name}]\nselect.all = ["*"]\nrpo = "1d"\n{more}\ndisks.exclude = [{listed}]\n'


def without(text: str) -> list[int]:
    return without_disks(policies(text))


def without_disks(found: PolicySet, vm: Vm = DB) -> list[int]:
    effective = protection(found, vm)
    return [disk.key for disk in vm.disks if left_out(effective, disk)]


@pytest.mark.parametrize(
    ("term", "keys"),
    [
        ("label:hard*", [2000, 2016]),
        ("label:HARD DISK 1", [2000]),
        ("label:*", [2000, 2001, 2016]),
        ("number:1", [2000]),
        ("number:2", [2001]),
        ("number:12", [2016]),
        ("number:3", []),
        ("datastore:*-tmp", [2016]),
        ("datastore:ssd-1", [2000, 2001]),
        ("datastore:ssd", []),
    ],
)
def test_a_term_means_these_disks(term: str, keys: list[int]) -> None:
    assert without(excluding(term)) == keys


def test_a_pattern_has_a_bound() -> None:
    assert parse_disk_term("label:" + "x" * 500)
    for text in ("label:", "label:" + "x" * 501):
        with pytest.raises(Unusable, match="needs a value of 1 to 500 characters"):
            parse_disk_term(text)


def test_the_number_is_the_one_that_the_label_ends_with() -> None:
    labels = ("Hard disk 2", "Festplatte 10 ", "ハード ディスク 3", "Hard disk 007", "scratch", "2 disks", "")
    assert [number_of(a_disk(1, label=label or " ")) for label in labels] == ["2", "10", "3", "7", "", "", ""]
    assert not parse_disk_term("number:2").matches(a_disk(1, label="Hard disk 12"))
    assert not parse_disk_term("number:2").matches(a_disk(1, label="none"))


def test_a_disk_is_left_out_only_when_all_policies_leave_it_out() -> None:
    both = excluding("number:1", "number:2") + excluding("number:2", "number:12", name="silver", more="priority = 9")
    assert without(both) == [2001]
    assert without(both + '[policy.bronze]\nselect.all = ["name:db"]\n') == []
    assert without(both + '[policy.bronze]\nselect.all = ["name:web"]\n') == [2001]


def test_the_sentence_names_the_policies() -> None:
    both = policies(excluding("number:1"), excluding("label:*1", name="silver"))
    assert left_out(protection(both, DB), DISKS[0]) == "left out by policies gold, silver"
    one = protection(policies(excluding("number:1")), DB)
    assert left_out(one, DISKS[0]) == "left out by policy gold"
    assert settings_of(one)["disks"] == "without gold: number:1"
    assert "disks" not in settings_of(protection(policies('[policy.p]\nselect.all = ["*"]'), DB))


def test_without_a_policy_no_disk_is_left_out() -> None:
    found = policies('[policy.gold]\nselect.all = ["name:web"]\ndisks.exclude = ["label:*"]')
    assert left_out(protection(found, DB), DISKS[0]) == ""


@pytest.mark.parametrize(
    "kind", [EventType.CLOCK, EventType.POWERED_OFF, EventType.CREATED, EventType.BACKUP_REQUESTED]
)
def test_a_vm_of_which_all_disks_are_left_out_is_not_backed_up(kind: EventType) -> None:
    trigger = '[[policy.gold.trigger]]\non = "vm.powered_off"\n'
    independent = replace(DB, disks=(replace(DISKS[0], unprotected="it is independent"), *DISKS[1:]))
    for vm, terms in ((DB, ["label:*"]), (independent, ["number:2", "datastore:ssd-tmp"])):
        said = evaluate(policies(excluding(*terms) + trigger), an_event(kind, vm), facts(vm))
        assert all(isinstance(one, Skip) for one in said)
        assert any("all its disks are left out by policy gold" in one.reason for one in said)
    wanted = evaluate(policies(excluding("number:2") + trigger), an_event(kind, DB), facts(DB))
    assert [type(one) for one in wanted] == [BackUp]


def test_explain_says_what_blocks_it() -> None:
    found = explain(policies(excluding("label:*")), DB, facts(DB))
    assert "all its disks are left out by policy gold" in found.blocked


def test_a_change_that_leaves_out_all_disks_takes_protection_away() -> None:
    plan = plan_reload(policies(excluding("number:1")), policies(excluding("label:*")), facts(DB))
    assert [change.kind for change in plan.vms] == ["loses"]
    assert "all its disks are left out by policy gold" in str(plan.vms[0])
    assert without_disks(plan.effective) == [2000]
    some = plan_reload(policies(excluding("number:1")), policies(excluding("number:1", "number:2")), facts(DB))
    assert [change.kind for change in some.vms] == ["changes"]


def test_another_refusal_comes_first() -> None:
    vm = replace(DB, refusal="it is a template")
    assert refusal_of(protection(policies(excluding("label:*")), vm), vm) == "it is a template"
    assert refusal_of(protection(policies(excluding("label:*")), a_vm()), a_vm()) == ""
