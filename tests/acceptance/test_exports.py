"""VMs that only vCenter's own export reaches: no proxy, no nbdkit, no VDDK."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from engine.commands import BackUpVm, RestoreToVm
from tests.acceptance.engine_process import ON_REQUEST, EngineProcess, engine_for, frozen_at
from tests.lab.vcenter import MIB, Lab, Machine

ALONE = Machine(name="alone", disks=(24 * MIB, 8 * MIB), tracking=True)


@contextmanager
def engine_without_means(lab: Lab, home: Path) -> Iterator[EngineProcess]:
    """It has nothing but its login."""
    order = ("hotadd", "nbd", "export", "https")
    with engine_for(lab, home, ON_REQUEST, order=order, proxy="nowhere") as engine:
        text = engine.config.read_text()
        engine.config.write_text(text.replace("[transport]\n", '[transport]\nnbdkit = "no-such-nbdkit"\n'))
        engine.start()
        yield engine


def assert_whole(lab: Lab, name: str, point: Mapping[str, Any]) -> None:
    """The VM's disks are, by the lab's own reading, what it froze for the restore point."""
    pairs = zip(lab.vm(name).disks, sorted(frozen_at(lab, point).disks, key=lambda disk: disk.key), strict=True)
    for disk, frozen in pairs:
        assert filecmp.cmp(disk.flat, frozen.image, shallow=False)


def test_a_vm_is_backed_up_by_export_and_restored_by_import_alone_and_later_runs_store_only_what_changed(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=0, extra=(ALONE,))
    with engine_without_means(lab, tmp_path / "engine") as engine:
        for written in (0, 3):
            for number in range(written):
                lab.write_as_guest("alone", 0, number * 5 * MIB, bytes([number + 1]) * 65536)
            with lab.busy_guest("alone", 1):
                point = engine.back_up("alone")
            for disk in point["disks"]:
                assert disk["transport"] == "export"
                assert [way for way, _ in disk["fallbacks"]] == ["hotadd", "nbd"]
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        [first] = [disk for disk in point["disks"] if disk["label"] == "Hard disk 1"]
        assert first["changes"] == "whole: an export brings all of a disk"
        assert first["stored_bytes"] <= 4 * 65536
        assert 'backstay_full_reads_total{reason="exported"} 2.0' in engine.metrics()
        assert not lab.vm("alone").snapshots
        told = engine.finished(RestoreToVm(point["id"], "alone-2"))
        assert [disk["transport"] for disk in told["disks"]] == ["import", "import"]
        assert [[way for way, _ in disk["fallbacks"]] for disk in told["disks"]] == [["hotadd", "nbd"]] * 2
        assert_whole(lab, "alone-2", point)
        failed = engine.backstay("restore", point["id"], "--to-vm", "alone-3", "--transport", "nbd", expect=None)
        assert failed.code
        assert "no transport works: nbd: no-such-nbdkit is not installed" in failed.err
        assert sorted(vm.name for vm in lab.vms()) == ["alone", "alone-2"]
        told = lab.leases()
        assert (told["held"], told["aborted"], told["timed_out"]) == ([], 0, 0)


def test_a_killed_engine_s_lease_ends_by_itself_and_the_next_run_is_right(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=0, extra=(ALONE,))
    lab.settings(lease_seconds=1)
    with engine_without_means(lab, tmp_path / "engine") as engine:
        lab.inject("GET /nfc", delay_seconds=1.5, times=2)
        engine.api.submit(BackUpVm("alone"))
        engine.until(lambda: lab.calls().get("GET /nfc"))
        engine.kill()
        assert lab.leases()["held"]
        assert lab.vm("alone").snapshots
        engine.start()
        engine.until(lambda: not lab.vm("alone").snapshots)
        assert lab.leases()["timed_out"] == 1
        point = engine.back_up("alone")
        engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        assert (lab.leases()["held"], lab.vm("alone").snapshots) == ([], ())


def posted_since(lab: Lab, sent: int) -> bool:
    """Whether a host was sent more disks than so many."""
    return lab.calls().get("POST /nfc", 0) > sent


def test_a_restore_by_import_whose_engine_is_killed_or_that_is_cancelled_leaves_nothing_and_begins_again(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=0, extra=(ALONE,))
    with engine_without_means(lab, tmp_path / "engine") as engine:
        point = engine.back_up("alone")
        again = RestoreToVm(point["id"], "again")
        for how in ("cancelled", "killed"):
            lab.settings(lease_seconds=1 if how == "killed" else 0)
            lab.inject("POST /nfc", delay_seconds=0.6, times=2)
            sent = lab.calls().get("POST /nfc", 0)
            task = engine.api.submit(again)
            engine.until(partial(posted_since, lab, sent))
            assert lab.vm("again").power == "poweredOff"
            if how == "cancelled":
                engine.api.delete(f"/v1/tasks/{task}")
            else:
                engine.kill()
                assert lab.leases()["held"]
                engine.start()
            engine.until(lambda: [vm.name for vm in lab.vms()] == ["alone"])
            engine.until(lambda: lab.leases()["held"] == [])
        told = engine.finished(again)
        assert (told["resumed"], told["resumable"]) == (False, False)
        assert_whole(lab, "again", point)
