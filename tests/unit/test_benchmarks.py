"""The benchmarks' own figures: ratios, tables, comparing images, writing into file systems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import terabyte
from benchmarks.images.apt import merged
from benchmarks.images.comparing import blocks_in_use, changed_bytes, differences, extents
from benchmarks.images.content import PAGE, Prose, changed_pages, write_table
from benchmarks.images.ext4 import Ext4Image, extents_of, make_file_system, physical
from benchmarks.peers.bound import compress_all, unique_blocks
from benchmarks.peers.drivers import Backstay, Source
from benchmarks.peers.goals import Goal, goals
from benchmarks.peers.measuring import Command, Failed, copy_state, run, status_bytes
from benchmarks.peers.records import Record, Records, Spread, records_of
from benchmarks.peers.report import document, table, tables
from benchmarks.peers.rounds import Bench, one_round

MIB = 1 << 20
SEED = "1 test"


def _records() -> Records:
    seconds = {
        ("full", "restic"): (12, 10, 11),
        ("full", "backstay"): (2, 2.5, 2.2),
        ("full", "backstay-encrypted"): (2.2, 2.5, 2.42),
        ("full", "bound"): (1.8, 1.5, 1.54),
        ("verify", "restic"): (3, 3, 3),
        ("verify", "borg"): (2, 2, 2),
        ("verify", "backstay"): (1, 1, 1),
    }
    return Records(
        tuple(
            Record(number, "A", step, tool, wall, wall, 50 * MIB, 40 * MIB)
            for (step, tool), walls in seconds.items()
            for number, wall in enumerate(walls, start=1)
        )
    )


def _document() -> dict[str, object]:
    tool = {"version": "1", "settings": "defaults", "durability": "fsync", "encrypted": False}
    about = {
        "date": "2026-01-01",
        "machine": {"cores": "2"},
        "tools": {"backstay": tool},
        "images": {"A2": {"bytes_in_use": 1_000_000, "changed_bytes": {"4096": 8192}}},
    }
    sizes = {"backstay": {"kept_bytes": 80}, "restic": {"kept_bytes": 100}, "borg": {"kept_bytes": 120}}
    return document(about, _records(), sizes)


def test_a_ratio_is_of_the_medians_and_its_range_is_of_the_rounds() -> None:
    ratio = _records().ratio("A", ("full", "restic"), ("full", "backstay"))
    assert ratio == Spread(11 / 2.2, 10 / 2.5, 12 / 2)
    assert _records().ratio("A", ("full", "benji"), ("full", "backstay")) is None


def test_a_disturbed_time_does_not_count_where_there_is_another() -> None:
    alone, beside = Record(1, "A", "full", "x", 2.0), Record(2, "A", "full", "x", 9.0, others_cpu_seconds=5.0)
    assert Records((alone, beside)).wall("A", "full", "x") == Spread(2, 2, 2)
    assert Records((beside,)).wall("A", "full", "x") == Spread(9, 9, 9)


def test_goals_compare_with_the_fastest_and_the_smallest_peer() -> None:
    reached = {goal.work: goal for goal in goals(_records(), {"backstay": 80, "restic": 100, "borg": 120})}
    verify = reached["A: verify, backstay against borg, the fastest peer"]
    assert (verify.value.median, verify.verdict) == (2.0, "met")
    stored = next(goal for work, goal in reached.items() if work.startswith("stored bytes"))
    assert "against restic" in stored.work
    assert (stored.value.median, stored.verdict) == (0.8, "stretch")
    assert reached["A: full backup, the compression bound against backstay"].value.median == pytest.approx(0.7)
    assert reached["A: full, encrypted against plain"].value.median == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("value", "at_most", "verdict"),
    [(5, False, "stretch"), (4, False, "met"), (3, False, "MISSED"), (3, True, "stretch"), (6, True, "MISSED")],
)
def test_a_goal_says_whether_it_is_reached(value: float, at_most: bool, verdict: str) -> None:
    must, stretch = (5, 4) if at_most else (4, 5)
    assert Goal("work", must, stretch, Spread(value, value, value), at_most).verdict == verdict


def test_the_document_has_every_value_and_is_read_back() -> None:
    results = json.loads(json.dumps(_document()))
    keys = {"format", "date", "machine", "tools", "images", "records", "sizes", "medians", "goals"}
    assert set(results) == keys
    assert records_of(results) == _records()
    assert {"work", "must", "stretch", "value", "verdict"} <= set(results["goals"][0])
    assert {"median", "low", "high", "rounds"} <= set(results["medians"][0])


def test_the_tables_show_medians_with_their_range() -> None:
    shown = tables(_document(), _records())
    assert "| backstay " in shown
    assert "11.00 [10.00–12.00]" in shown
    assert "5.00 [4.00–6.00]" in shown
    assert "A2: 1 MB in use; changed by 4 KiB 0 MB" in shown


def test_a_table_is_aligned() -> None:
    assert table(["tool", "s"], [["a", "10.0"]]) == "| tool |    s |\n| :--- | ---: |\n| a    | 10.0 |"


def test_a_measured_process_tells_time_and_memory_and_a_failure_tells_its_words(tmp_path: Path) -> None:
    code = "x = bytearray(b'1') * (64 << 20); import time; time.sleep(0.3)"
    measured = run(Command((sys.executable, "-c", code), tmp_path), tmp_path / "log")
    assert measured.wall_seconds > 0.3
    assert measured.peak_rss_bytes > measured.peak_private_bytes > 64 << 20
    with pytest.raises(Failed, match="no such thing"):
        run(Command((sys.executable, "-c", "raise SystemExit('no such thing')"), tmp_path), tmp_path / "log")
    assert status_bytes("VmHWM:\t    12 kB\nRssAnon: 3 kB\n", "RssAnon") == 3072


def test_a_copied_state_shares_only_what_is_never_written_again(tmp_path: Path) -> None:
    (tmp_path / "state/packs/01").mkdir(parents=True)
    for name in ("packs/01/a", "catalog"):
        (tmp_path / "state" / name).write_text("x")
    copy_state(tmp_path / "state", tmp_path / "copy", "packs")
    assert (tmp_path / "copy/packs/01/a").samefile(tmp_path / "state/packs/01/a")
    assert not (tmp_path / "copy/catalog").samefile(tmp_path / "state/catalog")


def _image(path: Path, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path


def test_two_images_are_compared_block_by_block(tmp_path: Path) -> None:
    before = _image(tmp_path / "a", {0: b"x" * 4096, 3 * MIB: b"y" * 8192})
    after = _image(tmp_path / "b", {0: b"x" * 4096, 3 * MIB: b"y" * 4096 + b"z" * 4096, 5 * MIB: b"n"})
    blocks = differences(before, after)
    assert blocks == [3 * 256 + 1, 5 * 256]
    assert changed_bytes(blocks) == {4096: 8192, 16384: 32768, 65536: 131072, MIB: 2 * MIB}
    assert extents(blocks) == [(3 * MIB, 65536), (5 * MIB, 65536)]
    assert extents([0, 16, 40]) == [(0, 196608)]
    assert blocks_in_use(after) == 4 * 4096


def test_the_bound_compresses_each_block_that_holds_something_once(tmp_path: Path) -> None:
    image = _image(tmp_path / "a", {0: b"a" * 65536 * 2, MIB: b"b" * 10})
    blocks = unique_blocks(image)
    assert [block[:1] for block in blocks] == [b"a", b"b"]
    assert 0 < compress_all(blocks, 2)[1] < 1000


def test_a_file_system_is_filled_and_changed_without_a_mount(tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc/name with blank").write_text("one")
    (root / "etc/link").symlink_to("name with blank")
    make_file_system(image, 16 * MIB, "6ba7b812-9dad-11d1-80b4-00c04fd430c8", root)
    disk = Ext4Image(image, ["etc"], ["etc/name with blank", "etc/link"])
    write_table(tmp_path / "table", 4, Prose(SEED))
    disk.write(tmp_path / "table", "var/lib/table")
    disk.rename("etc/name with blank", "etc/name.1")
    disk.overwrite("var/lib/table", [(PAGE, b"new".ljust(PAGE, b"\0"))])
    disk.check()
    with pytest.raises(RuntimeError, match="rm"):
        disk.remove("not there")
        disk.flush()

    def cat(path: str) -> bytes:
        return subprocess.run(["debugfs", "-R", f"cat {path}", str(image)], check=True, capture_output=True).stdout

    assert cat("/etc/name.1") == b"one"
    old = (tmp_path / "table").read_bytes()
    assert cat("/var/lib/table") == old[:PAGE] + b"new".ljust(PAGE, b"\0") + old[2 * PAGE :]


def test_places_of_a_files_blocks_are_read_from_what_debugfs_prints() -> None:
    told = "Level Entries  Logical  Physical Length Flags\n 1/ 1   1/  2     0 -   9  100 - 109     10\n"
    places = extents_of(told + " 1/ 1   2/  2    10 -  11  300 - 301      2 Uninit\n")
    assert places == [(0, 100, 10), (10, 300, 2)]
    assert physical(places, 11) == 301
    with pytest.raises(ValueError, match="hole"):
        physical(places, 12)


def test_content_follows_from_the_seed() -> None:
    assert Prose(SEED).page(3) == Prose(SEED).page(3) != Prose("2 test").page(3)
    assert len(Prose(SEED).log(5000)) == 5000
    pages = list(changed_pages(100, 5, Prose(SEED)))
    assert [offset for offset, _ in pages] == sorted({offset for offset, _ in pages})
    assert {len(page) for _, page in pages} == {PAGE}


def test_paths_of_packages_lead_into_usr() -> None:
    names = ("./lib/x.so", "./", "./bin", "./usr/bin/a")
    assert [merged(name) for name in names] == ["usr/lib/x.so", "", "", "usr/bin/a"]


def test_changed_places_lie_in_runs_or_apart() -> None:
    runs = terabyte.places(1 << 30, 1024, "clustered")
    assert len(set(runs)) == 1024
    assert sum(b - a != 1 for a, b in pairwise(runs)) <= 3
    assert len(set(terabyte.places(1 << 30, 1000, "random"))) == 1000


@pytest.mark.parametrize("options", [(), ("--block", "128KiB")], ids=["as it is", "larger blocks"])
def test_a_round_of_our_own_measures_restores_and_compares(options: tuple[str, ...], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    _image(images / "A.img", {0: os.urandom(MIB)})
    _image(images / "A2.img", {0: b"n" * 65536, MIB: b"n" * 65536})
    (images / "A2.changed.json").write_text(json.dumps([{"offset": 0, "length": 2 * MIB}]))
    said: list[str] = []
    steps = ("init", "full", "next day", "hinted", "restore", "verify")
    driver = Backstay("ours", options=options)
    records = one_round(Bench(images, tmp_path / "work", said.append, patience_seconds=0), [driver], "A", 1, steps)
    assert tuple(record.step for record in records) == steps
    assert len(said) == len(steps)
    source = Source("A", 2, images / "A2.img", images / "A2.changed.json")
    assert "--changed" in driver.backup(tmp_path, source).argv
    assert all(option in driver.init(tmp_path)[0].argv for option in options)


@pytest.mark.parametrize("module", ["benchmarks", "benchmarks.peers", "benchmarks.terabyte"])
def test_a_benchmark_says_what_it_takes(module: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "usage: python -m benchmarks" in done.stdout
