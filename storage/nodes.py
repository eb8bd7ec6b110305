"""Block-map nodes kept as chunks of tree packs."""

from __future__ import annotations

from collections.abc import Sequence

from storage.blobs import Buffer
from storage.chunkstore import ChunkStore, Session
from storage.errors import Damaged, Missing, Overtaken
from storage.format import PackKind


class StoredNodes:
    """A NodeStore over a chunk store; without a session it only reads."""

    def __init__(self, store: ChunkStore, session: Session | None = None) -> None:
        self.store = store
        self._session = session
        self.stored_bytes = 0

    def put_nodes(self, nodes: Sequence[bytes]) -> list[bytes]:
        if self._session is None:
            raise ValueError("these nodes are only for reading")
        ids = [self.store.sealing.node_id(node) for node in nodes]
        added = self.store.add(self._session, PackKind.TREE, list(zip(ids, nodes, strict=True)))
        self.stored_bytes += added.stored_bytes
        return ids

    def get_nodes(self, ids: Sequence[bytes]) -> list[Buffer]:
        try:
            return self.store.read_many(ids, node=True)
        except Damaged as error:
            if self._session is not None:
                self._session.check()  # nodes of a lost pack are no damage
                if self.store.shared and isinstance(error, Missing):
                    raise Overtaken("a pack that it builds on was freed meanwhile", where=error.where) from error
            raise
