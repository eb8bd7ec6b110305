"""No key ever meets a nonce twice: what GCM's promise hangs on, over a million sealings and a thousand lost packs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from storage import chunkstore, keyslots, sealing
from storage.blobs import BlobWriter, LocalBlobs
from storage.errors import StorageError, StoreFailed
from storage.filecalls import Buffer
from storage.format import PackKind
from storage.keys import add_slot
from storage.sealing import Aead
from tests.storage_kit import NOW, back_up, image, make, opened

LIVES = 25
PACKS = 42
"""In each life so many packs are sealed, and as many are lost to a failing store."""

CHUNKS = 1000
LOST_CHUNKS = 20
BATCH = 1000
SPREAD = 0x9E3779B97F4A7C15
"""Odd: makes ids that differ in their first bytes, as hashes do."""


class Watched:
    """Every (key, nonce) that anything was encrypted with. Stands where a key meets its cipher."""

    def __init__(self) -> None:
        self.nonces: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self.sealings = 0
        self._real = sealing.cipher

    def cipher(self, key: bytes) -> Aead:
        """The real cipher, watched."""
        return _WatchedAead(self, self.nonces[key], self._real(key))


class _WatchedAead:
    def __init__(self, watch: Watched, seen: set[bytes], real: Aead) -> None:
        self._watch = watch
        self._seen = seen
        self.decrypt = real.decrypt
        self._encrypt = real.encrypt

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None) -> bytes:
        assert nonce not in self._seen, "a nonce came again under its key"
        self._seen.add(nonce)
        self._watch.sealings += 1
        return self._encrypt(nonce, data, associated_data)


class Failing(LocalBlobs):
    """A store that takes a pack's header and, while `failing`, nothing more, or no name."""

    failing = ""

    def writer(self) -> BlobWriter:  # type: ignore[override]
        return _FailingWriter(self, super().writer())


class _FailingWriter:
    def __init__(self, store: Failing, inner: BlobWriter) -> None:
        self._store = store
        self._inner = inner
        self.read_at = inner.read_at
        self.abandon = inner.abandon

    def write_at(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._inner.write_at(offset, buffers)
        if offset and self._store.failing == "write":
            raise StoreFailed("made to fail")

    def publish(self, key: str) -> None:
        if self._store.failing == "publish":
            raise StoreFailed("made to fail")
        self._inner.publish(key)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watch = Watched()
    monkeypatch.setattr(sealing, "cipher", watch.cipher)
    monkeypatch.setattr(keyslots, "cipher", watch.cipher)
    monkeypatch.setattr(keyslots, "KDF_MEMORY_KIB", 64)
    return watch


def _fresh(count: list[int], chunks: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Batches of chunks that nobody has seen; their ids need not be hashes here."""
    for start in range(0, chunks, BATCH):
        numbers = range(count[0], count[0] + min(BATCH, chunks - start))
        count[0] = numbers.stop
        yield [((number * SPREAD % 2**64).to_bytes(32, "little"), b"tiny") for number in numbers]


def test_no_key_meets_a_nonce_twice_in_a_million_sealings_and_a_thousand_lost_packs(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunkstore, "PACK_BYTES", CHUNKS * 20 + 128)
    location, lost, count = make(tmp_path / "r", encrypted=True), 0, [1]
    numbers: list[int] = []
    for life in range(LIVES):
        store = Failing(location)
        with opened(location, blobs=store) as repo:
            for _ in range(PACKS):
                for store.failing, chunks in ((("write", "publish")[life % 2], LOST_CHUNKS), ("", CHUNKS)):
                    session = repo.store.session()
                    try:
                        for batch in _fresh(count, chunks):
                            repo.store.add(session, PackKind.TREE, batch)
                        repo.store.flush(session)
                    except StorageError:
                        assert store.failing
                        lost += 1
                    finally:
                        repo.store.end(session)
            numbers += repo.store.live
            dying = repo.store.session()  # and this pack dies with its process: its number comes again
            for batch in _fresh(count, LOST_CHUNKS):
                repo.store.add(dying, PackKind.TREE, batch)
    assert lost == LIVES * PACKS >= 1000
    assert watched.sealings > 1_000_000
    assert len(watched.nonces) > 2000


def test_no_small_object_and_no_key_slot_shares_a_key(tmp_path: Path, watched: Watched) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        point = back_up(repo, image(1, 40))
        for number in range(150):
            repo.mark_hold(point.id, f"reason {number}", NOW)
            repo.release(point.id, None, NOW)
        for number in range(keyslots.MAX_SLOTS - 1):
            add_slot(repo, f"passphrase {number}" if number % 2 else keyslots.new_key_file())
    assert watched.sealings > 300
