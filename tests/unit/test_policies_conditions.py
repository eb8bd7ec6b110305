"""Conditions of triggers: what they may name, what they say, and that none of them does harm."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from policies import conditions
from policies.conditions import NEVER, Condition, check_condition
from policies.errors import Unusable
from policies.expressions import EVENT_PROPERTIES, LONGEST, VM_PROPERTIES
from policies.facts import Disk, EventType, PowerState, Vm
from tests.policies.building import NOW, a_vm, an_event

DISK = Disk(2000, "Hard disk 1", 40 << 30, "u", "ssd-1", "[ssd-1] sql/sql.vmdk", "persistent")
SQL = a_vm(
    "sql-1",
    folder="/Prod/SQL",
    tags=frozenset({"env=prod", "tier=gold"}),
    attributes={"Owner": "dba"},
    power=PowerState.ON,
    host="esx-1",
    cluster="c1",
    datacenter="dc",
    resource_pool="rp",
    guest_os="windows2022srv_64Guest",
    datastores=("ssd-1",),
    networks=("lan", "dmz"),
    disks=(DISK,),
)
MOVED = an_event(
    EventType.MIGRATED,
    SQL,
    cause="drs",
    from_host="esx-2",
    to_host="esx-1",
    user="alice",
    detail={"reason": "maintenance"},
)


def holds(text: str, **more: object) -> bool:
    answer = Condition(check_condition(text)).ask(SQL, MOVED, NOW, **more)  # type: ignore[arg-type]
    assert not answer.trouble
    return answer.holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('vm.name == "sql-1" && vm.folder.startsWith("/Prod/")', True),
        ('"env=prod" in vm.tags', True),
        ('"env=test" in vm.tags || vm.power == "off"', False),
        ('vm.tags.exists(t, t.endsWith("gold"))', True),
        ('vm.networks.all(n, n != "dmz")', False),
        ('vm.datastores == ["ssd-1"]', True),
        ("vm.size > 30 * 1024 * 1024 * 1024 && vm.disks == 1 && vm.snapshots == 0", True),
        ('vm.host == event.to_host && event.from_host != "" && event.cause == "drs"', True),
        ('event.user == "alice" && event.type == "vm.migrated" && event.source == "vcenter"', True),
        ('event.detail.reason.contains("mainten")', True),
        ('event.detail["no such"] == ""', True),
        ('vm.attributes.Owner == "dba"', True),
        ('vm.attributes.Team == ""', True),
        ('!("Team" in vm.attributes) || vm.attributes.Team == "web"', True),
        ("has(vm.attributes.Team)", False),
        ('vm.cluster == "c1" && vm.datacenter == "dc" && vm.resource_pool == "rp"', True),
        ('vm.guest_os.contains("windows") ? failures == 0 : failures > 2', True),
        ("now.getHours() == 14 && now.getDayOfWeek() == 0", True),
        ('now - duration("1h") < now', True),
        ("size(vm.name) == 5", True),
        ('// with a remark\nvm.name != "a \\"b\\" c"', True),
    ],
)
def test_a_condition_looks_at_the_vm_the_event_and_the_time(text: str, expected: bool) -> None:
    assert holds(text) is expected


def test_ages_and_failures_are_those_of_the_vm() -> None:
    hour = timedelta(hours=1)
    assert holds('last_good_age > duration("30m")', last_good=NOW - hour)
    assert not holds('last_good_age > duration("90m")', last_good=NOW - hour)
    assert holds('last_attempt_age < duration("2h") && failures == 3', last_attempt=NOW - hour, failures=3)
    assert holds('last_good_age == duration("0s")', last_good=NOW + hour), "a wrong clock makes no negative age"


def test_a_vm_that_was_never_backed_up_is_older_than_anything() -> None:
    assert timedelta(days=10_000) < NEVER
    assert holds('last_good_age > duration("87600h") && last_attempt_age > duration("87600h")')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('vm.attributes[vm.name] == "x"', 'there is no key "sql-1"'),
        ("vm.tags[7] == 'x'", "a list has no such element"),
        ("10 / (vm.disks - 1) > 2", "a division by zero or a number that is too large"),
        ("vm.size * 9223372036854775807 > 1", "a division by zero or a number that is too large"),
        ('int(vm.attributes.Owner == "dba" ? "x" : "1") > 0', "int() cannot read its text"),
    ],
)
def test_a_condition_that_cannot_be_worked_out_counts_as_true_and_says_why(text: str, why: str) -> None:
    answer = Condition(check_condition(text)).ask(SQL, MOVED, NOW)
    assert (answer.holds, answer.trouble) == (True, why)


def test_what_says_neither_true_nor_false_counts_as_true() -> None:
    answer = Condition(check_condition("vm.networks[1]")).ask(SQL, MOVED, NOW)
    assert (answer.holds, answer.trouble) == (True, "it says neither true nor false")


@pytest.mark.parametrize(
    "text",
    [
        "true ? vm.name : true",
        "r'a' == 'a'",
        "'''a''' == 'a'",
        "{'a': 1}.size() > 0",
        "vm.?name == 'a'",
        "vm . 3",
        "[1].3 == 1",
        "size(vm.tags + vm.tags + vm.tags + vm.tags + vm.tags + vm.tags + vm.tags + vm.tags + vm.tags) > 1",
        "vm",
        "vm == vm",
        "vm.size() == 3",
        "[vm].exists(v, v.name == 'x')",
        "vm.tags.exists(x.y)",
        "vm.tags.exists(now, true)",
        "vm.tags.exists",
        "vm.tags.exists(",
        "true)",
        "(true",
        "in",
        "vm.tags.frob(1)",
        "vm.tags.map(x, x)",
        "!vm.name",
        "vm.name && true",
        "true || vm.name > 3",
        "not(vm.name == 'x')",
        "vm.tags.startsWith('x')",
        "duration(vm.name) > duration('1h')",
        "timestamp('yesterday') < now",
        "a" * (LONGEST + 1),
        "\x00",
        "é == 1",
    ],
)
def test_what_cannot_be_asked_is_refused(text: str) -> None:
    with pytest.raises(Unusable):
        check_condition(text)


def hostile() -> Iterator[str]:
    """Texts of the greatest length that try to nest, to repeat and to grow."""
    for opening, closing in (("(", ")"), ("[", "]"), ("!(", ")"), ("size(", ")")):
        yield opening * 12 + "true" + closing * 12
        yield (opening * (LONGEST // 2))[: LONGEST - 1]
    for piece in ("!", "-", "true&&", "1+", "true?true:", "vm.", "vm.name.", '"a"==', "[1]+", "vm.tags[0]", "event["):
        yield (piece * LONGEST)[: LONGEST - 4] + "true"
    yield "[" + "1," * 200 + "1].all(x, [" + "1," * 20 + "1].all(y, x == y))"
    yield "[" + "1," * 200 + "1].all(x, x in [" + "2," * 20 + "1])"
    yield "(" + "+".join(["vm.tags"] * 40) + ").exists(x, x in (" + "+".join(["vm.tags"] * 15) + "))"
    yield 'vm.name.matches("' + "(\\\\w{50})" * 50 + '")'
    yield "(" + "+".join(["vm.tags"] * 3) + ').exists(x, (x + "q") in (' + "+".join(["vm.tags"] * 3) + "))"
    yield "(" + "+".join(["vm.tags"] * 20) + ').exists(x, (x + "q") in (' + "+".join(["vm.tags"] * 20) + "))"
    yield "vm.tags.map(x, vm.tags).exists(y, y == vm.tags.map(x, x))"
    yield "(" + "+".join(["vm.name"] * 60) + ').contains("a")'
    yield 'string(now).contains("' + "a" * 400 + '")'


def seconds(text: str, vm: Vm) -> float:
    """How long it takes to check a text and to ask it; the best of three, as the garbage collector takes its time."""
    taken = []
    for _ in range(3):
        conditions._compiled.cache_clear()
        began = time.thread_time()
        with contextlib.suppress(Unusable):
            Condition(check_condition(text)).ask(vm, MOVED, NOW)
        taken.append(time.thread_time() - began)
    return min(taken)


def test_no_condition_takes_long() -> None:
    many = a_vm("x" * 80, tags=frozenset(f"category-{n}=value-{n}" for n in range(100)))
    for text in hostile():
        assert seconds(text, many) < 0.05, text


def test_no_condition_takes_the_process_with_it() -> None:
    # CEL is a compiled extension: what overflows its stack would end the engine. So this asks another process.
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, threading\nfrom policies.conditions import _compile\n"
            "def go():\n"
            "  for text in sys.stdin.read().split(chr(0)):\n"
            "    try: _compile()(text).execute({'vm': {'tags': [], 'name': 'x'}})\n"
            "    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError): pass\n"
            "  print('alive')\n"
            "one = threading.Thread(target=go)\none.start()\none.join()",
        ],
        input="\0".join((*hostile(), *(text * 40 for text in hostile()))),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.stdout == "alive\n", found.stderr


def test_every_property_can_be_asked_for() -> None:
    for name in VM_PROPERTIES:
        check_condition(f"size([vm.{name}]) == 1")
    for name in EVENT_PROPERTIES:
        check_condition(f"size([event.{name}]) == 1")


def test_cel_is_loaded_for_conditions_only_and_without_its_command_line() -> None:
    script = (
        "import sys\nfrom policies.loading import load_texts\n"
        "load_texts({'a.toml': 'schema = 1'})\nprint('cel.cel' in sys.modules)\n"
        "load_texts({'a.toml': 'schema = 1\\n[policy.p]\\ntrigger = [{ on = \"vm.created\", when = \"true\" }]'})\n"
        "print('cel.cel' in sys.modules, 'typer' in sys.modules, 'cel.cli' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "False\nTrue False False\n"


def test_without_cel_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cel.cel", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="common-expression-language"):
        conditions._compile.__wrapped__()


def test_a_condition_says_the_same_in_any_thread_and_twice() -> None:
    condition = Condition(check_condition('vm.name == "sql-1" && last_good_age > duration("1h")'))
    later = datetime(2026, 12, 24, tzinfo=UTC)
    assert {condition.ask(SQL, MOVED, later, last_good=NOW).holds for _ in range(3)} == {True}
