"""What changed since the last restore point, compared with what the lab froze, and every doubt that leads to Whole."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from connectors.disks import Changes, Extent, Incremental, Whole, merge, subtract
from connectors.errors import Gone, Unreachable
from connectors.hypervisor import Snapshot, TrackedBase, TrackingDoubt
from connectors.vsphere import cbt
from connectors.vsphere.hypervisor import VCenter
from policies.facts import Consistency
from tests.lab.connect import connected
from tests.lab.images import GRAIN
from tests.lab.vcenter import MIB, Lab

Start = Callable[..., Lab]
SIZE = 32 * MIB


@pytest.fixture
def tracked(fresh_lab: Start) -> Lab:
    """A lab with one VM whose changes are tracked."""
    return fresh_lab(vms=1, disk_bytes=SIZE, content=False, tracking=True)


@asynccontextmanager
async def snapshot(
    vcenter: VCenter, run: str, name: str = "web-01", *, doubted: TrackingDoubt | None = None
) -> AsyncIterator[Snapshot]:
    vm = next(vm for vm in await vcenter.inventory() if vm.name == name)
    crash = Consistency.CRASH
    async with vcenter.snapshot(vm, run=run, want=crash, fallback=crash, track=True, doubted=doubted) as made:
        yield made


def base_of(made: Snapshot) -> TrackedBase:
    disk = made.disks[0]
    return TrackedBase(disk.change_id, disk.disk.uuid, disk.disk.capacity_bytes)


async def first(vcenter: VCenter, name: str = "web-01") -> TrackedBase:
    """What a first restore point remembers."""
    async with snapshot(vcenter, "first", name) as made:
        return base_of(made)


async def changes_since(vcenter: VCenter, base: TrackedBase | None, *, distrust: str = "") -> Changes:
    async with snapshot(vcenter, "second") as made:
        return await vcenter.changes(made, made.disks[0], base, distrust=distrust)


def differing(lab: Lab, name: str = "web-01") -> list[Extent]:
    """The grains in which the last two frozen copies of the disk differ."""
    before, after = (frozen.disks[0].image.read_bytes() for frozen in lab.frozen(name)[-2:])
    return merge(
        Extent(at, GRAIN) for at in range(0, len(after), GRAIN) if before[at : at + GRAIN] != after[at : at + GRAIN]
    )


async def test_changes_are_those_that_the_guest_made_however_the_answer_is_paged(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        written = [
            Extent(offset, length) for offset, length in tracked.write_random_grains("web-01", share=0.1, seed=3)
        ]
        tracked.settings(page_areas=3, empty_page_every=1)
        before = tracked.calls().get("QueryChangedDiskAreas", 0)
        found = await changes_since(vcenter, base)
        assert isinstance(found, Incremental)
        assert found.extents == tuple(merge(written))
        assert subtract(differing(tracked), found.extents) == []
        assert tracked.calls()["QueryChangedDiskAreas"] - before > 10


async def test_the_last_grain_after_an_empty_page_is_not_missed(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.write_as_guest("web-01", 0, 0, b"first" * 100)
        tracked.write_as_guest("web-01", 0, SIZE - GRAIN, b"last" * 100)
        tracked.settings(page_areas=1, empty_page_every=1)
        found = await changes_since(vcenter, base)
    assert found == Incremental((Extent(0, GRAIN), Extent(SIZE - GRAIN, GRAIN)))


async def test_a_superset_is_taken_as_it_is_told(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.write_as_guest("web-01", 0, 10 * GRAIN, b"x" * 100)
        tracked.settings(superset_grains=2)
        found = await changes_since(vcenter, base)
    assert isinstance(found, Incremental)
    assert subtract([Extent(10 * GRAIN, GRAIN)], found.extents) == []


async def test_a_quiet_disk_has_no_changes(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        assert await changes_since(vcenter, await first(vcenter)) == Incremental(())


async def test_a_first_run_and_a_distrusted_one_read_the_whole_disk(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        assert await changes_since(vcenter, None) == Whole("there is no earlier restore point of this disk")
        assert await changes_since(vcenter, base, distrust="the VM was reverted") == Whole("the VM was reverted")


async def test_without_tracking_the_reason_why_it_is_off_is_the_reason_for_the_whole_disk(fresh_lab: Start) -> None:
    lab = fresh_lab(vms=1, content=False)
    lab.snapshot("web-01", "by hand")
    async with connected(lab) as vcenter:
        found = await changes_since(vcenter, TrackedBase("52 de/1", "", 64 * MIB))
    assert isinstance(found, Whole)
    assert "not switched on while the VM has snapshots" in found.reason


async def test_tracking_that_was_reset_is_not_trusted(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.set_tracking("web-01", False)
        tracked.set_tracking("web-01", True)
        found = await changes_since(vcenter, base)
    assert found == Whole("change tracking was reset since the last restore point", "tracking_reset")


async def test_a_relocated_disk_is_read_in_full_where_its_tracking_began_anew(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.relocate("web-01", "bulk-1")
        found = await changes_since(vcenter, base)
    assert isinstance(found, Whole)


@pytest.mark.parametrize(
    ("fault", "keys", "fields", "says", "kind"),
    [
        ("FileFault", ("vim.hostd.vmsvc.cbt.noTrack",), {}, "not active", "tracking_off"),
        ("FileFault", ("vim.hostd.vmsvc.cbt.noEpoch",), {}, "does not know the time", "unknown_change_id"),
        ("FileFault", ("vim.hostd.vmsvc.cbt.cannotGetChanges",), {}, "damaged", "tracking_damaged"),
        ("FileFault", (), {}, "cannot be read", "tracking_damaged"),
        ("InvalidArgument", (), {"InvalidProperty": "changeId"}, "does not know the change id", "unknown_change_id"),
        ("InvalidArgument", (), {"InvalidProperty": "deviceKey"}, "refused the question", "query_failed"),
        ("InvalidArgument", (), {"InvalidProperty": "startOffset"}, "refused the question", "query_failed"),
        ("SystemError", (), {"Reason": "x"}, "failed to tell", "query_failed"),
        ("NotSupported", (), {}, "does not tell changes", "tracking_unsupported"),
        ("InvalidState", (), {}, "did not tell the changes", "query_failed"),
        ("VmConfigFault", (), {}, "did not tell the changes", "query_failed"),
        ("NoPermission", (), {"PrivilegeId": "VirtualMachine.Provisioning.DiskRandomRead"}, "lacks", "query_failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_fault_of_tracking_leads_to_the_whole_disk_with_a_reason(
    tracked: Lab,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    keys: tuple[str, ...],
    fields: dict[str, object],
    says: str,
    kind: str,
) -> None:
    monkeypatch.setattr(cbt, "RETRY_SECONDS", 0.01)
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.inject("QueryChangedDiskAreas", fault, times=0, keys=keys, fields=fields)
        found = await changes_since(vcenter, base)
    assert isinstance(found, Whole)
    assert says in found.reason
    assert found.kind == kind


async def test_a_passing_fault_is_asked_again(tracked: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cbt, "RETRY_SECONDS", 0.01)
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.write_as_guest("web-01", 0, 0, b"x")
        tracked.inject("QueryChangedDiskAreas", "SystemError", times=2, fields={"Reason": "x"})
        assert await changes_since(vcenter, base) == Incremental((Extent(0, GRAIN),))


async def test_a_snapshot_that_vanished_ends_the_run(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        async with snapshot(vcenter, "second") as made:
            tracked.remove_snapshot(made.moref)
            with pytest.raises(Gone):
                await vcenter.changes(made, made.disks[0], base)


async def test_a_vcenter_that_is_away_is_told_and_no_reason_to_read_everything(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        async with snapshot(vcenter, "second") as made:
            tracked.outage(0.5)
            with pytest.raises(Unreachable):
                await vcenter.changes(made, made.disks[0], base)
        assert tracked.vm("web-01").snapshots == ()


async def test_a_lost_session_between_pages_goes_unnoticed(tracked: Lab) -> None:
    async with connected(tracked) as vcenter:
        base = await first(vcenter)
        tracked.write_as_guest("web-01", 0, 5 * GRAIN, b"x")
        async with snapshot(vcenter, "second") as made:
            tracked.kill_sessions()
            found = await vcenter.changes(made, made.disks[0], base)
    assert found == Incremental((Extent(5 * GRAIN, GRAIN),))
