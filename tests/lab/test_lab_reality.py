"""REALITY.md names tests that are there."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_that_the_table_relies_on_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (HERE / "REALITY.md").read_text()))
    there: set[str] = set()
    for source in HERE.glob("test_*.py"):
        there |= set(re.findall(r"^(?:async )?def (test_\w+)\(", source.read_text(), re.MULTILINE))
    assert named - there == set()
    assert len(named) > 40
