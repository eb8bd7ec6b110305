"""Repositories that earlier versions left are read for ever, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from policies.facts import PointId
from storage import config as configs
from storage import format
from storage.errors import Unsupported
from storage.rebuild import rebuild_catalog
from storage.repository import DiskHead, Repository, open_repository
from storage.restore import restore_disk
from storage.verify import verify
from tests.format.golden_maker import BEGIN, BLOCK, GOLDEN, Disk, letters, take, told
from tests.storage_kit import files

REPOSITORIES = sorted(path for path in GOLDEN.glob("*/*") if path.is_dir())
PIECED = [path for path in REPOSITORIES if path.name == "pieced"]
MAX_BYTES = 200 << 10


def expected_of(golden: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(golden.with_suffix(".json").read_text(encoding="utf-8"))
    return facts


def copied(golden: Path, target: Path) -> Path:
    """A copy that may be opened; git keeps no empty folders, and no derived file was kept."""
    shutil.copytree(golden, target)
    for name in ("spool", "index", "packs", "manifests", "marks"):
        (target / name).mkdir(exist_ok=True)
    return target


def opened(location: Path, opener: str | None) -> Repository:
    return open_repository(location, now=BEGIN, passphrase=(lambda: opener) if opener else None, owner="test")


def sha256_of_restored(repo: Repository, point: PointId, name: str, target: Path) -> str:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        restore_disk(repo.read_disk(point, name), fd)
    finally:
        os.close(fd)
    return sha256(target.read_bytes()).hexdigest()


def test_today_s_format_has_its_golden_repositories() -> None:
    assert {path.name for path in REPOSITORIES if path.parent.name == str(format.VERSION)} == {
        "plain",
        "encrypted",
        "pieced",
    }
    for path in REPOSITORIES:
        assert sum(one.stat().st_size for one in files(path, ".")) < MAX_BYTES


@pytest.mark.parametrize("golden", REPOSITORIES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_everything_in_a_golden_repository_is_as_it_was(tmp_path: Path, golden: Path) -> None:
    facts = expected_of(golden)
    for number, opener in enumerate(facts["openers"] or [None]):
        with opened(copied(golden, tmp_path / f"r{number}"), opener) as repo:
            assert repo.repository_id == facts["repository"]
            assert {point.id for point in repo.points()} == repo.point_ids() == set(facts["points"])
            assert sorted(repo.blobs.list("condemned/")) == facts["condemned"]
            vms = {point.id: point.vm for point in repo.points()}
            for point, fact in facts["points"].items():
                detail = repo.detail(point)
                assert (vms[point], detail.head.vm_name) == (fact["vm"], fact["name"])
                assert detail.head.taken_at.isoformat() == fact["taken_at"]
                assert repo.configuration(point).decode() == fact["configuration"]
                assert fact["marks"].items() <= told(repo, point).items()
                assert {disk.head.name for disk in detail.disks} == set(fact["disks"])
                for name, disk in fact["disks"].items():
                    assert repo.read_disk(point, name).capacity_bytes == disk["bytes"]
                    assert sha256_of_restored(repo, point, name, tmp_path / "disk") == disk["sha256"]
            rows = repo.catalog.rows()
            rebuild_catalog(repo)
            assert repo.catalog.rows() == rows
            assert verify(repo, now=BEGIN).sound


@pytest.mark.parametrize(
    "golden", [path for path in REPOSITORIES if path not in PIECED], ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_an_increment_on_top_of_what_an_earlier_version_wrote(tmp_path: Path, golden: Path) -> None:
    facts = expected_of(golden)
    point = next(one for one, fact in facts["points"].items() if "empty" in fact["disks"])
    with opened(copied(golden, tmp_path / "r"), (facts["openers"] or [None])[0]) as repo:
        before = bytearray(repo.read_disk(point, "ünïcode").capacity_bytes)
        repo.read_disk(point, "ünïcode").read_into(0, memoryview(before))
        after = bytes(before[: 9 * BLOCK] + letters(99, 1) + before[10 * BLOCK :])
        new = take(repo, replace(repo.detail(point).head, taken_at=BEGIN), [Disk("ünïcode", after, [9])], point)
        for one, content in ((point, before), (new, after)):
            assert sha256_of_restored(repo, one, "ünïcode", tmp_path / "disk") == sha256(content).hexdigest()


@pytest.mark.parametrize("golden", PIECED, ids=lambda path: path.parent.name)
def test_an_increment_on_top_of_pieced_blocks(tmp_path: Path, golden: Path) -> None:
    point = max(expected_of(golden)["points"])
    with opened(copied(golden, tmp_path / "r"), None) as repo:
        disk = repo.read_disk(point, "Hard disk 1")
        before = bytearray(disk.capacity_bytes)
        disk.read_into(0, memoryview(before))
        assert any(isinstance(id_, format.Pieced) for _, children in disk.leaves() for id_ in children.values())
        after = before[: 2 * repo.block_bytes] + letters(99, 16) + before[3 * repo.block_bytes :]
        with repo.new_point(replace(repo.detail(point).head, taken_at=BEGIN)) as pending:
            ingest = pending.disk(DiskHead("Hard disk 1", len(after)), base=(point, "Hard disk 1"))
            ingest.write(2 * repo.block_bytes, memoryview(after)[2 * repo.block_bytes : 3 * repo.block_bytes])
            ingest.finish()
            new = pending.commit().id
        for one, content in ((point, before), (new, after)):
            assert sha256_of_restored(repo, one, "Hard disk 1", tmp_path / "disk") == sha256(content).hexdigest()


def _make_newer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:10] = (format.VERSION + 1).to_bytes(2, "little")
    if data.startswith(format.PACK_MAGIC):
        data[112:128] = blake3(data[:112]).digest(16)
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["config", "packs", "manifests"])
@pytest.mark.parametrize("name", ["plain", "encrypted"])
def test_what_a_newer_format_wrote_is_refused_in_a_clear_sentence(tmp_path: Path, name: str, part: str) -> None:
    golden = GOLDEN / str(format.VERSION) / name
    location = copied(golden, tmp_path / "r")
    for path in [location / "config", location / "config.copy"] if part == "config" else files(location, part):
        _make_newer(path)
    with (
        pytest.raises(Unsupported, match=rf"format {format.VERSION + 1}.*use a newer Backstay"),
        opened(location, (expected_of(golden)["openers"] or [None])[0]) as repo,
    ):
        for point in repo.point_ids():
            repo.detail(point)


@pytest.mark.parametrize("name", ["plain", "encrypted"])
def test_a_hold_of_a_newer_format_holds_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    golden = GOLDEN / str(format.VERSION) / name
    location, facts = copied(golden, tmp_path / "r"), expected_of(golden)
    for path in files(location, "marks"):
        _make_newer(path)
    with opened(location, (facts["openers"] or [None])[0]) as repo:
        held = {point for point, fact in facts["points"].items() if fact["marks"]["holds"]}
        assert held and held <= {point for point in repo.point_ids() if repo.mark_state(point).holds}
        assert not verify(repo, now=BEGIN).sound
    assert f"format {format.VERSION + 1}" in caplog.text


@pytest.mark.parametrize("name", ["plain", "encrypted"])
def test_a_feature_of_the_future_is_refused_and_an_optional_one_is_not(tmp_path: Path, name: str) -> None:
    golden = GOLDEN / str(format.VERSION) / name
    location, opener = copied(golden, tmp_path / "r"), (expected_of(golden)["openers"] or [None])[0]
    with opened(location, opener) as repo:
        configs.change(repo.blobs, repo.sealing, lambda config: replace(config, optional_features=("glitter",)))
    with opened(location, opener) as repo:
        assert set(expected_of(golden)["points"]) == repo.point_ids()
        configs.change(repo.blobs, repo.sealing, lambda config: replace(config, features=("striped-packs",)))
    with pytest.raises(Unsupported, match="striped-packs"):
        opened(location, opener)
