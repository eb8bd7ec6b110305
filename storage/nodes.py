"""Block-map nodes kept as chunks of tree packs."""

from __future__ import annotations

from collections.abc import Sequence

from storage.blockmap import NodeSource
from storage.bulkreads import as_words, read_nodes
from storage.chunkstore import ChunkStore, Session
from storage.errors import Damaged, Missing, Overtaken
from storage.filecalls import Buffer
from storage.format import PackKind

BULK_NODES = 1024
"""So many nodes at once pay for numpy's import and for reading what lies between them."""


KEPT_NODES = 2048
"""Nodes of a map that is looked up again and again: 4 MiB, and what 8 GiB of a disk have."""


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
            return self.store.read_many(ids, node=True) if len(ids) < BULK_NODES else self._in_bulk(ids)
        except Damaged as error:
            if self._session is not None:
                self._session.check()  # nodes of a lost pack are no damage
                if self.store.shared and isinstance(error, Missing):
                    raise Overtaken("a pack that it builds on was freed meanwhile", where=error.where) from error
            raise

    def _in_bulk(self, ids: Sequence[bytes]) -> list[Buffer]:
        found: list[Buffer] = [b""] * len(ids)
        for nodes in read_nodes(self.store, as_words(ids)):
            columns = (nodes.rows, nodes.starts, nodes.starts + nodes.lengths)
            for row, start, end in zip(*(column.tolist() for column in columns), strict=True):
                found[row] = bytes(nodes.data[start:end])
        return found


class KeptNodes:
    """A NodeSource that remembers what it read. Thread-safe."""

    def __init__(self, nodes: NodeSource) -> None:
        self._nodes = nodes
        self._kept: dict[bytes, Buffer] = {}

    def get_nodes(self, ids: Sequence[bytes]) -> list[Buffer]:
        kept = self._kept
        missing = [id_ for id_ in ids if id_ not in kept]
        if missing:
            if len(kept) + len(missing) > KEPT_NODES:
                kept = {id_: kept[id_] for id_ in ids if id_ in kept}
            self._kept = kept = kept | dict(zip(missing, self._nodes.get_nodes(missing), strict=True))
        return [kept[id_] for id_ in ids]
