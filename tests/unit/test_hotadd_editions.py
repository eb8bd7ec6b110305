"""Hot-add by edition: each row of the table, what no row speaks of, and what the configuration says instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.vsphere.editions import EDITIONS, ROWS, SOURCES, Row, edition_of, judge, row_for

TRANSPORTS = Path(__file__).parents[2] / "docs" / "transports.md"


def name(row: Row) -> str:
    """A row as a test's name."""
    return f"{row.edition}-{row.since[0]}.{row.since[1]}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_each_row_decides_for_its_versions_and_names_its_source(row: Row) -> None:
    key = f"esx.{row.edition}.cpuPackage"
    version = f"{row.since[0]}.{row.since[1]}.0"
    found = judge("auto", version, key)
    assert (found.tried, found.known) == (row.allowed, True)
    assert found.said.startswith(f"vSphere {version} {EDITIONS[row.edition]}") and row.source in found.said
    assert judge("always", version, key).tried
    assert not judge("never", version, key).tried
    if row.before is not None:
        assert row_for(row.before, row.edition) is not row


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_each_row_is_shown_in_the_documentation(row: Row) -> None:
    until = f"before {row.before[0]}.{row.before[1]}" if row.before else "and newer"
    line = f"| {row.since[0]}.{row.since[1]} {until} | {EDITIONS[row.edition]} | {'yes' if row.allowed else 'no'} | "
    shown = TRANSPORTS.read_text()
    assert f"{line}{row.source} |" in shown
    assert SOURCES[row.source] in shown


def test_no_two_rows_speak_of_the_same_edition_at_the_same_version() -> None:
    for row in ROWS:
        assert row_for(row.since, row.edition) is row


@pytest.mark.parametrize(
    ("version", "key"), [("7.0.3", "esx.standard.cpuPackage"), ("8.0.3", "esx.vcf.core"), ("8.0.3", ""), ("x", "eval")]
)
def test_what_no_row_speaks_of_is_tried(version: str, key: str) -> None:
    found = judge("auto", version, key)
    assert (found.tried, found.known) == (True, False)
    assert "nothing is known of hot-add" in found.said and "tried" in found.said


@pytest.mark.parametrize(
    ("key", "edition"),
    [
        ("esx.enterprisePlus.cpuPackage", "enterprisePlus"),
        ("esx.essentialsPlus.cpuPackage", "essentialsPlus"),
        ("esx.enterprise.serverPackage", "enterprise"),
        ("eval", "eval"),
        ("vc.standard.instance.9", "standard"),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_an_edition_is_read_from_a_licence_s_key(key: str, edition: str) -> None:
    assert edition_of(key) == edition
