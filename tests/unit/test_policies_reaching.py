"""Before a run people are told which consistency it would reach: by explain, lint and look."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pytest

from engine.cli.look import _levels
from engine.looking import Foreseen, look
from policies.explanation import explain
from policies.facts import Consistency, Vm
from policies.forecast import plan
from policies.linting import lint
from policies.planwords import plan_words
from policies.protection import protection
from policies.reaching import outlook
from tests.policies.building import a_disk, a_vm, facts, policies

TOOLS = "VMware Tools do not run in the guest"
CRASH, FILESYSTEM, APPLICATION = Consistency.CRASH, Consistency.FILESYSTEM, Consistency.APPLICATION


def strict(want: str, fallback: str) -> str:
    return f"""
    [policy.gold]
    select.all = ["*"]
    rpo = "4h"
    consistency = {{ want = "{want}", fallback = "{fallback}" }}
    """


@pytest.mark.parametrize(
    ("want", "fallback", "reach", "why", "expected", "enough", "sentence"),
    [
        (APPLICATION, CRASH, APPLICATION, "", APPLICATION, True, "application"),
        (FILESYSTEM, CRASH, APPLICATION, "", FILESYSTEM, True, "filesystem"),
        (FILESYSTEM, CRASH, APPLICATION, "it is powered off", FILESYSTEM, True, "filesystem"),
        (APPLICATION, CRASH, CRASH, TOOLS, CRASH, True, f"crash, not application: {TOOLS}"),
        (APPLICATION, FILESYSTEM, FILESYSTEM, "why", FILESYSTEM, True, "filesystem, not application: why"),
        (
            APPLICATION,
            FILESYSTEM,
            CRASH,
            TOOLS,
            CRASH,
            False,
            f"crash at most, so runs fail, as at least filesystem is asked for: {TOOLS}",
        ),
    ],
)
def test_what_a_snapshot_would_reach_is_explained(
    want: Consistency,
    fallback: Consistency,
    reach: Consistency,
    why: str,
    expected: Consistency,
    enough: bool,
    sentence: str,
) -> None:
    vm = a_vm("web", reach=reach, reach_why=why)
    said = explain(policies(strict(want, fallback)), vm, facts(vm))
    told = said.as_json()["consistency"]
    assert (told["wanted"], told["at_least"], told["expected"], told["enough"]) == (want, fallback, expected, enough)
    assert f"\n  a snapshot now would be {sentence}\n" in said.render()


def test_nothing_is_foreseen_of_a_vm_that_is_refused_unprotected_or_unknown() -> None:
    found = policies(strict("application", "crash"))
    for vm in (a_vm("a"), a_vm("b", reach=CRASH, refusal="it is a template")):
        assert outlook(protection(found, vm), vm) is None
        assert "a snapshot now" not in explain(found, vm, facts(vm)).render()
    bare = a_vm("c", reach=CRASH)
    assert outlook(protection(policies("[policy.p]"), bare), bare) is None


def test_lint_names_the_vms_that_cannot_reach_what_a_policy_insists_on() -> None:
    vms = (
        a_vm("web", reach=CRASH, reach_why=TOOLS),
        a_vm("sql", reach=APPLICATION),
        a_vm("old", reach=CRASH, reach_why=TOOLS, refusal="it is a template"),
    )
    said = [str(advice) for advice in lint(policies(strict("application", "filesystem")), facts(*vms))]
    assert said[1:] == [
        '0.toml:6:43: policy "gold" accepts no less than filesystem consistency, which cannot be reached by web (crash:'
        f" {TOOLS}), mend these VMs, or write a weaker fallback"
    ]
    assert len(lint(policies(strict("application", "crash")), facts(*vms))) == len(said) - 1


class Visit:
    """A vCenter with these VMs, to which no transport leads."""

    vcenter = "vc"

    def __init__(self, *vms: Vm) -> None:
        self.vms = vms

    async def inventory(self) -> Sequence[Vm]:
        return self.vms

    async def predictions(self, vms: Sequence[Vm]) -> Mapping[tuple[str, int], Foreseen]:
        return {}


def test_a_look_tells_the_level_of_each_vm_and_counts_the_reasons() -> None:
    disks = (a_disk(2000),)
    vms = (
        a_vm("a", disks=disks, reach=CRASH, reach_why=TOOLS),
        a_vm("b", disks=disks, reach=CRASH, reach_why=TOOLS),
        a_vm("c", disks=disks, reach=APPLICATION, reach_why="it is powered off, so nothing is being written"),
        a_vm("d", disks=disks, reach=CRASH, reach_why=TOOLS, refusal="it is a template"),
    )
    found = asyncio.run(look(Visit(*vms), None, datetime(2026, 1, 5, tzinfo=UTC)))
    assert [(row["vm"], row["consistency"], row["consistency_why"]) for row in found["vms"]] == [
        ("a", "crash", TOOLS),
        ("b", "crash", TOOLS),
        ("c", "application", "it is powered off, so nothing is being written"),
        ("d", "", ""),
    ]
    assert _levels(found) == {("crash", TOOLS): 2}


def test_the_plan_of_a_change_foresees_the_consistency_of_each_vm_that_changes() -> None:
    web = a_vm("web", reach=CRASH, reach_why=TOOLS)
    db, mail = (a_vm(name, reach=APPLICATION) for name in ("db", "mail"))
    aside = a_vm("aside", reach=FILESYSTEM, reach_why="no writers")
    weak, hard = strict("filesystem", "crash"), strict("application", "application")
    found = plan(policies(weak), policies(hard), facts(web, db, mail, aside, a_vm("unknown")))
    fails = f"crash at most, so runs fail, as at least application is asked for: {TOOLS}"
    assert (
        "Consistency that runs would reach, as the VMs are now:\n"
        f"  web: crash, not filesystem: {TOOLS} → {fails}\n"
        "  aside: filesystem → filesystem at most, so runs fail, as at least application is asked for: no writers\n"
        "  2 VMs (db, mail): filesystem → application\n"
    ) in plan_words(found)
    assert f"    expected consistency: crash, not filesystem: {TOOLS} → {fails}\n" in plan_words(found, everything=True)
    assert plan_words(found).endswith(
        "takes nothing away, so it takes effect at once.\n"
        "But the runs of 2 VMs would fail: no snapshot is as consistent as is asked.\n"
    )
    assert "would fail" not in plan_words(plan(policies(hard), policies(weak), facts(web, aside)))
    told = found.as_json()
    assert told["expected_consistency"] == {
        "before": {"crash": 1, "filesystem": 3},
        "after": {"fails": 2, "application": 2},
    }
    rows = {one["name"]: one["expected_consistency"] for one in told["vms"]}
    assert rows["unknown"] is None, "nothing is foreseen of it"
    assert (rows["db"]["before"]["expected"], rows["db"]["after"]["expected"]) == ("filesystem", "application")
    assert (rows["web"]["after"]["enough"], rows["web"]["after"]["why"]) == (False, TOOLS)


def test_a_vm_that_gains_protection_is_told_with_what_its_runs_would_reach() -> None:
    web = a_vm("web", reach=CRASH, reach_why=TOOLS)
    text = plan_words(plan(policies(""), policies(strict("application", "crash")), facts(web)))
    assert f"  web: none → crash, not application: {TOOLS}\n" in text
