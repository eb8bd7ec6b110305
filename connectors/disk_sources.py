"""The one place that tells raw files, block devices and NBD addresses apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from connectors.disk_files import FileReader, is_nbd
from connectors.disks import DiskReader
from connectors.errors import TransportFailed
from connectors.nbd import NbdLimits, open_nbd
from connectors.nbd_protocol import parse_uri


@asynccontextmanager
async def open_source(source: str, *, limits: NbdLimits | None = None) -> AsyncIterator[DiskReader]:
    """The disk behind a raw file, a block device or an NBD address, open until the block ends.

    Raises TransportFailed for a broken address or a server that does not answer, Gone for a missing file,
    NotPermitted for one that we may not read.
    """
    if is_nbd(source):
        try:
            address = parse_uri(source)
        except ValueError as exc:
            raise TransportFailed(str(exc), where=source) from exc
        async with open_nbd(address, limits=limits) as disk:
            yield disk
    else:
        with FileReader(Path(source)) as file:
            yield file
