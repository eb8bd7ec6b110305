"""Policy files are read completely, or refused with the place and what to write instead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from policies.errors import PolicyError, Problem, quoted
from policies.facts import Quiescing
from policies.loading import LARGEST_POLICY_BYTES, load, load_texts
from policies.parsing import DEEPEST
from policies.policy import DEFAULT_GRACE, PolicyLimits
from policies.presets import PRESETS
from policies.units import parse_duration, span
from tests.policies.building import policies

ROOT = Path(__file__).parents[2]
INVALID = sorted((ROOT / "tests" / "policies" / "invalid").glob("*.toml"))
VALID = sorted((ROOT / "tests" / "policies" / "valid").glob("*.toml"))


def problems(texts: dict[str, str | bytes]) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_texts(texts)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_an_invalid_file_is_refused_with_place_and_remedy(file: Path) -> None:
    text = file.read_text()
    expected = text.splitlines()[0].removeprefix("# ")
    assert f"{file.name}:{expected}" in problems({file.name: text})


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_a_valid_file_is_accepted(file: Path) -> None:
    assert load_texts({file.name: file.read_bytes()}).texts[file.name] == file.read_text()


def test_every_key_arrives_in_the_policy() -> None:
    policy = load(ROOT / "tests" / "policies" / "valid").policy("all-keys")
    assert policy is not None
    assert policy.timing.rpo == parse_duration("36h")
    assert policy.timing.zone.key == "America/New_York"
    assert len(policy.timing.windows) == 3
    assert policy.transports == ("hotadd", "nbd")
    assert [trigger.rule for trigger in policy.triggers] == [f"trigger[{number}]" for number in range(4)]
    assert policy.triggers[0].any_time
    assert span(policy.triggers[0].settle) == "1 h 30 m"
    assert dict(policy.retention.counts)["quarterly"] == 6
    assert policy.retention.min_good == 2
    assert not policy.retention.grace
    assert (policy.want, policy.fallback) == ("application", "filesystem")
    assert policy.quiescing == Quiescing(3, parse_duration("2m"), parse_duration("30m"))
    assert policy.limits == PolicyLimits(running=2, per_host=1, per_datastore=2)


def test_without_keys_a_policy_selects_nothing_keeps_everything_and_has_a_grace() -> None:
    policy = policies("[policy.p]").policy("p")
    assert policy is not None
    assert not policy.selection.all
    assert policy.retention.empty
    assert policy.retention.grace == DEFAULT_GRACE
    assert (policy.wanted, policy.weakest_good) == ("filesystem", "crash")


def test_a_template_is_merged_key_by_key_and_the_policy_wins() -> None:
    policy = policies(
        """
        [template.low]
        rpo = "24h"
        retention = { keep_daily = 7, keep_weekly = 4 }
        select = { none = ["tag:backup=never"] }
        [template.high]
        template = "low"
        priority = 5
        retention.keep_weekly = 8
        """,
        """
        [policy.p]
        template = "high"
        rpo = "4h"
        select.all = ["*"]
        [policy.p.retention]
        keep_daily = 14
        """,
    ).policy("p")
    assert policy is not None
    assert policy.timing.rpo == parse_duration("4h")
    assert policy.priority == 5
    assert dict(policy.retention.counts) == {"daily": 14, "weekly": 8}
    assert [term.text for term in policy.selection.none] == ["tag:backup=never"]


def test_a_preset_writes_numbers_and_what_is_written_wins() -> None:
    found = policies(
        """
        [template.t]
        retention = { preset = "more", keep_yearly = 0, grace = "7d" }
        [policy.p]
        template = "t"
        retention = { keep_daily = 20 }
        [policy.q]
        template = "t"
        retention = { preset = "few" }
        [policy.r]
        retention = { keep_daily = 30, keep_weekly = 12, keep_monthly = 12, keep_quarterly = 8, keep_yearly = 3 }
        [policy.s]
        retention.preset = "many"
        """
    )
    kept = {policy.name: dict(policy.retention.counts) for policy in found.policies}
    assert kept["p"] == {"daily": 20, "weekly": 8, "monthly": 6, "quarterly": 4}
    assert kept["q"] == {"daily": 7, "weekly": 4, "monthly": 3}
    assert kept["r"] == kept["s"]
    assert len({policy.hash for policy in found.policies}) == 3, "a preset is the numbers that it stands for"


def test_the_document_has_the_numbers_of_the_presets() -> None:
    lines = (ROOT / "docs" / "policies.md").read_text().splitlines()
    rules = ("keep_daily", "keep_weekly", "keep_monthly", "keep_quarterly", "keep_yearly")
    for name, numbers in PRESETS.items():
        assert set(numbers) <= set(rules)
        shown = " | ".join(str(numbers.get(rule, "")) for rule in rules)
        assert f"| `{name}` | {shown} |".replace("|  ", "| ") in lines


def test_the_hash_is_of_what_a_policy_does() -> None:
    one = policies('[policy.p]\nrpo = "4h"\ndescription = "a"').policies[0]
    same = policies('[template.t]\nrpo = "4h"', '[policy.p]\ntemplate = "t"').policies[0]
    other = policies('[policy.p]\nrpo = "5h"').policies[0]
    assert one.hash == same.hash != other.hash


def test_two_policies_of_one_name_are_refused_with_both_places() -> None:
    text = "schema = 1\n[policy.gold]\n"
    assert problems({"a.toml": text, "b.toml": f"\n{text}"}) == [
        'b.toml:3:9: policy "gold" is already defined at a.toml:2:9, write another name or remove one of them'
    ]


def test_two_guards_are_refused_with_both_places() -> None:
    text = "schema = 1\n[guard]\n"
    assert problems({"a.toml": text, "b.toml": text}) == [
        "b.toml:2:2: [guard] is already defined at a.toml:2:2, keep one of them"
    ]


def test_all_problems_of_all_files_are_told_at_once() -> None:
    found = problems({"a.toml": 'schema = 1\n[policy.a]\nrop = 1\ntemplate = "x"\n', "b.toml": "=", "c.toml": b"\xff"})
    assert [line.split(":")[:2] for line in found] == [
        ["a.toml", "3"],
        ["a.toml", "4"],
        ["b.toml", "1"],
        ["c.toml", "1"],
    ]


def test_a_file_that_is_not_utf8_is_refused_at_the_byte() -> None:
    assert problems({"a.toml": "schema = 1 # grün".encode("latin-1")}) == [
        "a.toml:1:16: is not UTF-8 text, save the file as UTF-8"
    ]


def test_a_lone_surrogate_is_refused() -> None:
    assert problems({"a.toml": "schema = 1 # \ud800"}) == ["a.toml:1:1: is not UTF-8 text, save the file as UTF-8"]


def test_a_byte_order_mark_is_accepted() -> None:
    assert load_texts({"a.toml": b"\xef\xbb\xbfschema = 1"}).policies == ()


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    assert "is larger than" in problems({"a.toml": "#" * (LARGEST_POLICY_BYTES + 1)})[0]


@pytest.mark.parametrize("opening", ["[", "{a=", "[{a="])
def test_deep_nesting_is_refused(opening: str) -> None:
    text = "schema = 1\nx = " + opening * 5000
    assert problems({"a.toml": text}) == [f"a.toml:1:1: is nested too deeply, nest at most {DEEPEST} levels"]


def test_a_number_of_ten_thousand_digits_is_refused() -> None:
    digits = "9" * (sys.get_int_max_str_digits() + 1)
    assert "has a value that cannot be read" in problems({"a.toml": f"schema = {digits}"})[0]


def test_control_characters_are_shown_escaped() -> None:
    found = problems({"a.toml": 'schema = 1\n[policy.p]\nrpo = "4\\u0000\\n"\n'})
    assert found == [
        'a.toml:3:7: "4\\u0000\\n" is not a duration, write a number and a unit (s, m, h, d, w) such as "4h"'
    ]


def test_long_texts_are_shortened() -> None:
    assert quoted("x" * 100) == f'"{"x" * 59}…"'


def test_a_directory_is_read_with_what_is_below_it_but_not_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "a.toml").write_text("schema = 1\n[policy.a]\n")
    (tmp_path / "team" / "b.toml").write_text("schema = 1\n[policy.b]\n")
    (tmp_path / ".git" / "c.toml").write_text("not a policy")
    (tmp_path / "readme.md").write_text("not a policy")
    loaded = load(tmp_path)
    assert [policy.name for policy in loaded.policies] == ["a", "b"]
    assert set(loaded.texts) == {"a.toml", "team/b.toml"}
    assert load_texts(loaded.texts).hash == loaded.hash


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is not a directory, name the directory of policies"):
        load(tmp_path / "nowhere")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").mkdir()
    (tmp_path / "b.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(PolicyError) as caught:
        load(tmp_path)
    assert [problem.file for problem in caught.value.problems] == ["a.toml", "b.toml"]
    assert all("cannot be read" in problem.what for problem in caught.value.problems)


def test_a_policy_may_have_the_name_of_its_template() -> None:
    found = policies('[template.gold]\nrpo = "4h"\n[policy.gold]\ntemplate = "gold"').policy("gold")
    assert found is not None
    assert found.timing.rpo == parse_duration("4h")


def test_a_circle_of_templates_is_told_for_the_templates_and_not_for_their_users() -> None:
    text = 'schema = 1\n[template.a]\ntemplate = "a"\n[template.b]\ntemplate = "a"\n[policy.p]\ntemplate = "b"\n'
    assert problems({"a.toml": text}) == ["a.toml:3:12: templates go in a circle (a → a), remove one of the links"]


def test_a_template_that_leads_into_a_circle_is_not_blamed_for_it() -> None:
    text = 'schema = 1\n[template.a]\ntemplate = "b"\n[template.b]\ntemplate = "b"\n'
    assert problems({"a.toml": text}) == ["a.toml:5:12: templates go in a circle (b → b), remove one of the links"]


def test_a_template_that_is_not_a_name_is_told_once() -> None:
    assert problems({"a.toml": "schema = 1\n[policy.p]\ntemplate = 3\n"}) == [
        'a.toml:3:12: template must be a text in quotes, not 3, write template = "gold"'
    ]


def test_a_policy_whose_template_is_broken_adds_no_second_problem() -> None:
    for broken in ('rpo = "x"', 'template = "nowhere"'):
        text = f"schema = 1\n[template.t]\n{broken}\n"
        found = problems({"a.toml": text, "b.toml": 'schema = 1\n[policy.p]\ntemplate = "t"\n'})
        assert [line.split(":")[0] for line in found] == ["a.toml"]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[policy]\ngold = 3", "gold must be a table, not 3, write a table such as [policy.gold]"),
        (
            "guard = [1]",
            "guard must be a table, not a list, write a table of max_vms_losing_protection, max_expire_share",
        ),
        ("[policy.p]\nrpo = true", 'rpo must be a text in quotes, not true, write rpo = "4h"'),
        ("[policy.p]\nrpo = 1979-05-27", 'rpo must be a text in quotes, not 1979-05-27, write rpo = "4h"'),
        ("[policy.p]\ntimezone = 'europe/berlin'", '"europe/berlin" is not a time zone, write "Europe/Berlin"'),
        ("[policy.p]\nretentoin = {}", 'unknown key "retentoin" in [policy.p], write "retention"'),
        ("[policy.p]\n'Keep Daily' = 1", '"Keep Daily" in [policy.p], write "keep_daily" in [policy.p.retention]'),
        ("[policy.p]\nzyzzy = 1", 'unknown key "zyzzy" in [policy.p], write one of template'),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_with_an_example(text: str, remedy: str) -> None:
    assert remedy in problems({"a.toml": f"schema = 1\n{text}\n"})[0]


def test_a_directory_that_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load(tmp_path / ("x" * 300))


def test_a_problem_reads_as_file_line_column() -> None:
    assert re.fullmatch(r"\S+:\d+:\d+: .+, .+", str(Problem("a.toml", 1, 2, "what", "write it")))
