"""Blocks of a disk from what its map says of them: a chunk each, or a piece list that names parts of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.blobs import Buffer
from storage.chunkreads import ChunkReads
from storage.errors import Damaged
from storage.format import Pieced, PieceList, parse_pieces

WHERE = "piece list"


def read_blocks(store: ChunkReads, ids: Sequence[bytes]) -> list[Buffer]:
    """The blocks, each verified against its id; Damaged when one is not intact."""
    lists = read_lists(store, ids)
    if not lists:
        return store.read_many(ids)
    wanted = list(dict.fromkeys(chunks_of(ids, lists)))
    chunks = dict(zip(wanted, store.read_many(wanted), strict=True))
    return [_composed(store, lists[id_], chunks) if isinstance(id_, Pieced) else chunks[id_] for id_ in ids]


def read_lists(store: ChunkReads, ids: Iterable[bytes]) -> dict[bytes, PieceList]:
    """The piece lists among these ids of a leaf; Damaged when one is not intact."""
    pieced = list(dict.fromkeys(id_ for id_ in ids if isinstance(id_, Pieced)))
    if not pieced:
        return {}
    read = store.read_many(pieced, node=True)
    return {id_: parse_pieces(bytes(data), WHERE) for id_, data in zip(pieced, read, strict=True)}


def chunks_of(ids: Iterable[bytes], lists: dict[bytes, PieceList]) -> Iterable[bytes]:
    """The chunks that these ids of a leaf need, in order; some come more than once."""
    for id_ in ids:
        if isinstance(id_, Pieced):
            yield from lists[id_].chunks
        else:
            yield id_


def _composed(store: ChunkReads, pieces: PieceList, chunks: dict[bytes, Buffer]) -> bytes:
    views = [memoryview(chunks[chunk]) for chunk in pieces.chunks]
    block = b"".join([views[which][at : at + length] for which, at, length in pieces.pieces])
    if store.sealing.chunk_id(block) != pieces.content:
        raise Damaged("a block that is put together from pieces is not what was written", where=WHERE)
    return block
