from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from storage import index as indexes
from storage.format import PackKind, PackName
from storage.index import Index, prefix_of

REPOSITORY = b"r" * 16


def _names(*numbers: int) -> list[PackName]:
    return [PackName(number, bytes([number % 256]) * 16, PackKind.DATA) for number in numbers]


def _chunks(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(32) for _ in range(count)]


def test_every_chunk_is_found_and_no_other(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", REPOSITORY)
    chunks = _chunks(1, 5000)
    for part in range(5):
        mine = chunks[part * 1000 : (part + 1) * 1000]
        index.add(_names(part), [(prefix_of(chunk), part, slot) for slot, chunk in enumerate(mine)])
    assert [index.find(chunk) for chunk in chunks] == [[(n // 1000, n % 1000)] for n in range(5000)]
    assert not any(index.find(chunk) for chunk in _chunks(2, 5000))
    index.close()
    again = Index(tmp_path / "index", REPOSITORY)
    assert again.find(chunks[4321]) == [(4, 321)]
    assert again.packs() == set(_names(0, 1, 2, 3, 4))


def test_prefixes_that_are_not_spread_evenly_are_found_too(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", REPOSITORY)
    keys = sorted({*range(3000), *(2**64 - 1 - n for n in range(500)), 2**63})
    index.add(_names(1), [(key, 1, slot) for slot, key in enumerate(keys)])
    for slot, key in enumerate(keys):
        assert index.find(key.to_bytes(8, "big") + bytes(24)) == [(1, slot)]
    assert index.find((3001).to_bytes(8, "big") + bytes(24)) == []


def test_chunks_of_one_prefix_are_all_candidates(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", REPOSITORY)
    index.add(_names(1), [(77, 1, 5), (77, 1, 6), (78, 1, 7)])
    index.add(_names(2), [(77, 2, 0)])
    assert index.find((77).to_bytes(8, "big") + bytes(24)) == [(1, 5), (1, 6), (2, 0)]


@pytest.mark.parametrize("arrays", [True, False])
def test_merging_keeps_what_lives_and_leaves_out_what_is_gone(
    tmp_path: Path, arrays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not arrays:
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    else:
        pass
    index = Index(tmp_path / "index", REPOSITORY)
    chunks = _chunks(3, 400)
    for n in range(40):
        index.add(_names(n), [(prefix_of(c), n, s) for s, c in enumerate(chunks[n * 10 : n * 10 + 10])])
        index.compact(set(range(40)))
        assert len(list((tmp_path / "index").iterdir())) <= indexes.MAX_RUNS + 1
    assert all(index.find(chunk) == [(n // 10, n % 10)] for n, chunk in enumerate(chunks))
    index.compact(set(range(20)), everything=True)
    assert len(list((tmp_path / "index").iterdir())) == 1
    assert index.packs() == set(_names(*range(20)))
    assert [bool(index.find(chunk)) for chunk in chunks] == [True] * 200 + [False] * 200
    index.close()


def test_runs_that_are_cut_foreign_or_left_over_are_forgotten(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", REPOSITORY)
    index.add(_names(1), [(1, 1, 1)])
    index.close()
    (run,) = (tmp_path / "index").iterdir()
    data = run.read_bytes()
    (tmp_path / "index" / "x.part").write_bytes(b"left over")
    for broken in (data[:-1], data[:10], b"", b"X" + data[1:]):
        run.write_bytes(broken)
        assert Index(tmp_path / "index", REPOSITORY).packs() == set()
        assert not list((tmp_path / "index").iterdir())
    run.write_bytes(data)
    assert Index(tmp_path / "index", b"other repository").packs() == set()


def test_a_run_that_was_changed_is_found_out_when_asked(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", REPOSITORY)
    index.add(_names(1), [(1, 1, 1)])
    index.add(_names(2), [(2, 2, 2)])
    assert index.drop_unsound() == 0
    index.close()
    run = sorted((tmp_path / "index").iterdir())[0]
    data = bytearray(run.read_bytes())
    data[-1] ^= 1
    run.write_bytes(data)
    index = Index(tmp_path / "index", REPOSITORY)
    assert index.drop_unsound() == 1
    assert len(index.packs()) == 1
