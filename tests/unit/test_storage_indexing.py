"""What is sealed enters the lookup index, whoever enters packs beside it and whatever became of a pack."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from storage.format import PackName
from storage.index import Index
from storage.pagetable import PageTable
from storage.repository import Repository
from storage.runs import Columns, Run
from tests.storage_kit import back_up, image, make, opened


def _sealed(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> list[PackName]:
    """Packs that are sealed and not indexed yet."""
    with monkeypatch.context() as patch:
        patch.setattr(repo.store, "index_sealed", lambda: None)
        before = set(repo.store.live.values())
        back_up(repo, image(1, 40))
    return sorted(set(repo.store.live.values()) - before)


def test_packs_that_two_threads_enter_at_once_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, write = threading.Barrier(2), Index._write

    def writing(index: Index, packs: Sequence[PackName], count: int, parts: Iterable[Columns]) -> Run:
        run = write(index, packs, count, parts)
        with suppress(threading.BrokenBarrierError):
            together.wait(0.3)
        return run

    location = make(tmp_path / "r")
    with opened(location) as repo:
        names = _sealed(repo, monkeypatch)
        repo.store._unindexed.remove(names[0])  # as if another process had sealed it, which attach finds
        monkeypatch.setattr(Index, "_write", writing)
        threads = [threading.Thread(target=act) for act in (repo.store.index_sealed, repo.store.attach)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(names) <= repo.store._index.packs()


def test_a_pack_that_is_damaged_before_it_is_indexed_hinders_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, other = make(tmp_path / "r"), image(2, 40)
    monkeypatch.setattr(PageTable, "find", lambda table, key: None)
    with opened(location) as repo:
        names = _sealed(repo, monkeypatch)
        victim = location / names[0].key
        victim.chmod(0o600)
        victim.write_bytes(victim.read_bytes()[:-9])
        repo.store.footers.forget(names[0])
        point = back_up(repo, other, vm="vm-2")
        assert point.id in repo.point_ids()
        assert set(names[1:]) <= repo.store._index.packs()
        assert names[0] not in repo.store._index.packs()
