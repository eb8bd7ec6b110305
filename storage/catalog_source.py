"""What the catalog may ask of the repository."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from policies.facts import PointId
from storage import untold
from storage.blobs import Blobs
from storage.chunkstore import ChunkStore
from storage.errors import UNREADABLE, StorageError
from storage.expiry import latest_expiry
from storage.format import PackName
from storage.manifest import Manifest
from storage.marks import Mark, MarkKind
from storage.pack import Footer
from storage.pointmarks import READERS, PointMarks
from storage.sealing import Sealing


class Home(Protocol):
    """The repository, as far as the catalog follows it."""

    private: Blobs
    sealing: Sealing
    shared: bool
    store: ChunkStore
    marks: PointMarks

    @property
    def repository_id(self) -> str: ...
    def point_ids(self) -> set[PointId]: ...
    def manifest(self, point: PointId) -> Manifest: ...


class CatalogSource:
    """The catalog's `Source` over a repository."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.readers = READERS if home.shared else 1

    def packs(self) -> dict[int, PackName]:
        return dict(self._home.store.live)

    def footer(self, name: PackName) -> Footer:
        return self._home.store.footers.get(name)

    def manifest_ids(self) -> set[PointId]:
        return self._home.point_ids()

    def manifest(self, point: PointId) -> Manifest:
        try:
            return self._home.manifest(point)
        except UNREADABLE as error:
            try:
                return self.untold_manifest(point)
            except StorageError:
                raise error from None

    def mark_keys(self) -> set[str]:
        return self._home.marks.keys()

    def mark(self, key: str) -> Mark:
        return self._home.marks.read(key)

    def tombstones(self) -> dict[PointId, str]:
        marks = self._home.marks
        return {p: m.key for p in marks.expired() for m in marks.of(p) if m.kind is MarkKind.EXPIRED}

    def latest_expiry(self) -> str:
        return latest_expiry(self._home.private)

    def untold(self) -> set[PointId]:
        return untold.noted(self._home.private)

    def untold_manifest(self, point: PointId) -> Manifest:
        return untold.read(self._home.private, self._home.sealing, point)

    def told(self, points: Collection[PointId]) -> None:
        untold.told(self._home.private, points)

    def repository(self) -> str:
        return self._home.repository_id
