from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from policies.facts import PointId
from storage.errors import StorageError
from storage.format import FLAG_ENCRYPTED
from storage.verify import verify
from tests.storage_kit import NOW, back_up, changed, files, image, make, opened, read_back, restored

FLIPS_PER_OBJECT = 5


def _repository(location: Path, encrypted: bool) -> tuple[PointId, bytearray]:
    disk = image(1, 70, used=0.8, tail=77)
    with opened(make(location, encrypted=encrypted)) as repo:
        one = back_up(repo, disk)
        disk = changed(disk, 2, [5])
        two = back_up(repo, disk, base=one.id, blocks=[5])
        repo.mark_hold(two.id, "court", NOW)
        repo.expire(one.id, "old", NOW)
    return two.id, disk


def _detected_by_verify(location: Path) -> bool:
    try:
        with opened(location) as repo:
            return not verify(repo, now=NOW).sound
    except StorageError:
        return True


def _write(path: Path, data: bytes) -> None:
    """Also to the config's copy, which alone would put the other right."""
    path.write_bytes(data)
    if path.name == "config":
        path.with_name("config.copy").write_bytes(data)


def _restored_wrong(location: Path, point: PointId, disk: bytearray, target: Path | None) -> bool:
    """Whether a restore gives wrong bytes without an error."""
    try:
        with opened(location) as repo:
            way_out = read_back(repo, point) if target is None else restored(repo, point, target)
            return way_out != disk
    except StorageError:
        return False


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("kind", ["config", "packs", "manifests", "marks"])
def test_a_changed_byte_anywhere_is_found_and_never_restored(tmp_path: Path, kind: str, encrypted: bool) -> None:
    location = tmp_path / "r"
    point, disk = _repository(location, encrypted)
    shutil.rmtree(location / "index")  # so that nothing derived vouches for the packs
    chance = random.Random(f"{kind}{encrypted}")
    objects = [location / "config"] if kind == "config" else files(location, kind)
    assert objects
    for path in objects:
        sound = path.read_bytes()
        places = {0, 8, 10, 11, len(sound) - 1, *chance.sample(range(len(sound)), FLIPS_PER_OBJECT)}
        for place in sorted(places):
            broken = bytearray(sound)
            broken[place] ^= chance.randrange(1, 256)
            _write(path, broken)
            assert _detected_by_verify(location), f"{path.name} byte {place} of {len(sound)}"
            target = tmp_path / "out" if place % 2 else None
            assert not _restored_wrong(location, point, disk, target), f"{path.name} byte {place}"
        _write(path, sound)
        for cut in (0, len(sound) // 2, len(sound) - 1):
            _write(path, sound[:cut])
            assert _detected_by_verify(location), f"{path.name} cut to {cut}"
        _write(path, sound + b"\0")
        assert _detected_by_verify(location), f"{path.name} with a byte more"
        _write(path, sound)
    with opened(location) as repo:
        assert verify(repo, now=NOW).sound
        assert read_back(repo, point) == disk


@pytest.mark.parametrize("encrypted", [False, True])
def test_objects_that_change_places_are_found(tmp_path: Path, encrypted: bool) -> None:
    location = tmp_path / "r"
    with opened(make(location, encrypted=encrypted)) as repo:
        disk = image(3, 40)
        points = [back_up(repo, changed(disk, seed, [3]), vm=f"vm-{seed}").id for seed in range(2)]
        for point in points:
            repo.mark_hold(point, f"reason {point}", NOW)
    for kind in ("packs", "manifests", "marks"):
        one, two = files(location, kind)[:2]
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
        assert _detected_by_verify(location), kind
        one.write_bytes(first)
        two.write_bytes(second)
    assert not _detected_by_verify(location)


def test_objects_of_another_repository_are_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for location in (ours, theirs):
        with opened(make(location)) as repo:
            back_up(repo, image(4, 20))
    for kind in ("packs", "manifests"):
        foreign = files(theirs, kind)[0]
        place = ours / foreign.relative_to(theirs)
        place.parent.mkdir(exist_ok=True)
        shutil.copy(foreign, place)
        assert _detected_by_verify(ours), kind
        place.unlink()
    assert not _detected_by_verify(ours)


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
