"""However often a follower dies and reads the overlap again, each event comes once and none is lost."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim

from connectors.hypervisor import Cursor
from connectors.vsphere.events import Position

VC = "vc"
START = datetime(2026, 11, 22, 12, tzinfo=UTC)
OVERLAP = timedelta(seconds=600)
LATENESS = 599


def event(key: int, at: datetime) -> Any:
    made = vim.event.VmPoweredOnEvent(key=key, chainId=key, createdTime=at, userName="")
    made.vm = vim.event.VmEventArgument(name="web-01", vm=vim.VirtualMachine("vm-1"))
    return made


@st.composite
def histories(draw: st.DrawFn) -> list[Any]:
    """Events in the order in which vCenter records them; some are told late, but within the overlap."""
    steps = draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, LATENESS)), max_size=40))
    now = START
    recorded = []
    for key, (pause, late) in enumerate(steps, start=1):
        now += timedelta(seconds=pause)
        recorded.append(event(key, max(START, now - timedelta(seconds=late))))
    return recorded


@given(histories(), st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30))
def test_each_event_comes_once_across_deaths_and_lost_sessions(
    history: list[Any], lives: list[tuple[int, bool]]
) -> None:
    kept = Cursor(VC, START, 0)
    position = Position.behind(kept)
    handled: list[str] = []
    recorded = 0
    for more, died in [*lives, (len(history), True), (0, True)]:
        recorded = min(recorded + more, len(history))
        if died:
            position = Position.behind(kept)
        begin = position.at - OVERLAP
        window = [e for e in history[:recorded] if e.createdTime >= begin]
        batch = position.batch(VC, position.take(window, VC, OVERLAP))
        handled.extend(e.key for e in batch.events)
        assert batch.gap == ""
        kept = batch.cursor
    assert sorted(handled) == sorted({f"vc:{VC}:{int(e.createdTime.timestamp())}:{e.key}" for e in history})
