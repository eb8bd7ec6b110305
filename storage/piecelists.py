"""Blocks of a disk from what its map says of them: a chunk each, or a piece list that names parts of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from storage.chunkreads import ChunkReads
from storage.errors import Damaged
from storage.filecalls import Buffer
from storage.format import Pieced, PieceList, parse_pieces

WHERE = "piece list"

CHUNKS_AT_ONCE = 32


def read_blocks(store: ChunkReads, ids: Sequence[bytes]) -> list[Buffer]:
    """The blocks, each verified against its id; Damaged when one is not intact.

    Of the chunks that lists name only some are in memory at once, however many and long they are.
    """
    lists = read_lists(store, ids)
    if not lists:
        return store.read_many(ids)
    pieced = {id_: bytearray(sum([length for _, _, length in one.pieces])) for id_, one in lists.items()}
    parts: dict[bytes, list[tuple[memoryview, int]]] = {}
    for id_, one in lists.items():
        into, begin = memoryview(pieced[id_]), 0
        for which, at, length in one.pieces:
            parts.setdefault(one.chunks[which], []).append((into[begin : begin + length], at))
            begin += length
    whole: dict[bytes, Buffer] = {id_: b"" for id_ in ids if not isinstance(id_, Pieced)}
    wanted = list(dict.fromkeys(chunks_of(ids, lists)))
    for start in range(0, len(wanted), CHUNKS_AT_ONCE):
        some = wanted[start : start + CHUNKS_AT_ONCE]
        for chunk, data in zip(some, store.read_many(some), strict=True):
            if chunk in whole:
                whole[chunk] = data
            for piece, at in parts.get(chunk, ()):
                if at + len(piece) > len(data):
                    raise Damaged("a piece list names more of a chunk than there is", where=WHERE)
                piece[:] = memoryview(data)[at : at + len(piece)]
    for id_, block in pieced.items():
        if store.sealing.chunk_id(block) != lists[id_].content:
            raise Damaged("a block that is put together from pieces is not what was written", where=WHERE)
    return [pieced[id_] if isinstance(id_, Pieced) else whole[id_] for id_ in ids]


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
