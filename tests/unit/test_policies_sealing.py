"""Values made quickly are those that the class makes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from policies.decision import BackUp
from policies.facts import Address, Event, EventType, Vm, VmHistory, VmId
from policies.sealing import maker

AT = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
VALUES: list[tuple[Any, dict[str, Any]]] = [
    (Vm, {"id": VmId("vm-1"), "address": Address("vc", "vm-1"), "name": "web-1", "datastores": ("a", "b")}),
    (Event, {"key": "k", "type": EventType.MIGRATED, "at": AT, "source": "test"}),
    (VmHistory, {"last_good": AT}),
    (BackUp, {"key": "k", "vm": VmId("vm-1"), "policy": "p", "rule": "rpo", "reason": "", "not_before": AT}),
]


@pytest.mark.parametrize(("kind", "given"), VALUES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_value_made_quickly_is_the_one_of_its_class(kind: Any, given: dict[str, Any]) -> None:
    made, usual = maker(kind)(**given), kind(**given)
    assert type(made) is kind
    assert made == usual
    assert repr(made) == repr(usual)
    assert replace(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == usual
    assert maker(kind)(*(getattr(usual, one.name) for one in fields(kind))) == usual


@pytest.mark.parametrize(("kind", "given"), VALUES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_value_made_quickly_cannot_be_changed(kind: Any, given: dict[str, Any]) -> None:
    made = maker(kind)(**given)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(kind)[0].name, None)


def test_defaults_that_can_change_are_made_for_each_value() -> None:
    make = maker(Event)
    one, other = (make("k", EventType.CREATED, AT, "test") for _ in range(2))
    assert one.detail is not other.detail


def test_a_value_made_quickly_hashes_as_the_usual_one() -> None:
    assert hash(maker(VmHistory)(last_good=AT)) == hash(VmHistory(last_good=AT))


def test_what_the_class_needs_is_needed() -> None:
    with pytest.raises(TypeError):
        maker(Vm)(VmId("vm-1"))  # type: ignore[call-arg]
