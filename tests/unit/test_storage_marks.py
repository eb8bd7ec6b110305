"""What a mark's document may say: whoever can add one to a repository must not stop its owner with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.facts import PointId
from storage import marks
from storage.errors import Damaged, Refused
from storage.marks import MarkKind
from tests.storage_kit import NOW, back_up, image, make, opened


@pytest.mark.parametrize(
    "payload",
    [
        b'{"at":"2026-03-01T12:00:00","text":"","until":null}',
        b'{"at":"2026-03-01T12:00:00+00:00","text":"","until":"2026-03-01T12:00:00"}',
        b'{"at":"2026-03-01T12:00:00+00:00","text":[],"until":null}',
        b"[" * 60_000,
    ],
    ids=["time without a zone", "lock without a zone", "text that is none", "too deep"],
)
def test_a_mark_that_nothing_could_be_done_with_is_damage(payload: bytes) -> None:
    with pytest.raises(Damaged):
        marks.decode("marks/a/000001-lock-00000000", payload)


@pytest.mark.parametrize(
    "name",
    [
        "1-hold-0000000a",
        "4294967296-hold-0000000a",
        "00000\u0661-hold-0000000a",
        "+00001-hold-0000000a",
        "000001-hold-x",
    ],
)
def test_a_name_that_no_mark_can_have_is_damage(name: str) -> None:
    with pytest.raises(Damaged, match="not a mark"):
        marks.parse_key(f"marks/a/{name}")


def test_the_numbers_of_marks_end() -> None:
    last = marks.new_mark(PointId("a"), marks.MAX_SEQUENCE, MarkKind.HOLD, NOW)
    assert marks.parse_key(last.key) == ("a", marks.MAX_SEQUENCE, MarkKind.HOLD)
    with pytest.raises(Refused, match="no more"):
        marks.new_mark(PointId("a"), marks.MAX_SEQUENCE + 1, MarkKind.HOLD, NOW)


def test_a_reason_that_is_no_unicode_stops_neither_the_catalog_nor_who_has_one_already(tmp_path: Path) -> None:
    odd = b"\xff because".decode(errors="surrogateescape")
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, image(1, 4)).id
        repo.mark_hold(point, odd, NOW)
        repo.mark_hold(point, odd, NOW)
        assert repo.points()[0].holds == ("\\udcff because",)
        repo.release(point, odd, NOW)
        repo.mark_hold(point, odd, NOW)
    for path in (tmp_path / "r").glob("catalog.duckdb*"):
        path.unlink()
    with opened(tmp_path / "r") as repo:
        assert repo.points()[0].holds == ("\\udcff because",)
    written = b'{"at":"2026-03-01T12:00:00+00:00","text":"\\udcff","until":null}'
    assert marks.decode("marks/a/000001-hold-00000000", written).text == "\\udcff"
