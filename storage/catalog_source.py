"""What the catalog may ask of the repository."""

from __future__ import annotations

from typing import Protocol

from policies.facts import PointId
from storage.blobs import Blobs
from storage.chunkstore import ChunkStore
from storage.expiry import latest_expiry
from storage.format import PackName
from storage.manifest import Manifest
from storage.marks import Mark, MarkKind
from storage.pack import Footer
from storage.pointmarks import READERS, PointMarks


class Home(Protocol):
    """The repository, as far as the catalog follows it."""

    private: Blobs
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
        return self._home.manifest(point)

    def mark_keys(self) -> set[str]:
        return self._home.marks.keys()

    def mark(self, key: str) -> Mark:
        return self._home.marks.read(key)

    def tombstones(self) -> dict[PointId, str]:
        marks = self._home.marks
        return {p: m.key for p in marks.expired() for m in marks.of(p) if m.kind is MarkKind.EXPIRED}

    def latest_expiry(self) -> str:
        return latest_expiry(self._home.private)

    def repository(self) -> str:
        return self._home.repository_id
