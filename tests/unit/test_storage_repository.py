from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from policies.facts import PointId, VmId
from storage.errors import AlreadyExists, Damaged, Locked, NoRepository, NoSuchPoint, Refused, StorageError
from storage.repository import DiskHead, PointHead, create
from tests.storage_kit import (
    BLOCK,
    DISK,
    NOW,
    back_up,
    changed,
    image,
    later,
    make,
    opened,
    read_back,
    restored,
)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_disk_comes_back_byte_for_byte_by_both_ways_out(tmp_path: Path, encrypted: bool) -> None:
    disk = image(1, 300, tail=512)
    with opened(make(tmp_path / "r", encrypted=encrypted)) as repo:
        point = back_up(repo, disk)
    with opened(tmp_path / "r") as repo:
        assert read_back(repo, point.id) == disk
        assert restored(repo, point.id, tmp_path / "out") == disk


def test_a_part_of_a_disk_can_be_read_from_any_offset(tmp_path: Path) -> None:
    disk = image(2, 200, tail=100)
    with opened(make(tmp_path / "r")) as repo:
        opened_disk = repo.read_disk(back_up(repo, disk).id, DISK)
        for start, length in ((0, 1), (1, BLOCK), (BLOCK - 1, 2), (12345, 300_000), (len(disk) - 7, 7), (5, 0)):
            part = bytearray(b"x" * length)
            opened_disk.read_into(start, memoryview(part))
            assert part == disk[start : start + length]
        with pytest.raises(ValueError, match="beyond"):
            opened_disk.read_into(len(disk) - 1, memoryview(bytearray(2)))


def test_an_incremental_stores_only_what_changed_and_every_point_stays_complete(tmp_path: Path) -> None:
    first = image(3, 2000)
    second = changed(first, 4, [7, 8, 1999])
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, first)
        two = back_up(repo, second, base=one.id, blocks=[7, 8, 1999], at=later(hours=1))
        assert two.read_bytes == 3 * BLOCK
        assert repo.detail(two.id).disks[0].new_bytes == 3 * BLOCK
        repo.expire(one.id, "old", NOW)
        assert read_back(repo, two.id) == second
        with pytest.raises(NoSuchPoint):
            repo.detail(one.id)


def test_a_whole_read_of_an_unchanged_disk_stores_nothing_but_a_manifest(tmp_path: Path) -> None:
    disk = image(5, 1000)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        two = back_up(repo, disk, base=one.id)
        clone = back_up(repo, disk, vm="vm-2", name="clone")
        for point in (two, clone):
            assert point.stored_bytes == 0
            assert repo.detail(point.id).disks[0].root == repo.detail(one.id).disks[0].root
        assert repo.detail(clone.id).disks[0].dedup_bytes == repo.detail(one.id).disks[0].new_bytes


def test_metadata_of_a_clustered_change_is_at_most_two_percent_of_the_new_data(tmp_path: Path) -> None:
    disk = image(6, 800, used=1.0, block_bytes=65536)
    blocks = range(300, 420)
    with opened(make(tmp_path / "r", block_bytes=65536)) as repo:
        one = back_up(repo, disk)
        before = sum(path.stat().st_size for path in (tmp_path / "r" / "manifests").iterdir())
        two = back_up(repo, changed(disk, 7, blocks, block_bytes=65536), base=one.id, blocks=blocks)
        manifest = sum(path.stat().st_size for path in (tmp_path / "r" / "manifests").iterdir()) - before
        packs = repo.catalog.query("SELECT kind, bytes, chunks FROM packs ORDER BY number DESC LIMIT 2")
        tree = next(size for kind, size, _ in packs if kind == "tree")
        footer = next(chunks for kind, _, chunks in packs if kind == "data") * 48 + 192
        assert tree + footer + manifest <= 0.02 * repo.detail(two.id).disks[0].new_bytes


def test_zeros_are_not_stored_and_zeroing_removes_what_the_base_had(tmp_path: Path) -> None:
    disk = image(8, 5000, used=0.9)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        empty = bytearray(disk)
        empty[10 * BLOCK : 4900 * BLOCK] = bytes(4890 * BLOCK)
        with repo.new_point(PointHead(VmId("vm-1"), "web", NOW)) as pending:
            ingest = pending.disk(DiskHead(DISK, len(disk)), base=(one.id, DISK))
            ingest.zero(10 * BLOCK, 4890 * BLOCK)
            ingest.write(100 * BLOCK, memoryview(disk)[100 * BLOCK : 101 * BLOCK])
            stats = ingest.finish()
            two = pending.commit()
        empty[100 * BLOCK : 101 * BLOCK] = disk[100 * BLOCK : 101 * BLOCK]
        assert read_back(repo, two.id) == empty
        assert stats.new_bytes == 0
        assert sum(length for _, length in repo.read_disk(two.id, DISK).extents()) == stats.mapped_bytes
        blank = back_up(repo, bytearray(50 * BLOCK), vm="vm-3")
        assert repo.read_disk(blank.id, DISK).extents() == []
        assert read_back(repo, blank.id) == bytes(50 * BLOCK)


@pytest.mark.parametrize("size", [70 * BLOCK, 4500 * BLOCK, 63 * BLOCK + 512, 64 * BLOCK, 300 * BLOCK - 512])
def test_a_disk_that_grows_or_shrinks_keeps_the_rest_and_never_shows_what_was_cut_off(
    tmp_path: Path, size: int
) -> None:
    disk = image(9, 300, used=1.0)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        resized = bytearray(disk[:size].ljust(size, b"\0"))
        two = back_up(repo, resized, base=one.id, blocks=[])
        assert read_back(repo, two.id) == resized
        again = bytearray(bytes(resized)[: 300 * BLOCK].ljust(300 * BLOCK, b"\0"))
        three = back_up(repo, again, base=two.id, blocks=[])
        assert read_back(repo, three.id) == again
        assert restored(repo, three.id, tmp_path / "out") == again


def test_many_threads_may_write_one_disk(tmp_path: Path) -> None:
    disk = image(10, 4000)
    with opened(make(tmp_path / "r")) as repo, repo.new_point(PointHead(VmId("v"), "v", NOW)) as pending:
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
        step = 100 * BLOCK

        def write(first: int) -> None:
            for start in range(first * step, len(disk), 4 * step):
                ingest.write(start, memoryview(disk)[start : start + step])

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = ingest.finish()
        point = pending.commit()
        assert stats.read_bytes == len(disk)
        assert read_back(repo, point.id) == disk


def test_two_restore_points_under_way_share_chunks_and_one_may_be_abandoned(tmp_path: Path) -> None:
    disk = image(11, 300)
    with opened(make(tmp_path / "r")) as repo:
        with (
            repo.new_point(PointHead(VmId("a"), "a", NOW)) as lost,
            repo.new_point(PointHead(VmId("b"), "b", NOW)) as kept,
        ):
            first = lost.disk(DiskHead(DISK, len(disk)), base=None)
            second = kept.disk(DiskHead(DISK, len(disk)), base=None)
            first.write(0, memoryview(disk))
            second.write(0, memoryview(disk))
            lost.abandon()
            assert second.finish().new_bytes == 0
            point = kept.commit()
        assert read_back(repo, point.id) == disk
        assert [p.vm for p in repo.points()] == ["b"]


def test_what_belongs_to_a_point_comes_back_with_it(tmp_path: Path) -> None:
    head = PointHead(
        VmId("v"), "web", NOW, {"moref": "vm-7"}, attributes={"policy": "gold", "rule": "rpo", "reason": "due"}
    )
    disk = DiskHead(DISK, BLOCK, "u", "52 1/2", 2000, {"transport": "nbd"})
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        with repo.new_point(head) as pending:
            pending.disk(disk, base=None).finish()
            pending.unprotected("Hard disk 2", "independent disk")
            pending.configuration(b"<configuration/>" * 1000)
            assert pending.sealed_packs == 0
            point = pending.commit()
        detail = repo.detail(point.id)
        assert (detail.head, detail.disks[0].head) == (head, disk)
        assert detail.unprotected == (("Hard disk 2", "independent disk"),)
        assert repo.configuration(point.id) == b"<configuration/>" * 1000
        (listed,) = repo.points(VmId("v"))
        assert listed == point
        assert (listed.policy, listed.rule, listed.reason) == ("gold", "rpo", "due")


def test_points_are_found_by_id_beginning_or_latest(tmp_path: Path) -> None:
    disk = image(12, 10)
    with opened(make(tmp_path / "r")) as repo:
        old = back_up(repo, disk)
        new = back_up(repo, disk, at=later(hours=2))
        back_up(repo, disk, vm="vm-2", name="db", at=later(hours=3))
        assert repo.find(old.id) == repo.find(old.id[:-2]) == old.id
        assert repo.find("web@latest") == repo.find("vm-1@latest") == new.id
        for unknown in ("", "2026", "nothing", "web2@latest", "@latest", "x@oldest"):
            with pytest.raises(NoSuchPoint):
                repo.find(unknown)
        back_up(repo, disk, vm="vm-9", name="web", at=later(hours=4))
        with pytest.raises(NoSuchPoint, match="several VMs"):
            repo.find("web@latest")
        with pytest.raises(NoSuchPoint, match="no disk"):
            repo.read_disk(old.id, "Hard disk 9")


def test_the_base_for_an_incremental_is_the_newest_complete_undamaged_point(tmp_path: Path) -> None:
    disk = image(13, 10)
    with opened(make(tmp_path / "r")) as repo:
        assert repo.latest(VmId("vm-1")) is None
        good = back_up(repo, disk)
        with repo.new_point(PointHead(VmId("vm-1"), "web", later(hours=1), attributes={"complete": "no"})) as pending:
            pending.commit()
        found = repo.latest(VmId("vm-1"))
        assert found is not None
        assert found.id == good.id


def test_a_held_or_locked_point_does_not_expire(tmp_path: Path) -> None:
    disk = image(14, 10)
    with opened(make(tmp_path / "r")) as repo:
        point = back_up(repo, disk)
        repo.mark_hold(point.id, "court", NOW)
        repo.mark_hold(point.id, "court", NOW)
        repo.mark_hold(point.id, "audit", NOW)
        with pytest.raises(Refused, match="court, audit"):
            repo.expire(point.id, "old", NOW)
        repo.release(point.id, "court", NOW)
        with pytest.raises(Refused, match="no such hold"):
            repo.release(point.id, "court", NOW)
        assert repo.points()[0].holds == ("audit",)
    with opened(tmp_path / "r") as repo:
        repo.release(point.id, None, NOW)
        repo.mark_lock(point.id, later(days=2), "ransomware guard", NOW)
        repo.mark_lock(point.id, later(days=1), "shorter", NOW)
        with pytest.raises(Refused, match="locked until 2026-03-03"):
            repo.expire(point.id, "old", later(days=1.5))
        repo.mark_expiring(point.id, "keep_daily = 7", NOW)
        assert repo.points()[0].expiring_since == NOW
        repo.unmark(point.id, "policy changed", NOW)
        assert repo.points()[0].expiring_since is None
        repo.expire(point.id, "old", later(days=3))
        assert repo.points() == []
        with pytest.raises(NoSuchPoint):
            repo.expire(point.id, "again", later(days=3))
    assert not list((tmp_path / "r" / "marks").iterdir())


def test_a_second_owner_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    script = (
        "import sys; from tests.storage_kit import *; r = opened(Path(sys.argv[1])); print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(location)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(Locked, match=f"pid {other.pid} "):
            opened(location)
        other.kill()
    with opened(location):
        assert json.loads((location / "owner.json").read_text())["pid"] == os.getpid()


def test_what_is_not_there_or_there_already_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoRepository):
        opened(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRepository):
        opened(tmp_path / "empty")
    location = make(tmp_path / "r")
    with pytest.raises(AlreadyExists):
        make(location)
    with pytest.raises(ValueError, match="block size"):
        create(tmp_path / "odd", now=NOW, block_bytes=5000)


def test_misuse_of_a_pending_point_is_refused_before_it_harms(tmp_path: Path) -> None:
    disk = image(15, 4)
    with opened(make(tmp_path / "r")) as repo:
        pending = repo.new_point(PointHead(VmId("v"), "v", NOW))
        ingest = pending.disk(DiskHead(DISK, len(disk)), base=None)
        for offset, length in ((1, BLOCK), (0, 100), (3 * BLOCK, 2 * BLOCK), (-BLOCK, BLOCK)):
            with pytest.raises(ValueError, match="not whole blocks"):
                ingest.write(offset, memoryview(bytes(length)))
        with pytest.raises(ValueError, match="there already"):
            pending.disk(DiskHead(DISK, 1), base=None)
        with pytest.raises(ValueError, match="not finished"):
            pending.commit()
        with pytest.raises(NoSuchPoint):
            pending.disk(DiskHead("b", 1), base=(PointId("nothing"), DISK))
        ingest.finish()
        with pytest.raises(ValueError, match="finished already"):
            ingest.finish()
        pending.commit()
        with pytest.raises(ValueError, match="committed or abandoned"):
            pending.commit()


def test_a_manifest_that_would_grow_too_large_is_refused(tmp_path: Path) -> None:
    head = PointHead(VmId("v"), "v", NOW, attributes={"reason": "x" * 70_000})
    with opened(make(tmp_path / "r")) as repo:
        with repo.new_point(head) as pending, pytest.raises(Refused, match="manifest"):
            pending.commit()
        assert repo.points() == []


def test_sizes_count_packs_and_points(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r")) as repo:
        assert repo.sizes().stored_bytes == repo.sizes().points == 0
        back_up(repo, image(16, 100))
        sizes = repo.sizes()
        assert sizes.stored_bytes == sum(p.stat().st_size for p in (tmp_path / "r/packs").rglob("*") if p.is_file())
        assert (sizes.points, sizes.packs, sizes.logical_bytes) == (1, 2, 100 * BLOCK)
        assert len(repo.repository_id) == 32
        assert not repo.encrypted


def test_a_chunk_damaged_in_one_pack_is_read_from_another_that_has_it(tmp_path: Path) -> None:
    disk = image(17, 50)
    with opened(make(tmp_path / "r")) as repo:
        one = back_up(repo, disk)
        session = repo.store.session()
        chunks = [chunk for _, children in repo.read_disk(one.id, DISK).leaves() for chunk in children.values()]
        from storage.format import PackKind

        repo.store.copy(session, PackKind.DATA, list(zip(chunks, repo.store.read_many(chunks), strict=True)))
        repo.store.flush(session)
        repo.store.end(session)
        first, second = sorted((tmp_path / "r/packs").rglob("*.data"))
        for path in (first, second):
            sound = path.read_bytes()
            path.write_bytes(sound[:500] + bytes([sound[500] ^ 1]) + sound[501:])
            assert read_back(repo, one.id) == disk
            if path == second:
                continue
            path.write_bytes(sound)
        first.write_bytes(b"")
        with pytest.raises(Damaged):
            read_back(repo, one.id)


def test_errors_of_storage_say_where_and_what_next() -> None:
    error = StorageError("broken", where="packs/01", hint="run verify")
    assert str(error) == "packs/01: broken (run verify)"


def test_a_repository_is_made_in_a_new_or_empty_folder_only(tmp_path: Path) -> None:
    for name in ("notes.txt", "spool/mail"):
        home = tmp_path / name.replace("/", "-")
        (home / name).parent.mkdir(parents=True)
        (home / name).write_text("mine")
        with pytest.raises(Refused, match="not empty"):
            create(home, now=NOW)
        assert [path for path in home.rglob("*") if path.is_file()] == [home / name]
    begun = tmp_path / "deep" / "er" / "begun"
    (begun / "packs").mkdir(parents=True)
    (begun / "lost+found").mkdir()
    create(begun, now=NOW)
    with opened(begun):
        (begun / "spool" / "folder").mkdir()
    with opened(begun):
        pass


def test_a_lock_in_the_manifest_refuses_expiry_whatever_becomes_of_catalog_and_marks(tmp_path: Path) -> None:
    until = later(days=30)
    with opened(make(tmp_path / "r")) as repo:
        head = PointHead(VmId("vm-1"), "web", NOW, locked_until=until)
        with repo.new_point(head) as pending:
            point = pending.commit()
        assert point.locked_until == until
        repo.mark_lock(point.id, later(days=10), "shorter", NOW)
    (tmp_path / "r" / "catalog.duckdb").unlink()
    with opened(tmp_path / "r") as repo:
        assert [one.locked_until for one in repo.points()] == [until]
        assert repo.detail(point.id).locked_until == until
        with pytest.raises(Refused, match="locked until 2026-03-31"):
            repo.expire(point.id, "old", later(days=29))
        repo.mark_lock(point.id, later(days=40), "longer", NOW)
        assert [one.locked_until for one in repo.points()] == [later(days=40)]
        with pytest.raises(Refused, match="locked until"):
            repo.expire(point.id, "old", later(days=39))
        repo.expire(point.id, "old", later(days=41))
        assert repo.points() == []
