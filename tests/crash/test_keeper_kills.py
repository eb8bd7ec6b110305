"""SIGKILL of an append-only repository's keeper, or of its writer: nothing that was told is lost, and both go on."""

from __future__ import annotations

import pytest

from tests.crash.keeping import KEEPER_DIES, WRITER_DIES, kept
from tests.crash.stages import Stage


@pytest.mark.parametrize("point", KEEPER_DIES)
def test_a_keeper_killed_at_any_step_harms_no_restore_point(stages: dict[str, Stage], point: str) -> None:
    with kept(stages["plain"]) as place:
        with place.keeper(point):
            place.write()
        with place.keeper():
            place.look()


@pytest.mark.parametrize("point", WRITER_DIES)
def test_a_writer_killed_at_any_step_leaves_its_keeper_to_serve_the_next(stages: dict[str, Stage], point: str) -> None:
    with kept(stages["plain"]) as place, place.keeper():
        place.write(point)
        place.look()
