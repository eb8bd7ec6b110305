"""Whom policies name to be told."""

from __future__ import annotations

import pytest

from policies.errors import PolicyError
from policies.facts import Address, Vm, VmId
from policies.loading import load_texts
from policies.naming import unknown_names, unknown_targets
from policies.protection import protection
from policies.settings import settings_of

POLICIES = """schema = 1
[policy.databases]
priority = 10
select.all = ["name:db*"]
notify = ["dba", "ops"]
[policy.all]
select.all = ["*"]
notify = ["ops", "oncall"]
[policy.quiet]
select.all = ["*"]
"""


def vm(name: str) -> Vm:
    return Vm(VmId(name), Address("vc", name), name)


def test_the_targets_of_all_policies_that_select_a_vm_are_told_of_it() -> None:
    policies = load_texts({"a.toml": POLICIES})
    assert protection(policies, vm("db1")).notify == ("dba", "ops", "oncall")
    assert protection(policies, vm("web")).notify == ("ops", "oncall")
    assert settings_of(protection(policies, vm("web")))["notify"] == "ops, oncall"


def test_a_target_that_the_configuration_does_not_have_is_told_once_with_its_place() -> None:
    policies = load_texts({"a.toml": POLICIES})
    assert unknown_targets(policies, {"dba": 1, "oncall": 2}) == {
        "ops": 'a.toml:2:9: policy "databases" notifies "ops", and the configuration has no [notify.ops]'
    }
    assert unknown_targets(policies, ["dba", "ops", "oncall"]) == {}


def test_one_name_that_lacks_as_a_target_as_a_repository_and_as_a_copy_is_told_three_times() -> None:
    text = 'schema = 1\n[policy.p]\nselect.all = ["*"]\nnotify = ["x"]\ndestination = "x"\ncopies = ["x"]\n'
    told = unknown_names(load_texts({"a.toml": text}), targets=(), destinations=(), copies=())
    assert [sentence.rpartition(" ")[2] for sentence in told] == ["[notify.x]", "[repositories.x]", "[copies.x]"]


@pytest.mark.parametrize("value", ['"ops"', "[]", '["two words"]', "[1]"])
def test_what_names_no_target_is_refused(value: str) -> None:
    with pytest.raises(PolicyError, match="notify"):
        load_texts({"a.toml": f"schema = 1\n[policy.p]\nnotify = {value}\n"})
