"""The policies that people start from: loaded, without advice, tested alone and together, and explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.fixtures import case_of
from policies.linting import lint
from policies.loading import load, load_tests
from policies.verdicts import judge

PLACE = Path(__file__).parents[2] / "examples" / "policies"
FILES = sorted(PLACE.glob("*.toml"))
DOCUMENT = (PLACE.parents[1] / "docs" / "policies.md").read_text()


def failures(place: Path) -> list[str]:
    """What the tests of a file or a directory find; at least one must be there."""
    policies = load(place)
    written = load_tests(place, policies)
    assert written
    verdicts = [judge(case_of(test, policies), policies) for test, _ in written]
    return [f"{verdict.case.name}: {one}" for verdict in verdicts for one in verdict.differences]


def test_there_is_one_for_each_need() -> None:
    assert {file.stem for file in FILES} >= {
        "tiers", "database", "development", "follow_the_vm", "decommission", "ransomware", "gfs", "offsite",
    }  # fmt: skip


@pytest.mark.parametrize("place", [*FILES, PLACE], ids=lambda place: place.stem)
def test_its_tests_pass_alone_and_beside_the_others(place: Path) -> None:
    assert failures(place) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_gets_no_advice_and_its_keys_complete_in_editors(file: Path) -> None:
    assert [str(one) for one in lint(load(file))] == []
    assert file.read_text().startswith("#:schema ../../docs/policies.schema.json\n# ")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_document_tells_what_happens_when(file: Path) -> None:
    told = DOCUMENT.partition("\n## Examples\n")[2].partition("\n## ")[0]
    assert f"### `{file.name}`" in told
    for policy in load(file).policies:
        assert f"`{policy.name}`" in told, f"{policy.name} is not explained"
