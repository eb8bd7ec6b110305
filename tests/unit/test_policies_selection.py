"""Which VMs a policy selects, and the clause that decides."""

from __future__ import annotations

from time import process_time

import pytest

from policies.facts import PowerState, Vm
from policies.selection import Index, match
from policies.terms import PROPERTIES, glob_matches
from tests.policies import building
from tests.policies.building import a_disk, a_vm, policies

WEB = a_vm(
    "Web-3",
    folder="/Prod/Web/EU",
    tags=frozenset({"env=prod", "tier=web"}),
    datacenter="DC1",
    cluster="c1",
    host="esx1.example",
    resource_pool="rp",
    datastores=("ssd-1", "nfs-7"),
    networks=("lan",),
    attributes={"Owner": "ops-team"},
    power=PowerState.ON,
    guest_os="otherLinux64Guest",
    disks=(a_disk(2000, 400), a_disk(2001, 200)),
)


def selected(select: str, vm: Vm = WEB) -> bool:
    found = policies(f"[policy.p]\nselect = {{ {select} }}")
    one = match(found.policies[0], vm).selected
    assert one == bool(found.matching(vm)), "the index and the explanation must agree"
    return one


@pytest.mark.parametrize(
    "term",
    [
        "*",
        "name:web-3",
        "name:WEB-*",
        "name:web-?",
        "name:web-[1-3]",
        "folder:/Prod/**",
        "folder:/prod/web/eu",
        "folder:/prod/web/eu/",
        "folder:/Prod/*/EU",
        "folder:/**/eu",
        "folder:**",
        "tag:env=prod",
        "tag:*=web",
        "datacenter:dc?",
        "cluster:c1",
        "host:esx1*",
        "resource_pool:rp",
        "datastore:nfs-*",
        "network:lan",
        "attribute:owner=ops*",
        "power:on",
        "guest_os:*linux*",
        "size:>599GiB",
        "size:>=600GiB",
        "size:<=600 GiB",
        "size:<0.7TB",
        "disks:>1",
        "disks:<=2",
        "template:no",
    ],
)
def test_a_term_matches(term: str) -> None:
    assert selected(f'all = ["{term}"]')
    assert selected(f'any = ["name:nobody", "{term}"]')
    assert not selected(f'all = ["*"], none = ["{term}"]')


@pytest.mark.parametrize(
    "term",
    [
        "name:web",
        "name:web-4",
        "folder:/Prod",
        "folder:/Prod/*",
        "folder:/Prod/**/US",
        "folder:/Web/**",
        "tag:env=pro",
        "tag:prod=*",
        "datastore:ssd",
        "attribute:owner=dev*",
        "attribute:*=nobody",
        "power:off",
        "network:dmz",
        "size:>600GiB",
        "size:<600GiB",
        "size:>=1TB",
        "disks:>8",
        "template:YES",
    ],
)
def test_a_term_does_not_match(term: str) -> None:
    assert not selected(f'all = ["{term}"]')
    assert not selected(f'all = ["*", "{term}"]')
    assert selected(f'all = ["*"], none = ["{term}"]')


def test_a_folder_with_two_stars_is_the_folder_and_all_below_it() -> None:
    for folder in ("/Prod", "/Prod/", "/Prod/a", "/Prod/a/b"):
        assert selected('all = ["folder:/Prod/**"]', a_vm(folder=folder))
    for folder in ("/", "/Prod2", "/Old/Prod"):
        assert not selected('all = ["folder:/Prod/**"]', a_vm(folder=folder))


def test_all_any_and_none_work_together() -> None:
    both = 'all = ["tag:env=prod"], any = ["name:app-*", "name:web-*"]'
    assert selected(both)
    assert not selected(f'{both}, none = ["host:esx1*"]')
    assert not selected('all = ["tag:env=test"], any = ["name:web-*"]')
    assert not selected('all = ["tag:env=prod"], any = ["name:app-*"]')


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ("name:GRÜN-*", "grün-1"),
        ("name:gr\u0075\u0308n-*", "gr\u00fcn-1"),  # the same letter, typed in two ways
        ("name:STRASSE", "straße"),
        ("name:*\U0001f600*", "vm \U0001f600"),
        ("name:データ*", "データベース"),
        ("name:db[[]1]", "db[1]"),
        ("name:db[[]*", "db[old] copy"),
        ("name:[!a-c]b", "db"),
        ("name:[", "["),
        ("name:a]b", "a]b"),
        ("name:*(1)+.$^{}|\\\\*", "x (1)+.$^{}|\\ y"),
        ("name:?", "\U0001f600"),
        ("name:a*b", "a\nb"),
        ("name:a:b=c", "a:b=c"),
    ],
)
def test_names_that_look_like_patterns_are_matched_letter_by_letter(term: str, name: str) -> None:
    assert selected(f'all = ["{term}"]', a_vm(name))
    assert not selected(f'all = ["{term}"]', a_vm("##"))


@pytest.mark.parametrize("property", ["name", "folder", "tag", "attribute", "host"])
@pytest.mark.parametrize("glob", ["*a" * 240, "**/" * 160, "*?" * 240, "[a-z]*" * 80, "a=" + "*=" * 230, "(a+)+" * 90])
def test_no_pattern_takes_long(property: str, glob: str) -> None:
    glob = f"/{glob}" if property == "folder" else f"{glob}=*" if property in ("tag", "attribute") else glob
    found = policies(f'[policy.p]\nselect.all = ["{property}:{glob[:500]}"]')
    value = "a" * 2000
    vm = a_vm(value, folder="/a" * 1000, tags=frozenset({f"{value}={value}"}), attributes={value: value}, host=value)
    began = process_time()
    match(found.policies[0], vm)
    assert process_time() - began < 0.5


def test_the_size_of_a_vm_is_told_in_units() -> None:
    found = policies('[policy.p]\nselect.all = ["size:>1TiB", "disks:>0"]').policies[0]
    assert match(found, WEB).why == "size:>1TiB does not match (the VM has 600 GiB)"
    assert match(found, a_vm()).why == "size:>1TiB does not match (the VM has 0 B)"


def test_templates_can_be_left_out() -> None:
    assert not selected('all = ["*"], none = ["template:yes"]', a_vm(template=True))
    assert selected('all = ["*"], none = ["template:yes"]', a_vm())


def test_an_empty_selection_selects_nothing() -> None:
    assert not selected("")
    assert not selected("all = []")
    assert not selected('none = ["name:other"]')


def test_a_vm_that_changed_is_asked_anew() -> None:
    found = policies('[policy.p]\nselect.all = ["tag:env=prod"]')
    assert found.matching(a_vm(tags=frozenset({"env=prod"})))
    assert not found.matching(a_vm(tags=frozenset({"env=test"})))
    assert found.unprotected([a_vm()]) == (a_vm(),)


def test_policies_come_by_priority_then_name() -> None:
    found = policies(
        *(
            f'[policy.{name}]\npriority = {number}\nselect.all = ["*"]'
            for name, number in (("b", 1), ("c", 9), ("a", 1))
        )
    )
    assert [policy.name for policy in found.matching(WEB)] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("select", "why"),
    [
        ('all = ["tag:env=prod"], none = ["name:web-*"]', "excluded by none: name:web-*"),
        ('all = ["*", "cluster:c2"]', "cluster:c2 does not match (the VM has c1)"),
        ('all = ["attribute:x=y"]', "attribute:x=y does not match (the VM has Owner=ops-team)"),
        ('any = ["name:a", "name:b"]', "none of the terms of any matches"),
        ("", "the policy selects nothing: it has neither all nor any"),
        ('all = ["*"], any = ["name:a", "name:web-3"]', "selected by *, name:web-3"),
    ],
)
def test_the_explanation_names_the_clause_that_decides(select: str, why: str) -> None:
    assert match(policies(f"[policy.p]\nselect = {{ {select} }}").policies[0], WEB).why == why


@pytest.mark.parametrize(
    ("select", "excluded"),
    [
        ('all = ["tag:env=prod"], none = ["name:web-*"]', True),
        ('all = ["tag:env=prod"], none = ["name:db-*"]', False),
        ('all = ["cluster:c2"], none = ["name:web-*"]', False),
        ('any = ["cluster:c2", "cluster:c1"], none = ["name:web-*"]', True),
        ('any = ["cluster:c2"], none = ["name:web-*"]', False),
        ('none = ["name:web-*"]', False),
    ],
)
def test_a_vm_is_excluded_by_who_would_select_it_otherwise(select: str, excluded: bool) -> None:
    found = policies(f"[policy.p]\nselect = {{ {select} }}")
    assert bool(found.excluding(WEB)) == excluded
    assert not (excluded and found.matching(WEB))


def test_a_vm_without_the_property_is_said_to_have_none() -> None:
    found = match(policies('[policy.p]\nselect.all = ["cluster:c1"]').policies[0], a_vm())
    assert found.why == "cluster:c1 does not match (the VM has none)"
    assert found.clauses[0].found == ("",)


def test_every_property_of_the_language_is_tried_here() -> None:
    tried = {mark.args[1][number] for mark in test_a_term_matches.pytestmark for number in range(len(mark.args[1]))}  # type: ignore[attr-defined]
    assert {term.partition(":")[0] for term in tried} - {"*"} == set(PROPERTIES)


def test_the_index_forgets_rather_than_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.selection.MOST_REMEMBERED", 3)
    index = Index(policies('[policy.p]\nselect.all = ["name:web-*"]').policies)
    for number in range(10):
        assert index.matching(a_vm(f"web-{number}"))
    assert len(index._by_vm) <= 3


def test_a_filter_is_a_glob_on_the_whole_value() -> None:
    assert glob_matches("esx-*", "ESX-7")
    assert not glob_matches("esx", "esx-7")


def test_the_helper_makes_what_it_says() -> None:
    assert building.a_policy('rpo = "4h"').name == "gold"
