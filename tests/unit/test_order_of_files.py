"""The order in which processes that share the tests take the files."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import FIRST


def test_each_file_that_goes_first_exists_and_is_named_once() -> None:
    assert [name for name in FIRST if not (Path(__file__).parents[1] / name).is_file()] == []
    assert len(set(FIRST)) == len(FIRST)
