"""Real processes that write one repository in an object store at the same time, and the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.failures import Exit
from policies.facts import VmId
from storage.format import parse_pack_key
from storage.places import ObjectPlace
from storage.rebuild import rebuild_catalog
from storage.repository import create
from storage.verify import verify
from tests.storage_kit import NOW, opened, read_back
from tests.stores.fixtures import PlaceOf
from tests.stores.server import ObjectServer
from tests.stores.writing import disk_of


def begin(
    server: ObjectServer, place: ObjectPlace, vm: str, count: int, *, failpoint: str = ""
) -> subprocess.Popen[str]:
    environment = os.environ | server.environment() | {"BACKSTAY_FAILPOINT": failpoint}
    command = [sys.executable, "-m", "tests.stores.writing", str(place), str(place.state_dir), vm, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said.split()


@pytest.mark.parametrize("failpoint", ["", "pack.sealed:3", "commit.announced:2", "commit.manifest_written:2"])
def test_processes_that_write_together_harm_nothing(
    object_server: ObjectServer, writer_place: PlaceOf, failpoint: str
) -> None:
    """One of them is killed, but for the first round; the other goes on, and all that was committed restores."""
    create(writer_place("a"), now=NOW, block_bytes=4096)
    killed = begin(object_server, writer_place("a"), "vm-a", 4, failpoint=failpoint)
    going_on = begin(object_server, writer_place("b"), "vm-b", 4)
    code, of_a = ended(killed)
    assert code == (-9 if failpoint else 0)
    code, of_b = ended(going_on)
    assert code == 0 and len(of_b) == 4
    with opened(writer_place("a")) as repo:
        assert {*of_a, *of_b} <= {point.id for point in repo.points()}
        for vm in ("vm-a", "vm-b"):
            for number, point in enumerate(repo.points(VmId(vm))):
                assert read_back(repo, point.id) == disk_of(vm, number)
        assert verify(repo, now=NOW).sound
        rows = repo.opened_catalog().rows()
        rebuild_catalog(repo)
        assert repo.catalog.rows() == rows
        names = [parse_pack_key(key) for key in repo.blobs.list("packs/")]
        numbers = [name.number for name in names if name is not None]
        assert len(set(numbers)) == len(numbers)


def run(server: ObjectServer, state: Path, *arguments: str, secret: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | server.environment() | {"XDG_STATE_HOME": str(state), "HOME": str(state)}
    environment |= {"BACKSTAY_CONFIG": str(state / "backstay.toml")}
    if secret:
        environment["AWS_SECRET_ACCESS_KEY"] = secret
    command = [sys.executable, "-m", "engine", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_commands_take_the_url_of_an_object_store(
    object_server: ObjectServer, writer_place: PlaceOf, tmp_path: Path
) -> None:
    url, disk = str(writer_place("cli")), tmp_path / "disk"
    disk.write_bytes(disk_of("vm", 1))
    (tmp_path / "key").write_text(object_server.secret)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "backstay.toml").write_text(
        f'schema = 1\nstate_dir = "state"\n[repository]\nurl = "{url}"\nendpoint = "{object_server.endpoint}"\n'
        f'access_key = "env:AWS_ACCESS_KEY_ID"\nsecret_key = "file:key"\n'
    )
    refused = run(object_server, tmp_path, "points", "--repo", url)
    assert refused.returncode == Exit.NO_REPOSITORY
    made = run(object_server, tmp_path, "repo", "init", secret="not looked at: the configuration names a file")
    assert (made.returncode, made.stderr) == (0, f"Made a plain repository at {url}.\n")
    backup = run(object_server, tmp_path, "disk", "backup", str(disk), "--name", "web")
    assert backup.returncode == 0, backup.stderr
    listed = run(object_server, tmp_path, "points", "--json")
    (row,) = json.loads(listed.stdout)
    restored = run(object_server, tmp_path, "disk", "restore", row["id"], "--to", str(tmp_path / "back"))
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()
    wrong = run(object_server, tmp_path, "points", "--repo", url, secret="hunter2")
    assert wrong.returncode == Exit.UNREACHABLE
    assert "hunter2" not in wrong.stderr and "check access key" in wrong.stderr
