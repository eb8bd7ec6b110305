"""Any input is a policy set or located problems, soon; and every key that tomli sees has its place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.loading import LARGEST_POLICY_BYTES, load_texts
from policies.places import Places
from policies.policyset import PolicySet

ROOT = Path(__file__).parents[2]
SEEDS = [
    file.read_bytes()
    for folder in ("examples/policies", "tests/policies/valid", "tests/policies/invalid")
    for file in sorted((ROOT / folder).glob("*.toml"))
]
PIECES = [
    b"\x00", b"\xff", b"\n", b"[", b"]", b"[[", b"{", b"}", b'"', b"'''", b'"""', b"=", b".", b"#", b",", b"\\u0000",
    b"policy", b"template", b"schema = 1\n", b"[policy.x]\n", b"select", b"true", b"1", b"-0x", b"1e999", b"nan",
    b"2026-13-45", b"1979-05-27T07:32:00Z", b"\r", b"\xef\xbb\xbf", "ü😀".encode(), b"template = \"gold\"\n",
    b"[" * 70, b"{a=" * 70, b"[]," * 300, b"9" * 5000, b"0x" + b"f" * 3000, b"1e" + b"9" * 400, b"k" * 3000,
    b"a." * 1000, b"*a" * 200, b"\\ud800", b"\xed\xa0\x80", b"\r\n", b"\x00" * 50, b"\xe2\x80\xae", b"1h " * 400,
    b"[[test]]\n", b"[test.expect.sql9]\n", b"event = [{}]\n", b"when = \"vm.name == 'x'\"\n", b"when = \"((((\"\n",
    b"schedule = \"RRULE:FREQ=DAILY;BYHOUR=22\"\n", b"blackout = [\"12-24 .. 12-26\"]\n", b"\"size:>500GiB\"",
    b"[policy.x.limits]\nrunning = 0\n", b"inventory = \"\"\n", b"clock = 9999-12-31T23:59:59Z\n",
]  # fmt: skip
LIMIT_S = 0.050
"""CPU of this thread for one file: other work on the machine does not count."""

ORDINARY_BYTES = 16 << 10
"""Some fifty policies. Whatever is in such a file, it takes less than the limit on a quiet machine; where others
compute beside the tests, caches are cold and the same work takes up to three times as long."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("insert", "delete", "swap", "repeat", "lines", "begin"))):
            case "insert":
                data[at:at] = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
            case "delete":
                del data[at : at + draw(st.integers(1, 30))]
            case "lines":
                data = data.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b""])))
            case "begin":
                data[0:0] = draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"#", b"\n" * 500]))
            case "swap":
                other = draw(st.sampled_from(SEEDS))
                start = draw(st.integers(0, len(other)))
                data[at : at + 20] = other[start : start + 40]
            case _:
                data[at:at] = data[at : at + 40] * draw(st.integers(1, 4))
    return bytes(data)


def read(*files: bytes, limit: float = LIMIT_S) -> PolicySet | PolicyError:
    texts = {f"{number}.toml": data for number, data in enumerate(files)}
    seconds = []
    for _ in range(3):  # the collector of this process' garbage may come in between
        started = time.thread_time()
        try:
            found: PolicySet | PolicyError = load_texts(texts)
        except PolicyError as error:
            found = error
        seconds.append(time.thread_time() - started)
        if seconds[-1] < limit * len(files):
            break
    assert min(seconds) < limit * len(files), (seconds, files[0][:200])
    if isinstance(found, PolicyError):
        assert found.problems
        for line in str(found).splitlines():
            assert re.match(r"\d\.toml:[1-9]\d*:[1-9]\d*: .+, .+", line), line
    return found


@settings(max_examples=2000)
@given(mutated())
def test_a_mutated_file_is_accepted_or_refused_with_places(data: bytes) -> None:
    read(data)


SCHEMA = b"schema = 1\n"


def many(text: str, size: int) -> bytes:
    """So many lines with a number in them that they fill the size."""
    lines = (text.replace("#", str(number)).encode() for number in range(size // len(text)))
    return SCHEMA + b"".join(lines)


HEAVY: dict[str, Callable[[int], bytes]] = {
    "unknown keys": lambda size: many("k#=1\n", size),
    "unknown keys of policies": lambda size: many("[policy.p#]\nrop='4h'\nk=1\n", size),
    "policies": lambda size: many("[policy.p#]\n", size),
    "time zones": lambda size: many("[policy.p#]\ntimezone='Eurp/Brln#'\n", size),
    "templates": lambda size: many("[template.t#]\ntemplate='t1#'\n", size),
    "unknown templates": lambda size: many("[policy.p#]\ntemplate='x#'\n", size),
    "headers": lambda size: many("[a#]\n", size),
    "arrays of tables": lambda size: many("[[a]]\n", size),
    "tests": lambda size: many("[[test]]\nname='#'\nexpect.x.kepes=1\n", size),
    "globs": lambda size: SCHEMA + b"[policy.p]\nselect.all=[" + many("'name:*#*',", size)[11:] + b"]",
    "events": lambda size: SCHEMA + b"[policy.p]\ntrigger=[" + b"{on='vm.migratd'}," * (size // 18) + b"]",
    "times": lambda size: SCHEMA + b"[policy.p]\nschedule=[" + b"'0 0 29 2 mon'," * (size // 15) + b"]",
    "blackouts": lambda size: SCHEMA + b"[policy.p]\nblackout=[" + many("'mon 0#:00-23:59',", size)[11:] + b"]",
    "empty lists": lambda size: b"a = [" + b"[]," * (size // 3) + b"]",
    "nested lists": lambda size: many("a#=" + "[" * 60 + "]" * 60 + "\n", size),
    "brackets": lambda size: b"a = " + b"[" * size,
    "digits": lambda size: SCHEMA + b"a = " + b"1" * size,
    "underscores": lambda size: SCHEMA + b"a = " + b"1_" * (size // 2),
    "a dotted key": lambda size: SCHEMA + b"a." * (size // 2) + b"a = 1",
    "quotes": lambda size: SCHEMA + b"a = " + b'"' * size,
    "escapes": lambda size: SCHEMA + b'a = "' + b"\\u0041" * (size // 6) + b'"',
    "zeros": lambda size: bytes(size),
    "broken lines": lambda size: SCHEMA + b"a = = 1\n" * (size // 8),
    "empty lines": lambda size: SCHEMA + b"\n" * size,
    "a glob": lambda size: SCHEMA + b"[policy.p]\nselect.all=['name:" + b"*a" * (size // 2) + b"']",
    "a duration": lambda size: SCHEMA + b"[policy.p]\nrpo='" + b"1h " * (size // 3) + b"'",
    "a window": lambda size: SCHEMA + b"[policy.p]\nwindow=['" + b"mon," * (size // 4) + b"mon 00:00-01:00']",
    "a condition": lambda size: (
        SCHEMA + b"[policy.p]\ntrigger=[{on='vm.created',when='" + b"(" * (size // 2) + b")" * (size // 2) + b"'}]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEAVY)
def test_a_file_that_is_made_to_be_slow_is_not(kind: str) -> None:
    read(SCHEMA + b"[policy.p]\ntimezone='Eurp'\n")  # what is loaded once
    read(HEAVY[kind](ORDINARY_BYTES - 64), limit=3 * LIMIT_S)
    read(HEAVY[kind](LARGEST_POLICY_BYTES - 64), limit=30 * LIMIT_S)


@given(st.binary(max_size=300))
def test_any_bytes_are_accepted_or_refused_with_places(data: bytes) -> None:
    read(data, b"schema = 1\n" + data)


@given(st.text(max_size=200))
def test_any_text_as_any_value_is_accepted_or_refused(text: str) -> None:
    value = "".join(f"\\U{ord(c):08x}" for c in text if not 0xD800 <= ord(c) < 0xE000)
    for line in (
        f'rpo = "{value}"',
        f'schedule = "{value}"',
        f'timezone = "{value}"',
        f'window = ["{value}"]',
        f'select.all = ["{value}"]',
        f'select.all = ["folder:/{value}"]',
        f'trigger = [{{ on = "{value}" }}]',
        f'"{value}" = 1',
        f'template = "{value}"',
    ):
        read(f"schema = 1\n[policy.p]\n{line}\n".encode())


@given(st.from_regex(r"[0-9*/,LWmonJAN#-]{1,8}( [0-9*/,LWmonJAN#-]{1,8}){4}", fullmatch=True))
def test_any_cron_is_accepted_or_refused(cron: str) -> None:
    read(f'schema = 1\n[policy.p]\nschedule = "{cron}"\n'.encode())


_BARE = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
_QUOTED = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\"'\\"), max_size=4)
_KEY = _BARE | _QUOTED.map(lambda text: f'"{text}"') | _QUOTED.map(lambda text: f"'{text}'")
_DOTTED = st.lists(_KEY, min_size=1, max_size=3).map(" . ".join) | st.lists(_KEY, min_size=1, max_size=3).map(".".join)
_VALUE = st.recursive(
    st.sampled_from(["1", "true", '"ü# ["', "'x'", '"""a\n\nb"""', "1979-05-27", "0x1F", "[]", "{}"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: "[ " + ",\n # c\n ".join(values) + " ]")
        | st.lists(st.tuples(_DOTTED, inner), max_size=2).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs if "\n" not in value) + " }"
        )
    ),
    max_leaves=6,
)
_LINE = (
    st.tuples(_DOTTED, _VALUE).map(lambda pair: f"{pair[0]} = {pair[1]}")
    | _DOTTED.map(lambda key: f"[{key}]")
    | _DOTTED.map(lambda key: f"[[ {key} ]] # comment")
    | st.just("  # comment = 1")
)
_DOCUMENT = st.lists(_LINE, max_size=8).map("\n".join)


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


@settings(max_examples=500)
@given(_DOCUMENT)
def test_every_key_that_tomli_sees_has_its_place(text: str) -> None:
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    places = Places(text)
    lines = text.split("\n")
    for path in paths(data):
        assert places.knows(path), path
        place = places.key(path)
        here = lines[place.line - 1][place.column - 1 :]
        if isinstance(path[-1], str):
            assert here.lstrip("\"'").startswith(path[-1][:1]), (path, here)


@given(_DOCUMENT, st.text("[]{}=.\"'#, \nab1", max_size=12), st.integers(0, 200))
def test_places_can_be_asked_of_any_text(text: str, broken: str, at: int) -> None:
    places = Places(text[:at] + broken + text[at:])
    for path in ((), ("a",), ("a", 0, "b"), (1,)):
        assert places.key(path).line >= 1
        assert places.value(path).column >= 1


def test_places_of_broken_text_are_those_of_what_can_be_read() -> None:
    places = Places("= 1\na =\nb = 1\n[c.]\nd = 1\n")
    assert places.key(("b",)).line == 3
    assert places.key(("c",)).line == 4
    assert Places('"\\uD800" = 1\n').key(("\\uD800",)).line == 1


def test_syntax_that_the_grammar_does_not_know_still_finds_its_key() -> None:
    text = 'schema = 1\n[policy.p]\nconsistency = {\n  want = "x",\n  wnat = "y",\n}\n'
    places = Places(text)
    assert places.key(("policy", "p", "consistency", "wnat")).line == 5
    assert places.key(("policy", "p", "nowhere")).line == 2
    assert places.key(("policy", "p", 3)).line == 2
    assert places.value(("elsewhere",)).line == 1
