"""NBD through a real nbdkit: the bytes of the snapshot, nothing left behind, no secret shown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.errors import ReadFailed, TransportFailed
from connectors.nbd import NbdDisk
from connectors.vsphere import vddk
from connectors.vsphere.vddk import NetworkDisk, open_network_disk
from tests.lab.reaching import (
    MIB,
    connected,
    contents,
    frozen_bytes,
    nbdkit_children,
    snapshotted,
    transport_settings,
)
from tests.lab.vcenter import Lab

FreshLab = Callable[..., Lab]


async def test_every_disk_of_a_snapshot_is_read_as_it_was_frozen_while_the_guest_writes(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, disk_bytes=16 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "db-03") as snapshot:
        assert len(snapshot.disks) == 2
        with lab.busy_guest("db-03"):
            for disk in snapshot.disks:
                which = NetworkDisk(snapshot.vm.address.moref, disk.disk.file_name, "run-1", snapshot.moref)
                async with open_network_disk(vcenter.session, which, settings) as opened:
                    assert await contents(opened) == frozen_bytes(lab, snapshot, disk.disk.key)
    assert nbdkit_children() == []
    assert names_in(tmp_path) == ["lab1"]


async def test_the_password_is_shown_nowhere(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        async with open_network_disk(vcenter.session, which, settings):
            (pid,) = nbdkit_children()
            shown = shown_of(pid)
            assert lab.password.encode() not in shown
            assert b"password=-" in shown
            (folder,) = (name for name in names_in(tmp_path) if name.startswith("backstay-"))
            assert names_in(tmp_path / folder) == ["nbd", "owner", "pid"]


async def test_a_refused_login_is_told_in_nbdkit_s_words_without_the_password(
    fresh_lab: FreshLab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=4 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        record = lab.root / "lab.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"password": "changed meanwhile"}))
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        with pytest.raises(TransportFailed, match="incorrect user name or password") as caught:
            async with open_network_disk(vcenter.session, which, settings):
                pass
    assert lab.password not in str(caught.value) + caplog.text
    assert nbdkit_children() == []


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (NetworkDisk("vm-1", "[fast-1] no/no.vmdk", "r", "snapshot-999"), "snapshot-999 not found"),
        (NetworkDisk("vm-1", "no disk", "r", "snapshot-999"), "not the name of a disk"),
    ],
)
async def test_what_vddk_does_not_find_is_told(lab: Lab, tmp_path: Path, disk: NetworkDisk, says: str) -> None:
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter:
        with pytest.raises(TransportFailed, match=says):
            async with open_network_disk(vcenter.session, disk, settings):
                pass


async def test_an_nbdkit_that_dies_midway_is_a_failed_read_and_is_cleaned_up(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=16 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        with pytest.raises(ReadFailed, match=r"offset \d+.*closed the connection|cut"):
            async with open_network_disk(vcenter.session, which, settings) as opened:
                await opened.read_into(0, memoryview(bytearray(MIB)))
                (pid,) = nbdkit_children()
                os.kill(pid, signal.SIGKILL)
                for offset in range(0, 16 * MIB, MIB):
                    await opened.read_into(offset, memoryview(bytearray(MIB)))
    assert nbdkit_children() == []
    assert names_in(tmp_path) == ["lab1"]


async def test_a_read_error_of_vddk_is_a_failed_read_with_its_offset_and_words(
    fresh_lab: FreshLab, tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, disk_bytes=16 * MIB)
    settings = transport_settings(lab, tmp_path)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        (lab.root / "nbd-faults.json").write_text(json.dumps({"error_at": 3 * MIB, "times": 9}))
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        with pytest.raises(ReadFailed, match=f"offset {3 * MIB}") as caught:
            async with open_network_disk(vcenter.session, which, settings) as opened:
                for offset in range(0, 16 * MIB, MIB):
                    await opened.read_into(offset, memoryview(bytearray(MIB)))
        assert "NBD_ERR_GENERIC" in "".join(caught.value.__notes__)


async def test_an_error_that_passes_is_retried_below_us(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, retries=2)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        (lab.root / "nbd-faults.json").write_text(json.dumps({"error_at": 0, "times": 1}))
        disk = snapshot.disks[0].disk
        which = NetworkDisk(snapshot.vm.address.moref, disk.file_name, "run-1", snapshot.moref)
        async with open_network_disk(vcenter.session, which, settings) as opened:
            assert await contents(opened) == frozen_bytes(lab, snapshot, disk.key)


async def test_a_cancelled_read_leaves_no_nbdkit(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 * MIB)
    settings = transport_settings(lab, tmp_path, stop_seconds=1.0)
    (lab.root / "nbd-faults.json").write_text(json.dumps({"hang_at": 0, "times": 1}))
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        reading = asyncio.Event()

        async def read() -> None:
            async with open_network_disk(vcenter.session, which, settings) as opened:
                reading.set()
                await opened.read_into(0, memoryview(bytearray(MIB)))

        task = asyncio.create_task(read())
        await reading.wait()
        assert nbdkit_children()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nbdkit_children() == []
    assert names_in(tmp_path) == ["lab1"]


async def test_the_statistics_of_a_disk_count_what_was_read(fresh_lab: FreshLab, tmp_path: Path) -> None:
    lab = fresh_lab(vms=1, disk_bytes=8 * MIB)
    stats = tmp_path / "stats"
    stats.mkdir()
    settings = transport_settings(lab, tmp_path, stats_folder=stats)
    async with connected(lab, settings) as vcenter, snapshotted(vcenter, lab, "web-01") as snapshot:
        which = NetworkDisk(snapshot.vm.address.moref, snapshot.disks[0].disk.file_name, "run-1", snapshot.moref)
        async with open_network_disk(vcenter.session, which, settings) as opened:
            assert isinstance(opened, NbdDisk)
            await opened.read_into(0, memoryview(bytearray(3 * MIB)))
    (written,) = stats.glob("run-1-*.stats")
    assert "3.00 MiB" in written.read_text() or str(3 * MIB) in written.read_text()


def test_a_machine_without_nbdkit_or_vddk_is_told_what_is_missing(lab: Lab, tmp_path: Path) -> None:
    assert vddk.refusal(transport_settings(lab, tmp_path)) == ""
    assert "not installed" in vddk.refusal(transport_settings(lab, tmp_path, nbdkit="no-such-nbdkit"))
    assert "VMware's VDDK" in vddk.refusal(transport_settings(lab, tmp_path, plugin=("vddk",)))
    assert "/no/vddk" in vddk.refusal(transport_settings(lab, tmp_path, libdir="/no/vddk"))


def shown_of(pid: int) -> bytes:
    """What every user sees of a process, and what its owner sees."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
