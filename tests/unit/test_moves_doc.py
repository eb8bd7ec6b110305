"""Each row of docs/moves.md is held by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_row_of_what_happens_when_a_vm_moves_has_its_test() -> None:
    rows = [line for line in (ROOT / "docs/moves.md").read_text().splitlines() if "`test_" in line]
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("*/test_*.py"))
    assert len(rows) >= 10
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
