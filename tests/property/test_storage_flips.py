"""Every changed byte is found by verification and by each restore that reads it; nothing derived can do harm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.format import FLAG_ENCRYPTED
from tests.damage_kit import Outcome, Scene, build, in_memory, judge, places_of
from tests.storage_kit import NOW, back_up, files, make, opened

FLIPS = {"packs": (2, 8), "manifests": (2, 4), "config": (2, 8)}
"""(objects of a kind that are flipped, places in what they hold): more than 150 with the fields of the formats."""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "encrypted"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with in_memory() as folder:
        yield build(folder / "r", encrypted=request.param)


def _flip(scene: Scene, path: Path, place: int, bit: int) -> Outcome:
    with scene.trial() as location:
        data = bytearray((location / path).read_bytes())
        data[place] ^= 1 << bit
        (location / path).write_bytes(data)
        return judge(scene, location, to_file=bool(place % 2))


@pytest.mark.parametrize("kind", FLIPS)
def test_a_flipped_bit_is_found_by_verify_and_by_every_restore_that_reads_it(scene: Scene, kind: str) -> None:
    count, more = FLIPS[kind]
    chance = random.Random(f"{kind} {scene.encrypted}")
    objects = scene.objects(kind) if kind != "config" else [Path("config"), Path("config.copy")]
    if kind == "packs":  # of the full backup, one of each kind, and one of another VM
        objects = [p for p in objects if p.suffix == ".data"][:1] + [p for p in objects if p.suffix == ".tree"][:1]
    tried = 0
    for path in objects[:count]:
        data = (scene.location / path).read_bytes()
        for place in places_of(path, data, chance, more):
            said = f"{path} byte {place} of {len(data)}"
            outcome = _flip(scene, path, place, chance.randrange(8))
            assert outcome.found, said
            assert not outcome.wrong, said
            assert not outcome.refused, f"{said}: one object keeps nobody out"
            if kind in ("packs", "manifests"):
                assert outcome.failed == outcome.hit, said
                assert outcome.failed, said
                assert outcome.vms == {scene.names[point] for point in outcome.hit}, said
            else:
                assert not outcome.failed, said
            tried += 1
    assert tried >= {"packs": 70, "manifests": 20, "config": 20}[kind]


def test_flipped_bits_in_marks_are_each_found_and_keep_nobody_from_a_restore(scene: Scene) -> None:
    """One in each of several marks at once: they are looked at one by one, and told one by one."""
    chance = random.Random(f"marks {scene.encrypted}")
    flipped = {path: (scene.location / path).read_bytes() for path in scene.objects("marks")[:4]}
    rounds = list(zip(*(places_of(path, data, chance, 2) for path, data in flipped.items()), strict=True))
    for places in rounds:
        with scene.trial() as location:
            for (path, data), place in zip(flipped.items(), places, strict=True):
                changed = bytearray(data)
                changed[place] ^= 1 << chance.randrange(8)
                (location / path).write_bytes(changed)
            outcome = judge(scene, location, to_file=bool(places[0] % 2))
            said = ", ".join(f"{path} byte {place}" for path, place in zip(flipped, places, strict=True))
            assert len(outcome.objects) == len(flipped), said
            assert all(name.startswith("marks/") for name in outcome.objects), said
            assert not outcome.refused and not outcome.failed and not outcome.wrong, said
    assert len(rounds) * len(flipped) >= 30


def test_the_config_is_refused_when_both_copies_are_changed(scene: Scene) -> None:
    for place in (0, 8, 10, 16, 40, 100, -1):
        with scene.trial() as location:
            for name in ("config", "config.copy"):
                data = bytearray((location / name).read_bytes())
                data[place] ^= 4
                (location / name).write_bytes(data)
            assert judge(scene, location, to_file=False).refused, place


DERIVED = ("index", "catalog.duckdb", "distrusted", "expiries", "verified", "owner.json", "reserve", "lock")


def test_a_flipped_bit_in_what_is_derived_harms_nothing(scene: Scene) -> None:
    """Whether it is noticed is another matter: what matters is that nothing of the truth is lost or slandered."""
    chance = random.Random(f"derived {scene.encrypted}")
    paths = [p for p in scene.objects(".") if p.parts[0] in DERIVED and (scene.location / p).stat().st_size]
    assert {path.parts[0] for path in paths} >= {"index", "catalog.duckdb", "distrusted", "expiries", "verified"}
    alone = [[path] for path in paths if path.parts[0] in ("index", "catalog.duckdb")]
    for group in [*alone, [path for path in paths if [path] not in alone]] * 4:  # these have nothing to do with others
        with scene.trial() as location:
            said = ""
            for path in group:
                data = bytearray((location / path).read_bytes())
                place = chance.randrange(len(data))
                data[place] ^= 1 << chance.randrange(8)
                (location / path).write_bytes(data)
                said += f"{path} byte {place} of {len(data)} "
            outcome = judge(scene, location, to_file=bool(len(said) % 2))
            assert not outcome.refused, said
            assert not outcome.failed, said
            assert not outcome.wrong, said
            assert not outcome.hit, said
            assert outcome.objects <= {"catalog.duckdb"}, said


def test_what_is_derived_may_all_be_gone(scene: Scene) -> None:
    with scene.trial() as location:
        for path in scene.objects("."):
            if path.parts[0] in DERIVED:
                (location / path).unlink()
        outcome = judge(scene, location, to_file=True)
        assert not outcome.found
        assert not outcome.failed


def test_an_encrypted_repository_shows_none_of_its_content(tmp_path: Path) -> None:
    location = tmp_path / "r"
    disk = bytearray(b"a secret that the guest keeps. " * 4000)
    disk += bytes(-len(disk) % 512)
    with opened(make(location, encrypted=True)) as repo:
        plain_id = repo.sealing.chunk_id(disk[:4096])
        point = back_up(repo, disk, name="the secret VM")
        repo.mark_hold(point.id, "secret reason", NOW)
    from blake3 import blake3

    assert plain_id != blake3(disk[:4096]).digest()
    for path in files(location, "packs", "manifests", "marks"):
        data = path.read_bytes()
        for word in (b"secret", plain_id, b"Hard disk"):
            assert word not in data
        assert data[11] & FLAG_ENCRYPTED
