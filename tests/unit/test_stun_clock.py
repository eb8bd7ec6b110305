"""A look at a VM's log tells what was written since the one before, once, whatever became of the log meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from connectors.hypervisor import Stuns
from connectors.vsphere import stun
from connectors.vsphere.folder_files import FolderFile, Part
from connectors.vsphere.session import Session, SessionSettings
from connectors.vsphere.stun import StunClock
from policies.facts import Address, PowerState, Vm, VmId

BEGINS = b"2026-11-23T11:00:00.000Z| vmx| I005: Log for VMware ESX pid=1 version=7.0.3\n"
OTHER = b"2026-11-23T12:30:00.000Z| vmx| I005: Log for VMware ESX pid=2 version=7.0.3\n"
NOISE = b"2026-11-23T12:00:00.000Z| vmx| I005: nothing that matters\n"


def line(us: int) -> bytes:
    return b"2026-11-23T12:00:00.000Z| vcpu-0| I005: Checkpoint_Unstun: vm stopped for %d us\n" % us


@dataclass
class Log:
    """What lies on the datastore, and how much of it was asked for."""

    data: bytes = BEGINS
    most: int = 0

    async def part(self, session: Session, file: FolderFile, start: int, length: int) -> Part:
        self.most = max(self.most, length)
        return Part(self.data[start : start + length], len(self.data))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()

    async def place(self: StunClock) -> tuple[str, object]:
        return "[ssd-1] web/vmware.log", None

    async def datacenter(session: Session, host: object) -> str:
        return "DC0"

    monkeypatch.setattr(stun, "read_part", log.part)
    monkeypatch.setattr(stun, "datacenter_of_host", datacenter)
    monkeypatch.setattr(StunClock, "_place", place)
    return log


async def begun() -> StunClock:
    """A clock at which somebody has looked once."""
    session = Session(SessionSettings(host="vc", user="u", password=lambda: "p", engine_id="e"))
    clock = StunClock(session, Vm(id=VmId("v"), address=Address("vc", "vm-1"), name="web", power=PowerState.ON))
    assert await clock.look() is None
    return clock


async def test_each_line_is_told_at_one_look(log: Log) -> None:
    log.data += line(1_000_000)
    clock = await begun()
    assert await clock.look() == Stuns()
    log.data += line(2_000_000) + NOISE + line(3_000_000)
    assert await clock.look() == Stuns((2.0, 3.0))
    log.data += line(4_000_000)
    assert await clock.look() == Stuns((4.0,))


async def test_a_log_that_was_empty_is_the_same_log_when_it_has_begun(log: Log) -> None:
    log.data = b""
    clock = await begun()
    log.data = BEGINS + line(1_000_000)
    assert await clock.look() == Stuns((1.0,))
    assert await clock.look() == Stuns()


async def test_a_log_that_was_cut_short_or_begun_anew_is_read_from_its_start(log: Log) -> None:
    log.data = BEGINS + NOISE * 10
    clock = await begun()
    log.data = BEGINS + NOISE * 5 + line(1_000_000)
    assert await clock.look() == Stuns((1.0,))
    log.data = OTHER + line(2_000_000) + NOISE * 100
    assert await clock.look() == Stuns((2.0,))
    log.data += line(3_000_000)
    assert await clock.look() == Stuns((3.0,))


async def test_a_line_of_the_guest_is_none_where_the_log_is_read_from_its_middle(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = line(9_000_000) + line(1_000_000)
    monkeypatch.setattr(stun, "MOST_BYTES", len(tail))
    clock = await begun()
    log.data += NOISE * 10 + b"2026-11-23T12:00:00.000Z| vmx| I005: Guest: " + tail
    assert await clock.look() == Stuns((1.0,))
    assert await clock.look() == Stuns()


async def test_however_much_is_written_no_more_than_some_mib_are_read(log: Log) -> None:
    clock = await begun()
    log.data += b"x" * (8 << 20)  # one line without an end
    assert await clock.look() == Stuns()
    log.data += b"\n" + line(1_000_000)
    assert await clock.look() == Stuns((1.0,))
    assert log.most == stun.MOST_BYTES <= 4 << 20
