"""Any text is refused as a condition with what to write instead, or says true or false of any VM."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.conditions import Condition, check_condition
from policies.errors import Unusable
from policies.expressions import EVENT_PROPERTIES, VM_PROPERTIES
from policies.facts import Event, EventType, PowerState, Vm
from tests.policies.building import NOW, a_vm, an_event

_ATOMS = st.sampled_from(
    [
        *(f"vm.{name}" for name in VM_PROPERTIES), *(f"event.{name}" for name in EVENT_PROPERTIES), "now", "failures",
        "last_good_age", "last_attempt_age", "vm.attributes.Owner", 'event.detail["reason"]', "true", "false", "null",
        "0", "-1", "9223372036854775807", "18446744073709551615u", "1.5", "'a'", '"env=prod"', "[]", "[1, 2]", "['a']",
        'duration("1h")', 'duration("2562047h")', 'timestamp("9999-12-31T23:59:59Z")', "x",
    ]
)  # fmt: skip
_BINARY = st.sampled_from(["+", "-", "*", "/", "%", "<", "<=", ">", "==", "!=", "in", "&&", "||"])
_FUNCTIONS = st.sampled_from(["size", "int", "double", "string", "timestamp", "duration", "has"])
_METHODS = st.sampled_from(["contains", "startsWith", "size", "getHours", "exists", "all", "map"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, _BINARY, inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(inner, _BINARY, inner).map(lambda p: f"{p[0]} {p[1]} {p[2]}"),
        st.tuples(_FUNCTIONS, inner).map(lambda p: f"{p[0]}({p[1]})"),
        st.tuples(inner, _METHODS, inner).map(lambda p: f"{p[0]}.{p[1]}({p[2]})"),
        st.tuples(inner, _METHODS, inner).map(lambda p: f"{p[0]}.{p[1]}(x, {p[2]})"),
        st.tuples(inner, inner, inner).map(lambda p: f"{p[0]} ? {p[1]} : {p[2]}"),
        st.tuples(inner, inner).map(lambda p: f"{p[0]}[{p[1]}]"),
        inner.map(lambda part: f"!{part}"),
    )


SENSE = st.recursive(_ATOMS, _larger, max_leaves=8)
NONSENSE = st.lists(
    st.sampled_from([*"()[]{}.,?:!&|=<>+-*/%'\"\\ \nvmxe01r", "vm.", "event.", "name", "é", "\0"]), max_size=40
).map("".join)


@st.composite
def some_vm(draw: st.DrawFn) -> Vm:
    return a_vm(
        draw(st.sampled_from(["a", "web-1", ""])),
        tags=draw(st.frozensets(st.sampled_from(["env=prod", "a", "b=c"]))),
        attributes=draw(st.dictionaries(st.sampled_from(["Owner", "x"]), st.sampled_from(["", "a", "1h"]))),
        networks=tuple(draw(st.lists(st.just("n"), max_size=3))),
        power=draw(st.sampled_from(PowerState)),
    )


@settings(max_examples=400)
@given(
    st.one_of(SENSE, NONSENSE),
    some_vm(),
    st.sampled_from([an_event(EventType.RENAMED), an_event(EventType.MIGRATED, cause="a", detail={"reason": "a"})]),
    st.sampled_from([None, timedelta(), timedelta(days=-1), timedelta(days=9000)]),
)
def test_a_text_is_refused_or_has_an_answer_for_every_vm(
    text: str, vm: Vm, event: Event, age: timedelta | None
) -> None:
    try:
        condition = Condition(check_condition(text))
    except Unusable as error:
        assert error.what and error.instead
        return
    last = None if age is None else NOW - age
    answer = condition.ask(vm, event, NOW, last_good=last, last_attempt=last, failures=2)
    assert answer.holds or not answer.trouble
    assert answer == condition.ask(vm, event, NOW, last_good=last, last_attempt=last, failures=2)
