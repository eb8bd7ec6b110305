"""Each row of docs/vsphere-rules.md is there, names a module and is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/vsphere-rules.md"


def rows(section: str) -> list[list[str]]:
    """The cells of the table in this section, without its head."""
    _, _, after = DOCUMENT.read_text().partition(f"## {section}\n")
    lines = [line for line in after.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("section", "count"), [("The ten rules", 10), ("The traps", 18)])
def test_each_rule_and_each_trap_has_its_row(section: str, count: int) -> None:
    assert [row[0] for row in rows(section)] == [str(number) for number in range(1, count + 1)]
    assert {len(row) for row in rows(section)} == {4}
    assert [row[0] for row in rows(section) if not any((ROOT / path).is_file() for path in named(row[2]))] == []


@pytest.mark.parametrize("section", ["The ten rules", "The traps", "What pyVmomi lets go wrong"])
def test_each_row_has_tests_that_exist(section: str) -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("*/test_*.py"))
    assert len(rows(section)) >= 9
    for row in rows(section):
        assert named(row[-1]), row
        assert [name for name in named(row[-1]) if f"def {name}(" not in tests] == []
        assert [path for path in named(row[-2]) if "/" in path and not (ROOT / path).is_file()] == []


def named(cell: str) -> list[str]:
    """What stands in code marks."""
    return re.findall(r"`([\w/.]+)`", cell)
