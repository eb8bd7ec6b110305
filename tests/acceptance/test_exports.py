"""VMs that only vCenter's own export reaches: no proxy, no nbdkit, no VDDK."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.commands import BackUpVm, RestoreToVm
from engine.failures import RemoteFailure
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


def test_a_vm_is_backed_up_by_export_alone_and_later_runs_store_only_what_changed(
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
                assert [way for way, _ in json.loads(disk["fallbacks"])] == ["hotadd", "nbd"]
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
        [first] = [disk for disk in point["disks"] if disk["label"] == "Hard disk 1"]
        assert first["changes"] == "whole: an export brings all of a disk"
        assert first["stored_bytes"] <= 4 * 65536
        assert 'backstay_full_reads_total{reason="exported"} 2.0' in engine.metrics()
        assert not lab.vm("alone").snapshots
        with pytest.raises(RemoteFailure, match="by export a disk is only read: vCenter imports whole VMs"):
            engine.finished(RestoreToVm(point["id"], "alone-2"))
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
