"""Fixtures of the crash tests. They play in memory: a SIGKILL or a fault does not ask what was synced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.stages import KINDS, Stage, set_up
from tests.crash.victim import Victims
from tests.damage_kit import in_memory


@pytest.fixture(scope="session")
def stages() -> Iterator[dict[str, Stage]]:
    """A stage of each kind; play on copies of it."""
    with in_memory() as folder:
        yield {kind: set_up(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def trials() -> Iterator[Path]:
    """A new folder."""
    with in_memory() as folder:
        yield folder


@pytest.fixture(scope="session")
def victims() -> Iterator[Victims]:
    """The process whose children die."""
    with Victims() as victims:
        yield victims
