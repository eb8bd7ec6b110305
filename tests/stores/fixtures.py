"""Fixtures for tests that need an object store: `object_server` (one for each test process) and `writer_place`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.places import ObjectPlace
from tests.stores.server import ObjectServer, object_server_in

PlaceOf = Callable[[str], ObjectPlace]
"""The place of this test's repository as the writer of a name sees it: each has its own folder for private things."""


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3 server, started when the first test asks for it."""
    with object_server_in(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def writer_place(object_server: ObjectServer, tmp_path: Path) -> PlaceOf:
    """Writers of one repository, which nothing else is in yet."""
    prefix = f"test/{secrets.token_hex(6)}"
    return lambda writer: object_server.place(tmp_path / f"state-{writer}", prefix)
