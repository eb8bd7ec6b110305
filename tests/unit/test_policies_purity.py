"""The core reads no clock, no file and no randomness. What import-linter cannot see is looked for here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "policies"
FORBIDDEN = {"now", "utcnow", "today", "open", "time", "monotonic", "uuid4", "urandom", "getenv", "print", "input"}
READS_FILES = {"loading.py"}


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_a_module_of_the_core_is_pure(file: Path) -> None:
    called = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    called.add(name)
    # datetime.combine(day, time()) makes midnight; it reads no clock.
    allowed = {"time"} if file.name == "windows.py" else {"open"} if file.name in READS_FILES else set()
    assert not called & (FORBIDDEN - allowed)


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.stem)
def test_a_module_is_short_enough_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 400
