"""Single disks through the real console script: sources, changed extents, exit codes, and nothing ever lost."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from policies.facts import VmId
from storage.repository import DiskHead, PointHead, open_repository
from tests.console import BACKSTAY, backstay, environment

MIB = 1 << 20
GRAIN = 65536


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    backstay("repo", "init", tmp_path / "repo", home=tmp_path)
    return tmp_path / "repo"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """16 MiB, a third of it data, not a whole number of grains long."""
    path = tmp_path / "disk.img"
    rng = random.Random(7)
    with path.open("wb") as file:
        file.truncate(16 * MIB + 4096)
        for offset in range(0, 16 * MIB, GRAIN):
            if rng.random() < 0.33:
                file.seek(offset)
                file.write(rng.randbytes(GRAIN))
    return path


def change(image: Path, offsets: list[int], seed: int = 1) -> Path:
    """Write random bytes at the offsets; the file that lists them."""
    rng = random.Random(seed)
    with image.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            file.write(rng.randbytes(4096))
    listed = image.with_suffix(f".changed{seed}.json")
    listed.write_text(json.dumps([{"offset": offset, "length": 4096} for offset in offsets]))
    return listed


def test_a_raw_file_comes_back_byte_for_byte_and_sparse(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    back = tmp_path / "back.img"
    ran = backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()
    assert back.stat().st_blocks * 512 < 8 * MIB
    assert "verified" in ran.err and ran.out == ""


def test_points_name_id_vm_and_time_for_scripts(tmp_path: Path, repo: Path, image: Path) -> None:
    made = backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--json", home=tmp_path).data
    listed = backstay("points", "--repo", repo, "--json", home=tmp_path).data
    assert [(row["id"], row["vm"], row["taken_at"]) for row in listed] == [(made["id"], "web", made["taken_at"])]
    assert listed[0]["taken_at"].endswith("Z") and listed[0]["vm_id"] == "disk:web"
    assert backstay("points", "other", "--repo", repo, "--json", home=tmp_path).data == []
    assert made["id"] in backstay("points", "--repo", repo, home=tmp_path).out


def test_a_restore_point_tells_what_led_to_it(tmp_path: Path, repo: Path) -> None:
    said = {
        "policy": "gold", "rule": "trigger[0]", "reason": "web was moved", "policy_hash": "ab12",
        "policy_commit": "c0ffee+dirty", "event_key": "vc:1", "event_type": "vm.migrated",
        "event_at": "2026-11-22T14:00:00Z", "consistency_wanted": "application", "consistency_reason": "no Tools",
        "boot_time": "2026-11-01T09:00:00+00:00",
    }  # fmt: skip
    with open_repository(repo, now=lambda: datetime.now(UTC)) as opened:
        head = PointHead(VmId("id-1"), "web", datetime(2026, 11, 22, 15, tzinfo=UTC), attributes=said)
        with opened.new_point(head) as pending:
            point = pending.commit()
    told = backstay("points", "web@latest", "--repo", repo, home=tmp_path).out.splitlines()
    for line in (
        "policy       gold trigger[0]",
        "because      web was moved",
        "event        vm.migrated at 2026-11-22 14:00:00 UTC (vc:1)",
        "policy hash  ab12",
        "git commit   c0ffee+dirty",
        "consistency  crash, application was wanted",
        "why          no Tools",
    ):
        assert line in told
    shown = backstay("points", point.id[:12], "--repo", repo, "--json", home=tmp_path).data
    assert shown["id"] == point.id and shown["attributes"] == said | {"boot_time": "2026-11-01T09:00:00Z"}
    assert backstay("points", "other@latest", "--repo", repo, home=tmp_path, expect=2).err.count("\n") == 1


def test_the_catalog_lies_where_scripts_expect_it_and_comes_again_when_it_is_deleted(
    tmp_path: Path, repo: Path, image: Path
) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    before = backstay("points", "--repo", repo, "--json", home=tmp_path).out
    assert (repo / "catalog.duckdb").is_file()
    for part in repo.glob("catalog.duckdb*"):
        part.unlink()
    rebuilt = backstay("catalog", "rebuild", "--repo", repo, "--json", home=tmp_path).data
    assert rebuilt["points"] == 1 and rebuilt["chunks"] > 0
    assert backstay("points", "--repo", repo, "--json", home=tmp_path).out == before


def test_a_disk_whose_file_has_a_name_in_bytes_is_there_when_the_catalog_is_made_again(
    tmp_path: Path, repo: Path, image: Path
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.img"))
    image.rename(odd)
    made = backstay("disk", "backup", odd, "--repo", repo, "--name", "web", "--json", home=tmp_path).data
    for part in repo.glob("catalog.duckdb*"):
        part.unlink()
    assert [row["id"] for row in backstay("points", "--repo", repo, "--json", home=tmp_path).data] == [made["id"]]


def test_a_listed_change_is_all_that_is_read(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    listed = change(image, [0, 5 * GRAIN + 512, 16 * MIB])
    hinted = backstay(
        "disk", "backup", image, "--repo", repo, "--name", "web", "--changed", listed, "--json", home=tmp_path
    ).data
    assert hinted["read_bytes"] == 2 * GRAIN + 4096
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_what_is_not_listed_is_not_looked_at(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    old = image.read_bytes()
    listed = change(image, [GRAIN])
    change(image, [9 * GRAIN], seed=2)  # a change that nobody told
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--changed", listed, home=tmp_path)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes()[9 * GRAIN : 10 * GRAIN] == old[9 * GRAIN : 10 * GRAIN]
    assert back.read_bytes()[GRAIN : 2 * GRAIN] == image.read_bytes()[GRAIN : 2 * GRAIN]


def test_a_disk_that_grew_is_read_beyond_the_list(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    with image.open("ab") as file:
        file.write(os.urandom(3 * GRAIN))
    nothing = tmp_path / "nothing.json"
    nothing.write_text("[]")
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--changed", nothing, home=tmp_path)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_changes_without_an_earlier_restore_point_lead_to_a_whole_read(tmp_path: Path, repo: Path, image: Path) -> None:
    listed = change(image, [0])
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--changed", listed, home=tmp_path)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "changed.json:1:2: this is not JSON"),
        ("{}", "this is not a list of extents"),
        ('[{"offset": 0, "length": 1}, 7]', "entry 1 is not an object"),
        ('[{"offset": 0}]', "entry 0 has no length"),
        ('[{"offset": 0, "length": 4096}, {"offset": "8", "length": 1}]', "entry 1: offset is not a whole number"),
        ('[{"offset": -4096, "length": 4096}]', "entry 0: offset -4096 is not possible"),
        ('[{"offset": 0, "length": true}]', "entry 0: length is not a whole number"),
        ('[{"offset": 0, "length": 1, "len": 2}]', "entry 0 has an unknown key: len"),
        ('[{"offset": 99000000, "length": 1}]', "behind the disk's"),
    ],
)
def test_a_broken_list_of_changes_is_refused_with_the_entry(
    tmp_path: Path, repo: Path, image: Path, text: str, said: str
) -> None:
    listed = tmp_path / "changed.json"
    listed.write_text(text)
    ran = backstay(
        "disk", "backup", image, "--repo", repo, "--name", "web", "--changed", listed, home=tmp_path, expect=2
    )
    assert said in ran.err
    assert backstay("points", "--repo", repo, "--json", home=tmp_path).data == []


@contextmanager
def nbdkit(*arguments: str) -> Iterator[str]:
    """A real nbdkit on a Unix socket; its address."""
    with tempfile.TemporaryDirectory(prefix="nbd") as folder:
        address, pid = Path(folder) / "s", Path(folder) / "pid"
        server = subprocess.Popen(
            ["nbdkit", "-f", "-U", address, "-P", pid, "--exit-with-parent", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not pid.exists():
                assert server.poll() is None, "nbdkit did not start"
            yield f"nbd+unix:///?socket={address}"
        finally:
            server.kill()
            server.wait()


def test_an_nbd_export_is_a_source(tmp_path: Path, repo: Path, image: Path) -> None:
    with nbdkit("file", str(image)) as address:
        backstay("disk", "backup", address, "--repo", repo, "--name", "web", home=tmp_path)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_of_an_nbd_export_too_only_the_listed_changes_are_read(tmp_path: Path, repo: Path, image: Path) -> None:
    stats = tmp_path / "stats"
    with nbdkit("--filter=stats", "file", str(image), f"statsfile={stats}") as address:
        backstay("disk", "backup", address, "--repo", repo, "--name", "web", home=tmp_path)
    listed = change(image, [3 * GRAIN, 200 * GRAIN])
    with nbdkit("--filter=log", "file", str(image), f"logfile={tmp_path / 'log'}") as address:
        backstay("disk", "backup", address, "--repo", repo, "--name", "web", "--changed", listed, home=tmp_path)
    reads = [line for line in (tmp_path / "log").read_text().splitlines() if " Read " in line and "offset=" in line]
    offsets = sorted(int(line.split("offset=")[1].split()[0], 16) for line in reads)
    assert offsets == [3 * GRAIN, 200 * GRAIN]


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("missing.img", 2, "missing.img: there is no such file"),
        (".", 2, "neither a file nor a block device"),
        ("nbd+unix:///?socket=/nowhere/at/all", 6, "/nowhere/at/all"),
        ("nbd:oops", 2, "oops"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, repo: Path, source: str, code: int, said: str) -> None:
    ran = backstay("disk", "backup", source, "--repo", repo, "--name", "web", home=tmp_path, expect=code)
    assert said in ran.err


def test_a_restore_never_overwrites_unasked(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    ran = backstay("disk", "restore", "web@latest", "--repo", repo, "--to", precious, home=tmp_path, expect=5)
    assert "--force" in ran.err and precious.read_text() == "keep me"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", precious, "--force", home=tmp_path)
    assert precious.read_bytes() == image.read_bytes()


def test_damage_is_found_by_verify_and_by_the_restore_that_reads_it(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    assert backstay("verify", "--repo", repo, "--json", home=tmp_path).data["damaged"] == []
    pack = next((repo / "packs").rglob("*.data"))
    with pack.open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)
        file.seek(70_000)
        file.write(bytes([byte[0] ^ 1]))
    report = backstay("verify", "--repo", repo, "--json", home=tmp_path, expect=4).data
    assert len(report["damaged"]) == 1
    point = backstay("points", "--repo", repo, "--json", home=tmp_path).data[0]
    assert point["damaged"] and report["damaged"][0]["points"] == [point["id"]]
    back = tmp_path / "back.img"
    backstay("disk", "restore", point["id"], "--repo", repo, "--to", back, home=tmp_path, expect=4)
    assert not back.exists() and not list(tmp_path.glob(".back*"))
    with pack.open("r+b") as file:
        file.truncate(pack.stat().st_size - 10)
    lost = backstay("verify", "--repo", repo, home=tmp_path, expect=4).out.splitlines()
    assert len(lost) == 2, "one line for the pack and one for all chunks that it held"
    assert "cut off" in lost[0] and "affects" not in lost[0]
    assert f"affects {point['id']} of web (" in lost[1] and lost[1].endswith(" times)")


def test_a_held_restore_point_is_not_forgotten_before_it_is_released(tmp_path: Path, repo: Path, image: Path) -> None:
    old = backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--json", home=tmp_path).data["id"]
    change(image, [0])
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    backstay("hold", old, "--reason", "audit", "--repo", repo, home=tmp_path)
    assert "audit" in backstay("expire", old, "--repo", repo, home=tmp_path, expect=5).err
    backstay("release", old, "--repo", repo, home=tmp_path)
    backstay("expire", old, "--repo", repo, home=tmp_path)
    assert [row["vm"] for row in backstay("points", "--repo", repo, "--json", home=tmp_path).data] == ["web"]
    assert "--yes" in backstay("reclaim", "--min-age", "0s", "--repo", repo, home=tmp_path, expect=5).err
    plan = backstay("reclaim", "--plan", "--min-age", "0s", "--repo", repo, "--json", home=tmp_path, expect=None)
    assert plan.code in (0, 3)
    backstay("reclaim", "--repo", repo, home=tmp_path)
    backstay("reclaim", "--min-age", "0s", "--yes", "--repo", repo, home=tmp_path)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_the_last_good_restore_point_is_only_forgotten_when_that_is_said(
    tmp_path: Path, repo: Path, image: Path
) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    assert "--last" in backstay("expire", "web@latest", "--repo", repo, home=tmp_path, expect=5).err
    backstay("expire", "web@latest", "--last", "--repo", repo, home=tmp_path)
    assert backstay("points", "--repo", repo, "--json", home=tmp_path).data == []


def test_an_encrypted_repository_opens_with_its_passphrase_alone(tmp_path: Path, image: Path) -> None:
    repo = tmp_path / "secret-repo"
    right, wrong = {"BACKSTAY_PASSPHRASE": "correct horse"}, {"BACKSTAY_PASSPHRASE": "battery staple"}
    backstay("repo", "init", repo, "--encrypt", home=tmp_path, env=right)
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path, env=right)
    assert "BACKSTAY_PASSPHRASE" in backstay("points", "--repo", repo, home=tmp_path, expect=12).err
    refused = backstay("points", "--repo", repo, home=tmp_path, env=wrong, expect=12)
    assert "battery staple" not in refused.err + refused.out
    kept = tmp_path / "passphrase"
    kept.write_text("correct horse\n")
    kept.chmod(0o600)
    back = tmp_path / "back.img"
    backstay("disk", "restore", "web@latest", "--repo", repo, "--to", back, "--passphrase-file", kept, home=tmp_path)
    assert back.read_bytes() == image.read_bytes()


def test_a_passphrase_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "passphrase"
    kept.write_text("correct horse")
    kept.chmod(0o644)
    ran = backstay("repo", "init", tmp_path / "r", "--encrypt", "--passphrase-file", kept, home=tmp_path, expect=2)
    assert "chmod 600" in ran.err and "correct horse" not in ran.err
    assert not (tmp_path / "r" / "config").exists()


def test_init_asks_nothing_without_a_terminal(tmp_path: Path) -> None:
    backstay("repo", "init", tmp_path / "plain", home=tmp_path)
    assert "passphrase" in backstay("repo", "init", tmp_path / "r", "--encrypt", home=tmp_path, expect=2).err
    assert "already" in backstay("repo", "init", tmp_path / "plain", home=tmp_path, expect=5).err


def test_where_there_is_no_repository_every_command_says_so(tmp_path: Path, image: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (
        ["points"],
        ["verify"],
        ["reclaim"],
        ["catalog", "rebuild"],
        ["sql", "select 1"],
        ["hold", "x"],
        ["disk", "backup", str(image), "--name", "web"],
        ["disk", "restore", "x", "--to", str(tmp_path / "y")],
    ):
        for place in (empty, tmp_path / "nowhere"):
            ran = backstay(*command, "--repo", place, home=tmp_path, expect=10)
            assert str(place) in ran.err and "repo init" in ran.err
    assert "--repo" in backstay("points", home=tmp_path, expect=10).err


HOLDER = """
import sys
from datetime import UTC, datetime
from storage.repository import open_repository
with open_repository(sys.argv[1], now=lambda: datetime.now(UTC), owner="a test"):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(repo: Path) -> Iterator[int]:
    """Another process that owns the repository; its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(repo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "open\n"
        yield process.pid
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_repository_in_use_is_refused_with_the_pid_of_its_owner(tmp_path: Path, repo: Path, image: Path) -> None:
    with held(repo) as pid:
        for command in (["points"], ["verify"], ["catalog", "rebuild"], ["disk", "backup", str(image), "--name", "w"]):
            ran = backstay(*command, "--repo", repo, home=tmp_path, expect=11)
            assert f"pid {pid}" in ran.err
    backstay("points", "--repo", repo, home=tmp_path)


def test_a_full_store_ends_with_seven_and_loses_nothing(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(3).randbytes(8 * MIB))

    def no_large_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))

    ran = backstay(
        "disk", "backup", other, "--repo", repo, "--name", "web", home=tmp_path, expect=7, prepare=no_large_files
    )
    assert str(repo) in ran.err
    assert len(backstay("points", "--repo", repo, "--json", home=tmp_path).data) == 1
    assert "all intact" in backstay("verify", "--repo", repo, home=tmp_path).err
    assert "all intact" not in backstay("verify", "--for", "0s", "--repo", repo, home=tmp_path, expect=3).err
    backstay("disk", "backup", other, "--repo", repo, "--name", "web", home=tmp_path)


def test_a_full_target_ends_with_seven_and_leaves_no_half_disk(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))

    back = tmp_path / "back.img"
    backstay(
        "disk", "restore", "web@latest", "--repo", repo, "--to", back, home=tmp_path, expect=7, prepare=small_files
    )
    assert not back.exists() and not list(tmp_path.glob(".back*"))


def test_an_interrupted_backup_ends_with_130_and_harms_nothing(tmp_path: Path, repo: Path, image: Path) -> None:
    backstay("disk", "backup", image, "--repo", repo, "--name", "web", home=tmp_path)
    with nbdkit("--filter=delay", "file", str(image), "rdelay=60") as address:
        running = subprocess.Popen(
            [BACKSTAY, "disk", "backup", address, "--repo", repo, "--name", "web"],
            env=environment(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        while str(running.pid) not in (repo / "owner.json").read_text():
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err and out == ""
    assert len(backstay("points", "--repo", repo, "--json", home=tmp_path).data) == 1


@pytest.mark.parametrize("name", ["", " web", "we\nb", "x" * 300])
def test_a_name_that_cannot_be_shown_is_refused(tmp_path: Path, repo: Path, image: Path, name: str) -> None:
    ran = backstay("disk", "backup", image, "--repo", repo, f"--name={name}", home=tmp_path, expect=2)
    assert "name" in ran.err


def test_an_unknown_restore_point_is_bad_input(tmp_path: Path, repo: Path) -> None:
    for point in ("nothing", "web@latest", "@latest", ""):
        ran = backstay("disk", "restore", point, "--repo", repo, "--to", "x.img", home=tmp_path, expect=2)
        assert ran.err.strip()


def test_a_restore_point_of_several_disks_becomes_a_folder_or_the_chosen_disk(tmp_path: Path, repo: Path) -> None:
    contents = {"Hard disk 1": os.urandom(3 * GRAIN), "Hard disk 2": os.urandom(2 * GRAIN)}
    head = PointHead(VmId("vm-1"), "web", datetime.now(UTC))
    with (
        open_repository(repo, now=lambda: datetime.now(UTC)) as repository,
        repository.new_point(head) as pending,
    ):
        for label, content in contents.items():
            ingest = pending.disk(DiskHead(label, len(content)), base=None)
            ingest.write(0, memoryview(content))
            ingest.finish()
        pending.commit()
    backstay("restore", "web@latest", "--repo", repo, "--to-file", tmp_path / "all", home=tmp_path)
    for label, content in contents.items():
        assert (tmp_path / "all" / f"{label}.raw").read_bytes() == content
    one = tmp_path / "one.img"
    backstay("disk", "restore", "web@latest", "--disk", "Hard disk 2", "--repo", repo, "--to", one, home=tmp_path)
    assert one.read_bytes() == contents["Hard disk 2"]
    ran = backstay(
        "disk", "restore", "web@latest", "--disk", "x", "--repo", repo, "--to", tmp_path / "y", home=tmp_path, expect=2
    )
    assert "Hard disk 1" in ran.err


def test_what_retention_marked_is_shown_first_and_expires_on_a_word(tmp_path: Path, repo: Path, image: Path) -> None:
    points = [
        backstay("disk", "backup", image, "--repo", repo, "--name", "web", "--json", home=tmp_path).data["id"]
        for _ in range(2)
    ]
    with open_repository(repo, now=datetime.now(UTC)) as opened:
        for point in points:
            opened.mark_expiring(point, "not kept", datetime.now(UTC))
    assert backstay("expire", "--marked", "1h", "--repo", repo, home=tmp_path).out == ""
    shown = backstay("expire", "--marked", "0s", "--repo", repo, home=tmp_path, expect=3).out
    assert [line.split()[0] for line in shown.splitlines()] == points
    ran = backstay("expire", "--marked", "0s", "--yes", "--repo", repo, home=tmp_path)
    assert "last good restore point" in ran.err
    left = backstay("points", "--repo", repo, "--json", home=tmp_path).data
    assert [row["id"] for row in left] == points[1:]
    assert "name one" in backstay("expire", "--repo", repo, home=tmp_path, expect=2).err
