"""A failed write takes its pack along; nothing that was in it counts as stored afterwards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from storage.errors import NoSpace, StorageError
from storage.format import PackKind
from storage.pack import OpenPack
from storage.sealing import Chunk
from tests.storage_kit import make, opened


def test_a_chunk_whose_write_ends_after_its_pack_was_lost_is_stored_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, bad = b"slow" * 1024, b"bad!" * 1024
    written, failed = threading.Event(), threading.Event()
    heard: list[BaseException] = []
    with opened(make(tmp_path / "r")) as repo:
        store = repo.store
        slow_id, bad_id = store.sealing.chunk_id(slow), store.sealing.chunk_id(bad)
        write = OpenPack.write

        def writing(pack: OpenPack, offset: int, first_slot: int, chunks: Sequence[Chunk]) -> None:
            write(pack, offset, first_slot, chunks)
            if chunks[0][0] == bad_id:
                raise NoSpace("the disk is full")
            if chunks[0][0] == slow_id:
                written.set()
                assert failed.wait(10)

        monkeypatch.setattr(OpenPack, "write", writing)
        session = store.session()

        def add_slow() -> None:
            try:
                store.add(session, PackKind.DATA, [(slow_id, slow)])
            except StorageError as error:
                heard.append(error)

        thread = threading.Thread(target=add_slow)
        thread.start()
        assert written.wait(10)
        with pytest.raises(NoSpace):
            store.add(session, PackKind.DATA, [(bad_id, bad)])
        failed.set()
        thread.join()
        assert [type(error) for error in heard] == [NoSpace]
        store.end(session)

        again = store.session()
        added = store.add(again, PackKind.DATA, [(slow_id, slow)])
        assert (added.new_bytes, added.known_bytes) == (len(slow), 0)
        store.flush(again)
        assert bytes(store.read(slow_id)) == slow
        store.end(again)
