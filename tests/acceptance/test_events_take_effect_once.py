"""The lab's own log of events against the engine's journal, over kills, restarts and lost sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.engine_process import EngineProcess, engine_for
from tests.lab.vcenter import MIB, Lab

NORMALISED = {
    "VmPoweredOnEvent": "vm.powered_on",
    "VmPoweredOffEvent": "vm.powered_off",
    "VmSuspendedEvent": "vm.suspended",
    "VmMigratedEvent": "vm.migrated",
    "DrsVmMigratedEvent": "vm.migrated",
    "VmRelocatedEvent": "vm.relocated",
    "VmCreatedEvent": "vm.created",
    "VmClonedEvent": "vm.cloned",
    "VmRemovedEvent": "vm.removed",
    "VmReconfiguredEvent": "vm.reconfigured",
    "VmRenamedEvent": "vm.renamed",
    "VmRegisteredEvent": "vm.registered",
}
"""What the lab posts and the engine calls it; the lab's other types (tasks, logins) lead to nothing."""

ON_EVERY_MOVE = """
schema = 1
[policy.moved]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
[[policy.moved.trigger]]
on = "vm.migrated"
cause = "drs"
"""


def test_the_journal_equals_the_labs_log_after_5000_events_two_kills_a_restart_and_two_lost_sessions(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=3, tracking=True, disk_bytes=8 * MIB)
    names = [vm.name for vm in lab.vms()]
    before = {event.key for event in lab.event_log()}
    posted = Posting(lab, names)
    with engine_for(lab, tmp_path / "engine", ON_EVERY_MOVE) as engine:
        engine.start()

        posted.burst(500)
        lab.kill_sessions()
        posted.burst(200)
        engine.until(lambda: engine.status()["queue"]["running"])
        engine.kill()

        posted.burst(150)
        engine.start()
        posted.burst(300)
        lab.kill_sessions()
        posted.burst(200)
        engine.stop()

        posted.burst(100)
        engine.start()
        posted.burst(200)
        engine.until(lambda: engine.status()["queue"]["running"])
        engine.kill()

        engine.start()
        posted.burst(50)
        engine.until(lambda: journal(engine) == wanted(lab, before))
        engine.until(lambda: not any(engine.status()["queue"].values()))

        assert sum(wanted(lab, before).values()) >= 5000
        assert set(journal(engine).values()) == {1}
        assert journal(engine) == wanted(lab, before)
        assert engine.rows("SELECT key FROM events WHERE key NOT LIKE 'vc:%'") == []
        assert_one_point_per_job(engine, names)
        assert all(not vm.snapshots for vm in lab.vms())


class Posting:
    """What people, guests and DRS do."""

    def __init__(self, lab: Lab, names: list[str]) -> None:
        self.lab, self.names = lab, names

    def burst(self, count: int) -> None:
        """So many posted events of each VM, of types that are followed and of one that is not; and real moves."""
        for name in self.names:
            self.lab.post_event("VmRenamedEvent", name, count=count // 2)
            self.lab.post_event("VmMessageEvent", name, count=10)
            self.lab.drs_move(name)
            self.lab.post_event("VmReconfiguredEvent", name, count=count // 2)
        self.lab.migrate(self.names[0])
        self.lab.power_off(self.names[1])
        self.lab.power_on(self.names[1])


def wanted(lab: Lab, before: set[int]) -> Counter[tuple[int, str, str]]:
    """Key, type and moref of each event that the lab posted and the engine has a name for."""
    return Counter(
        (event.key, NORMALISED[event.type], event.vm)
        for event in lab.event_log()
        if event.key not in before and event.type in NORMALISED
    )


def journal(engine: EngineProcess) -> Counter[tuple[int, str, str]]:
    """The same of the engine's journal."""
    rows = engine.rows("SELECT key, type, vm_id FROM events WHERE source LIKE 'vcenter:%'")
    morefs = {row["vm_id"]: engine.lab.vm(row["vm"]).moref for row in engine.status()["vms"]}
    return Counter((int(row["key"].rpartition(":")[2]), row["type"], morefs[row["vm_id"]]) for row in rows)


def assert_one_point_per_job(engine: EngineProcess, names: list[str]) -> None:
    """No event has two jobs, no job two restore points, and each restore point has a job that is done."""
    jobs = engine.rows("SELECT event_key, state, point, id FROM jobs")
    assert {job["state"] for job in jobs} == {"done"}
    assert max(Counter(job["event_key"] for job in jobs).values()) == 1
    kept = [point["id"] for name in names for point in engine.points(name)]
    assert sorted(kept) == sorted(job["point"] for job in jobs)
    led = engine.rows("SELECT event_key, count(*) AS times FROM decisions WHERE job <> '' GROUP BY event_key")
    assert led
    assert {row["times"] for row in led} == {1}
