"""Whatever a file says that is accepted can be linted, explained and tested: no input ends in a traceback."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyError
from policies.explanation import explain
from policies.fixtures import case_of
from policies.linting import lint
from policies.loading import load_texts
from policies.reading import read_tests
from policies.staying import explain_point
from policies.verdicts import judge
from tests.policies.building import a_vm, daily_points, facts

ROOT = Path(__file__).parents[2]
TEXTS = [
    file.read_text()
    for folder in ("examples/policies", "tests/policies/valid")
    for file in sorted((ROOT / folder).glob("*.toml"))
]
WORDS = sorted({word for text in TEXTS for word in re.findall(r'"[^"\n]{1,40}"', text)})
NUMBERS = ["0", "1", "2", "99", "1000", "-1", "true", "false", '"0s"', '"1m"', '"36525d"', '"40d"', "[]", "{}"]
VM = a_vm("sql9", tags=frozenset({"backup=gold", "env=prod"}), host="esx1")
FACTS = facts(VM, points=daily_points(VM, 5))


@st.composite
def reworded(draw: st.DrawFn) -> str:
    """A file with some of its values exchanged for values of other keys."""
    text = draw(st.sampled_from(TEXTS))
    values = list(re.finditer(r'(?<== )("[^"\n]*"|[0-9]+|true|false)|"[^"\n]{1,40}"', text))
    for found in sorted(draw(st.lists(st.sampled_from(values), max_size=3)), key=lambda one: -one.start()):
        text = text[: found.start()] + draw(st.sampled_from(WORDS + NUMBERS)) + text[found.end() :]
    lines = text.split("\n")
    for _ in range(draw(st.integers(0, 2))):
        del lines[draw(st.integers(0, len(lines) - 1))]
    return "\n".join(lines)


@settings(max_examples=400)
@given(reworded())
def test_what_is_accepted_can_be_linted_explained_and_tested(text: str) -> None:
    try:
        policies = load_texts({"a.toml": text})
    except PolicyError:
        return
    for one in (*lint(policies), *lint(policies, FACTS)):
        assert re.match(r"(a\.toml:[1-9]\d*:[1-9]\d*: )?.+, .+", str(one))
    said = explain(policies, VM, FACTS)
    assert said.render() and said.as_json()
    for point in FACTS.points[VM.id]:
        stay = explain_point(policies, point, FACTS)
        assert stay.render() and stay.as_json() and stay.until
    for test in read_tests({"a.toml": text}):
        try:
            verdict = judge(case_of(test, policies), policies)
        except PolicyError as error:
            assert all(re.match(r"a\.toml:[1-9]\d*:[1-9]\d*: .+, .+", str(one)) for one in error.problems)
        else:
            assert all(difference.got for difference in verdict.differences)
