"""Fixtures for tests that need a vCenter: `lab` (shared, read mostly) and `fresh_lab` (one's own)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.vcenter import Lab, start_lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for the whole run: 6 VMs, change tracking off, file systems on the disks. Leave it as it was found."""
    with start_lab(tmp_path_factory.mktemp("lab"), vms=6, disk_bytes=32 * 1024 * 1024) as running:
        yield running


@pytest.fixture
def fresh_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Call it with start_lab's arguments; the labs that were started end with the test."""
    with ExitStack() as stack:
        count = 0

        def start(**arguments: Any) -> Lab:
            nonlocal count
            count += 1
            return stack.enter_context(start_lab(tmp_path / f"lab{count}", **arguments))

        yield start
