"""An import as vCenter does it, on files: each disk in its order, all that was told, and nothing but that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from connectors.disk_files import FileReader, FileWriter
from connectors.disks import Extent, merge
from connectors.errors import ReadFailed, WriteFailed
from connectors.hypervisor import CreatedVm, OpenDisk, OpenTarget


class ForwardWriter:
    """A BlockingWriter that only goes forward and remembers what it was given."""

    def __init__(self, writer: FileWriter, on_write: Callable[[int], None]) -> None:
        self.capacity_bytes = writer.capacity_bytes
        self.given: list[Extent] = []
        self._writer = writer
        self._on_write = on_write
        self._offset = 0

    def read_into(self, offset: int, view: memoryview) -> None:
        raise ReadFailed("a disk that is being imported cannot be read")

    def write(self, offset: int, view: memoryview) -> None:
        if offset < self._offset:
            raise WriteFailed(f"offset {offset} lies behind {self._offset}")
        self._on_write(offset)
        self._writer.write(offset, view)
        self._offset = offset + view.nbytes
        self.given.append(Extent(offset, view.nbytes))

    def flush(self) -> None:
        """Nothing is durable before the end."""


class ImportInMemory:
    """An import under way."""

    def __init__(
        self,
        vm: CreatedVm,
        files: Sequence[Path],
        mapped: Sequence[Sequence[Extent]],
        on_write: Callable[[int], None],
    ) -> None:
        self.vm = vm
        self.whole = False
        self._files = files
        self._mapped = mapped
        self._on_write = on_write
        self._sent: set[int] = set()

    @asynccontextmanager
    async def disk(self, index: int) -> AsyncIterator[OpenTarget]:
        with FileWriter(self._files[index]) as writer:
            forward = ForwardWriter(writer, self._on_write)
            yield OpenTarget(forward, "import")
            assert merge(forward.given) == merge(self._mapped[index])
            self._sent.add(index)

    @asynccontextmanager
    async def read_back(self, index: int) -> AsyncIterator[OpenDisk]:
        assert self.whole
        with FileReader(self._files[index]) as reader:
            yield OpenDisk(reader, "export", sequential=True)

    async def complete(self) -> CreatedVm:
        assert len(self._sent) == len(self._files)
        self.whole = True
        return self.vm
