"""What a mark's document may say: whoever can add one to a repository must not stop its owner with it."""

from __future__ import annotations

import pytest

from storage import marks
from storage.errors import Damaged


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
