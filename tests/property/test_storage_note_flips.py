"""Changed bytes in what writers of one store tell each other: found or harmless, and never a lost restore point.

These are the notes of packs that are being freed, announced manifests, and claimed pack numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import manifest as manifests
from storage.commitment import COMMITTING
from storage.condemned import FREEING
from storage.errors import StorageError
from storage.format import ObjectKind
from storage.numbering import PREFIX as NUMBERS
from storage.reclaim import carry_out, plan_reclaim
from storage.verify import verify
from tests.crash.scenes import AGELESS, EAGER, begin_to_free
from tests.crash.stages import BUCKET, WEB, Stage, clear, disks, fresh_copy, open_at, set_up
from tests.damage_kit import in_memory, places_of
from tests.storage_kit import back_up, later, read_back

MUCH_LATER = later(days=3650)


@pytest.fixture(scope="module", params=["shared", "shared-encrypted"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Another process began to free every pack; a further one died when it had announced its manifest."""
    with in_memory() as folder:
        stage = set_up(folder / "stage", request.param)
        begin_to_free(stage.location)
        with open_at(stage.location, later(hours=4)) as repo:
            key = COMMITTING + "0a" * 16
            payload = manifests.encode(repo.manifest(min(stage.kept)))
            repo.blobs.put(key, repo.sealing.close(ObjectKind.COMMITTING, key, payload))
        yield stage


def _nothing_is_lost(location: Path, stage: Stage) -> bool:
    """Fail if a restore point is; whether anything was found."""
    found = False
    with open_at(location, MUCH_LATER) as repo:
        found |= not verify(repo, now=MUCH_LATER).sound
        try:
            carry_out(repo, plan_reclaim(repo, MUCH_LATER, AGELESS, EAGER), MUCH_LATER)
        except StorageError:
            found = True
        for point, disk in {**stage.kept, **stage.going}.items():
            assert read_back(repo, point) == disk
        made = back_up(repo, disks()["next"], vm=WEB, at=MUCH_LATER)
        assert read_back(repo, made.id) == disks()["next"]
    with open_at(location, MUCH_LATER) as repo:
        assert {*stage.kept, *stage.going, made.id} <= repo.point_ids()
    return found


@pytest.mark.parametrize(
    ("prefix", "is_found"),
    [(FREEING, True), (COMMITTING, True), (NUMBERS, False)],
    ids=["freeing", "committing", "numbers"],
)
def test_a_flipped_bit_in_a_note_is_found_or_harmless(stage: Stage, prefix: str, is_found: bool) -> None:
    chance = random.Random(f"{prefix} {stage.location}")
    (path, *_) = sorted((stage.location / BUCKET / prefix).iterdir())
    relative = path.relative_to(stage.location / BUCKET)
    data = path.read_bytes()
    places = [0, len(data) // 2, len(data) - 1] if prefix == NUMBERS else places_of(relative, data, chance, 3)
    for place in places:
        location = fresh_copy(stage, stage.location.with_name("trial"))
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        (location / BUCKET / relative).write_bytes(flipped)
        assert _nothing_is_lost(location, stage) == is_found, f"{relative} byte {place} of {len(data)}"
        clear(location)


@pytest.mark.parametrize("prefix", [FREEING, COMMITTING, NUMBERS])
@pytest.mark.parametrize("left", [0, 20, None], ids=["empty", "cut", "gone"])
def test_a_note_that_is_cut_or_gone_loses_no_restore_point(stage: Stage, prefix: str, left: int | None) -> None:
    location = fresh_copy(stage, stage.location.with_name("trial"))
    for path in (location / BUCKET / prefix).iterdir():
        path.unlink() if left is None else path.write_bytes(path.read_bytes()[:left])
    _nothing_is_lost(location, stage)
    clear(location)
