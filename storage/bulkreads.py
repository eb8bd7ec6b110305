"""Many chunks at once, with numpy: where they lie, and nodes of block maps read in the order of the packs.

Ids are numpy arrays of shape (n, 4), each id as four little-endian 64-bit words. What is read is verified against its
id as everywhere; what cannot be had in bulk (not sealed yet, damaged in one of its packs) is read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

from storage.chunkreads import ChunkReads
from storage.errors import Damaged
from storage.format import COUNT_BYTES, HAS_PIECED, ID_BYTES, MAX_FAN_OUT, NODE_HEAD, Codec
from storage.pack import Footer

GAP_BYTES = 128 << 10
"""Two nodes this near to each other in a pack are read by one call: copying the gap costs no more than a call."""

BATCH_BYTES = 16 << 20
MAX_NODE_BYTES = NODE_HEAD.size + MAX_FAN_OUT * (ID_BYTES + COUNT_BYTES) + MAX_FAN_OUT // 4
WORDS = ID_BYTES // 8
WHERE = "block map"


def entry_type() -> Any:
    """A footer's entry as a numpy type; the top byte of `raw` is the codec."""
    import numpy as np

    return np.dtype([("id", "<u8", (WORDS,)), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("check", "<u4")])


def entries_of(footer: Footer) -> Any:
    """A footer's entries as a numpy array."""
    import numpy as np

    return np.frombuffer(footer.entries, entry_type())


def as_words(ids: Sequence[bytes]) -> Any:
    """Ids as an array."""
    import numpy as np

    return np.frombuffer(b"".join(ids), "<u8").reshape(-1, WORDS)


def heads_of(words: Any) -> Any:
    """The 64-bit prefixes of ids."""
    return words[:, 0].byteswap()


@dataclass(frozen=True, slots=True)
class Places:
    """Where chunks lie; `pack` is -1 for those that no sealed and indexed pack has."""

    pack: Any
    slot: Any
    offset: Any
    stored: Any
    raw: Any


def locate_many(store: ChunkReads, ids: Any) -> Places:
    """The place of each chunk, its full id compared with the pack's footer."""
    import numpy as np

    count = len(ids)
    places = Places(np.full(count, -1, np.int64), *(np.zeros(count, np.int64) for _ in range(4)))
    rows, numbers, slots = store.candidates(heads_of(ids))
    order = np.argsort(numbers)
    rows, numbers, slots = rows[order], numbers[order], slots[order]
    bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)] if len(numbers) else []
    for start, end in pairwise(bounds):
        footer = store.footer_of(int(numbers[start]))
        if footer is None:
            continue
        entries, at, of = entries_of(footer), slots[start:end], rows[start:end]
        if at.max() >= len(entries):
            at, of = at[at < len(entries)], of[at < len(entries)]
        found = entries[at]
        same = (found["id"] == ids[of]).all(axis=1)
        if not same.all():
            at, of, found = at[same], of[same], found[same]
        places.pack[of], places.slot[of] = footer.name.number, at
        places.offset[of], places.stored[of], places.raw[of] = found["offset"], found["stored"], found["raw"]
    return places


Filled = tuple[Any, Any, memoryview]
"""Rows, where in the buffer each of them begins, and the buffer."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Verified nodes one after the other in `data`; `rows` tells which of those asked for each one is."""

    rows: Any
    data: memoryview
    starts: Any
    lengths: Any


def read_nodes(store: ChunkReads, ids: Any) -> Iterator[Nodes]:
    """All of these nodes, in an order that suits the packs. A batch is valid until the next. Damaged."""
    import numpy as np

    places = locate_many(store, ids)
    plain = (places.pack >= 0) & (places.raw == places.stored) & (not store.sealing.encrypted)
    plain &= (places.raw >> 24 == Codec.RAW) & (places.stored <= MAX_NODE_BYTES)
    left = np.flatnonzero(~plain)
    rows = np.flatnonzero(plain)
    rows = rows[np.argsort(places.pack[rows] << 32 | places.offset[rows])]
    total = int(places.stored[rows].sum())
    buffers = [memoryview(bytearray(min(BATCH_BYTES, 4 * total))) for _ in range(1 if total <= BATCH_BYTES else 2)]
    filled = _fill(store, places, rows, buffers)
    for batch, starts, buffer in _ahead(filled) if len(buffers) > 1 else filled:
        lengths = places.stored[batch]
        wrong = _wrong(store, ids[batch], buffer, starts, lengths)
        if wrong.any():
            left = np.concatenate([left, batch[wrong]])
            batch, starts, lengths = batch[~wrong], starts[~wrong], lengths[~wrong]
        yield Nodes(batch, buffer, starts, lengths)
    step = BATCH_BYTES >> 13
    for first in range(0, len(left), step):
        part = left[first : first + step]
        read = store.read_many([ids[row].tobytes() for row in part], node=True)
        lengths = np.array([len(node) for node in read], np.int64)
        yield Nodes(part, memoryview(b"".join(read)), np.cumsum(lengths) - lengths, lengths)


def _ahead(filled: Iterator[Filled]) -> Iterator[Filled]:
    """One batch is read while the one before it is looked at."""
    with ThreadPoolExecutor(1, "read ahead") as thread:
        coming = thread.submit(next, filled, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, filled, None)
            yield batch


def _fill(store: ChunkReads, places: Places, rows: Any, buffers: Sequence[memoryview]) -> Iterator[Filled]:
    """Read spans of sorted places into the buffers by turns: (rows, where each begins in the buffer, the buffer)."""
    import numpy as np

    pack, offset = places.pack[rows], places.offset[rows]
    ends = offset + places.stored[rows]
    far = np.flatnonzero((pack[1:] != pack[:-1]) | (offset[1:] - ends[:-1] > GAP_BYTES)) + 1
    bounds = [0, *far.tolist(), len(rows)] if len(rows) else []
    filled, first, starts = 0, 0, offset.copy()
    turns = cycle(buffers)
    buffer = next(turns)
    for low, high in pairwise(bounds):
        while low < high:
            begin = int(offset[low])
            until = low + int(np.searchsorted(ends[low:high], begin + len(buffer) - filled, "right"))
            if until < high and filled:  # what does not fit begins a new batch
                yield rows[first:low], starts[first:low], buffer
                filled, first, buffer = 0, low, next(turns)
                continue
            end = int(ends[low:until].max())
            with suppress(Damaged, KeyError):  # else what stands there is found wrong, and read another way
                store.blobs.read_into(store.live[int(pack[low])].key, begin, buffer[filled : filled + end - begin])
            starts[low:until] += filled - begin
            filled, low = filled + end - begin, until
    if first < len(rows):
        yield rows[first:], starts[first:], buffer


def _wrong(store: ChunkReads, ids: Any, data: memoryview, starts: Any, lengths: Any) -> Any:
    import numpy as np

    node_id = store.sealing.node_id
    ends = (starts + lengths).tolist()
    digests = [node_id(data[start:end]) for start, end in zip(starts.tolist(), ends, strict=True)]
    return (as_words(digests) != ids).any(axis=1) if digests else np.zeros(0, bool)


@dataclass(frozen=True, slots=True)
class Layout:
    """How verified nodes of one level are laid out: their used slots as (nodes, fan_out) bits, and how many they are.

    `begins` is where each node's ids begin in the batch; the counts of an inner node follow its ids. `pieced` are the
    slots of leaves that hold the id of a piece list, as bits; None where there is none.
    """

    bits: Any
    used: Any
    begins: Any
    pieced: Any


def layout_of(nodes: Nodes, level: int, fan_out: int) -> Layout:
    """Take nodes apart. Damaged if one is not of this level and fan-out."""
    import numpy as np

    width = (fan_out + 7) // 8
    begin = NODE_HEAD.size + width
    if len(nodes.rows) and int(nodes.lengths.min()) < begin:
        raise Damaged("a node of a block map has the wrong length", where=WHERE)
    heads = np.frombuffer(nodes.data, np.uint8)[nodes.starts[:, None] + np.arange(begin)]
    flags = heads[:, 1].copy()
    heads[:, 1] = 0
    if (heads[:, : NODE_HEAD.size] != np.frombuffer(NODE_HEAD.pack(level, 0, fan_out), np.uint8)).any() or (
        flags > (0 if level else HAS_PIECED)
    ).any():
        raise Damaged("a node of a block map is not what its place says", where=WHERE)
    bits = np.unpackbits(heads[:, NODE_HEAD.size :], axis=1, bitorder="little")
    used = bits.sum(axis=1, dtype=np.int64)
    begins = begin + flags.astype(np.int64) * width
    entry_bytes = ID_BYTES + (COUNT_BYTES if level else 0)
    if bits[:, fan_out:].any() or (nodes.lengths != begins + used * entry_bytes).any():
        raise Damaged("a node of a block map has the wrong length", where=WHERE)
    pieced = None
    if flags.any():
        pieced = np.zeros_like(bits)
        rows = np.flatnonzero(flags)
        places = (nodes.starts[rows] + begin)[:, None] + np.arange(width)
        pieced[rows] = np.unpackbits(np.frombuffer(nodes.data, np.uint8)[places], axis=1, bitorder="little")
        if (pieced > bits).any() or not pieced[rows].any(axis=1).all():
            raise Damaged("a node of a block map has the wrong length", where=WHERE)
        pieced = pieced[:, :fan_out]
    return Layout(bits[:, :fan_out], used, nodes.starts + begins, pieced)


def children_of(nodes: Nodes, layout: Layout) -> Any:
    """The ids in all nodes, one node after the other."""
    import numpy as np

    ends = layout.begins + layout.used * ID_BYTES
    return np.frombuffer(_joined(nodes.data, layout.begins, ends), "<u8").reshape(-1, WORDS)


def counts_of(nodes: Nodes, layout: Layout) -> Any:
    """The mapped blocks beneath each child of inner nodes, in the order of `children_of`."""
    import numpy as np

    begins = layout.begins + layout.used * ID_BYTES
    return np.frombuffer(_joined(nodes.data, begins, begins + layout.used * COUNT_BYTES), "<u4").astype(np.int64)


def _joined(data: memoryview, starts: Any, ends: Any) -> bytes:
    return b"".join([data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
