"""The engine loses its state or its life in the middle of a run; restore points, vCenter and promises stay whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.commands import BackUpVm
from storage.repository import open_repository
from tests.acceptance.engine_process import EVERYTHING, ON_REQUEST, EngineProcess, engine_for, frozen_at
from tests.crash.kills import POLICIES_DIE
from tests.lab.vcenter import MIB, Lab

KEEP_ONE = ON_REQUEST.replace("consistency", "retention = { keep_last = 1, min_good = 1 }\nconsistency")

APPLIED_BY_A_PERSON = "SELECT detail FROM audit WHERE action = 'apply policies' AND who <> 'engine'"

ON_A_MOVE = ON_REQUEST + '[[policy.on_request.trigger]]\non = "vm.migrated"\n'


@pytest.mark.parametrize("killed_first", [False, True], ids=["under a running engine", "after a kill"])
def test_a_state_deleted_in_the_middle_of_a_run_costs_no_point_hold_or_lock_and_causes_no_deletion(
    fresh_lab: Callable[..., Lab], tmp_path: Path, killed_first: bool
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=16 * MIB)
    [vm] = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_REQUEST, timers='retention = "1s"') as engine:
        engine.start()
        plain, held, locked, newest = [engine.back_up(vm.name) for _ in range(4)]
        engine.backstay("hold", held["id"], "--reason", "case 7")
        until = lock(engine, locked["id"])
        # Stricter than what was accepted, so it waits for a person; only the state knows that.
        (engine.policies / "all.toml").write_text(KEEP_ONE)
        engine.until(lambda: engine.status()["waits_for_a_person"])

        with lab.nbd_fault(hang_at=8 * MIB):
            engine.api.submit(BackUpVm(vm.name, full=True))
            engine.until(lambda: reading(engine))
            if killed_first:
                engine.kill()
            delete_state(engine)
        if not killed_first:
            engine.until(lambda: len(engine.points(vm.name)) == 5)
            engine.kill()
        kept = {point["id"] for point in engine.backstay("points", "--json").data}
        assert kept >= {plain["id"], held["id"], locked["id"], newest["id"]}
        assert len(kept) == (4 if killed_first else 5)

        engine.start()
        engine.until(lambda: "0 expired" in engine.status()["upkeep"].get("retention", ""))
        engine.until(lambda: not lab.vm(vm.name).snapshots)
        assert {point["id"] for point in engine.points(vm.name)} == kept
        assert {point["vm_id"] for point in engine.points(vm.name)} == {held["vm_id"]}
        assert [(row["vm"], row["vm_id"]) for row in engine.status()["vms"]] == [(vm.name, held["vm_id"])]
        assert engine.point(held["id"])["holds"] == ["case 7"]
        assert engine.point(locked["id"])["locked_until"] == until
        assert any("policy apply" in sentence for sentence in engine.status()["waits_for_a_person"])
        made = engine.back_up(vm.name)
        assert made["vm_id"] == held["vm_id"]
        assert "state is new" in made["disks"][0]["changes"]
        engine.assert_same_as_frozen(made["id"], frozen_at(lab, made), tmp_path)
        for point in (plain, held, locked, newest):
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)


@pytest.mark.parametrize("step", POLICIES_DIE)
def test_an_engine_killed_while_it_applies_policies_has_them_in_force_and_audited_or_waits_with_the_same_digest(
    fresh_lab: Callable[..., Lab], tmp_path: Path, step: str
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=16 * MIB)
    [vm] = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_REQUEST, timers='retention = "1s"') as engine:
        engine.start()
        points = [engine.back_up(vm.name)["id"] for _ in range(2)]
        engine.stop()
        engine.start(die_at=step)
        (engine.policies / "all.toml").write_text(KEEP_ONE)
        engine.until(lambda: engine.status()["waits_for_a_person"])
        digest = engine.api.get("/v1/policies/pending")["digest"]
        engine.backstay("policy", "apply", digest, "--yes", expect=None)
        assert engine.ended() == -signal.SIGKILL

        engine.start()
        engine.until(lambda: "0 expired" in engine.status()["upkeep"].get("retention", ""))
        audited = [row["detail"].split(":")[0] for row in engine.rows(APPLIED_BY_A_PERSON)]
        pending = engine.api.get("/v1/policies/pending")
        if step == "policies.accepted":
            assert (audited, bool(pending)) == ([f"plan {digest}"], False)
        else:
            assert (audited, pending["digest"]) == ([], digest)
        assert [point["id"] for point in engine.points(vm.name)] == points


def reading(engine: EngineProcess) -> bool:
    """Whether a run is between its snapshot and its commit."""
    return any(job["stage"] == "read" for job in engine.status()["queue"]["running"])


def lock(engine: EngineProcess, point: str) -> str:
    """Lock a restore point for a week, which is done on the repository itself; until when, as the API tells it."""
    engine.stop()
    now = datetime.now(UTC)
    with open_repository(engine.repository, now=now, owner="a test") as repository:
        [id] = [each.id for each in repository.points() if each.id == point]
        repository.mark_lock(id, now + timedelta(days=7), "a law", now)
    engine.start()
    until = str(engine.point(point)["locked_until"])
    assert until
    return until


def delete_state(engine: EngineProcess) -> None:
    for file in engine.state.parent.glob("state.duckdb*"):
        file.unlink()


def test_an_engine_killed_with_a_disk_attached_after_a_pack_detaches_it_and_removes_the_snapshot(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=2, tracking=True, disk_bytes=176 * MIB, content=False)
    vm, proxy = lab.vms()
    for offset in range(0, 160 * MIB, 16 * MIB):
        lab.write_as_guest(vm.name, 0, offset, os.urandom(16 * MIB))
    policy = EVERYTHING.replace('"*"', f'"name:{vm.name}"')
    with engine_for(lab, tmp_path / "engine", policy, order=("hotadd", "nbd"), proxy=proxy.name) as engine:
        engine.launch(die_at="pack.sealed")
        assert engine.ended(seconds=60) == -signal.SIGKILL
        assert lab.vm(vm.name).snapshots
        assert len(lab.vm(proxy.name).disks) == len(proxy.disks) + 1
        assert list(engine.repository.glob("packs/*/*"))
        assert not list(engine.repository.glob("manifests/*"))

        engine.start()
        engine.until(lambda: len(engine.points(vm.name)) == 1, seconds=60)
        [row] = engine.points(vm.name)
        point = engine.point(row["id"])
        assert [disk["transport"] for disk in point["disks"]] == ["hotadd"]
        engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        assert_nothing_is_left(lab, engine, vm.name, proxy.name)


@pytest.mark.parametrize("step", ["commit.packs_sealed", "commit.manifest_written", "commit.catalog_written"])
def test_an_engine_killed_in_the_commit_makes_its_run_up_with_one_point_for_the_event(
    fresh_lab: Callable[..., Lab], tmp_path: Path, step: str
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=16 * MIB)
    [vm] = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_A_MOVE) as engine:
        engine.start()
        engine.stop()
        engine.start(die_at=step)
        lab.migrate(vm.name)
        assert engine.ended() == -signal.SIGKILL
        assert list(engine.repository.glob("packs/*/*"))
        assert bool(list(engine.repository.glob("manifests/*"))) == (step != "commit.packs_sealed")

        engine.start()
        engine.until(lambda: engine.points(vm.name) and not any(engine.status()["queue"].values()))
        [row] = engine.points(vm.name)
        point = engine.point(row["id"])
        assert point["attributes"]["rule"] == "trigger[0]"
        [job] = engine.rows("SELECT state, point FROM jobs")
        assert job == {"state": "done", "point": point["id"]}
        engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        assert_nothing_is_left(lab, engine, vm.name)


def assert_nothing_is_left(lab: Lab, engine: EngineProcess, *names: str) -> None:
    """No snapshot, no disk that does not belong to its VM, no nbdkit of an engine that is dead."""
    for name in names:
        vm = lab.vm(name)
        assert not vm.snapshots
        assert all(disk.file.partition("] ")[2].startswith(f"{name}/") for disk in vm.disks), vm.disks
    assert str(lab.root) not in commands_of("nbdkit")


def commands_of(program: str) -> str:
    """The arguments of all processes of a program."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(program.encode()):
            found.append(b" ".join(words).decode(errors="replace"))
    return "\n".join(found)
