"""A real Prometheus watches a real engine through a day in the lab: every panel has data, quiet alerts are quiet."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import nats
import pytest

from engine.commands import BackUpVm, Verify
from engine.failures import RemoteFailure
from metrics.grafana.build import FILE as DASHBOARD
from tests.acceptance.engine_process import ON_REQUEST, EngineProcess, engine_for
from tests.lab.nats import NatsServer, nats_server
from tests.lab.prometheus import Prometheus, dashboard_expressions, prometheus
from tests.lab.vcenter import MIB, Lab, start_lab

RULES = DASHBOARD.parents[1] / "alerts" / "backstay.rules.yml"

NOTHING_YET = 'schema = 1\n[policy.gold]\nselect.all = ["name:nobody"]\n'
GOLD = """
schema = 1
[policy.gold]
rpo = "1h"
select.any = ["name:{first}", "name:{second}", "name:{excluded}"]
select.none = ["name:{excluded}"]
consistency = {{ want = "filesystem", fallback = "crash" }}
retention.keep_last = 5
verify.every = "30d"
rehearse.every = "30d"
notify = ["ops"]
[[policy.gold.trigger]]
on = "vm.migrated"
cause = "drs"
"""

NOBODY_HEARS = '[notify.ops]\nwebhook = "file:ops.url"\n'


@dataclass
class Day:
    """What was played, and who watched it."""

    lab: Lab
    engine: EngineProcess
    bus: NatsServer
    prometheus: Prometheus
    protected: tuple[str, str]
    excluded: str
    bare: str

    def only(self, expression: str) -> float:
        [sample] = self.prometheus.query(expression)
        return sample.value

    def points(self) -> list[dict[str, Any]]:
        return [point for vm in self.protected for point in self.engine.points(vm)]

    def reaches(self, expression: str) -> None:
        """Wait until the comparison holds: metrics that are read from tables come every few seconds."""
        self.prometheus.wait_for(expression, seconds=20)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    root = tmp_path_factory.mktemp("day")
    with (
        start_lab(root / "lab", vms=4, disks_per_vm=1, disk_bytes=16 * MIB, tracking=True) as lab,
        nats_server(root / "nats") as bus,
        engine_for(
            lab, root / "engine", NOTHING_YET, more=bus_section(bus) + NOBODY_HEARS, timers='rehearsals = "1s"'
        ) as engine,
    ):
        (engine.home / "ops.url").touch(mode=0o600)
        (engine.home / "ops.url").write_text("http://127.0.0.1:9/")
        first, second, excluded, bare = (vm.name for vm in lab.vms())
        engine.start()
        with watched(root / "prometheus", engine) as server:
            day = Day(lab, engine, bus, server, (first, second), excluded, bare)
            play(day)
            yield day


def bus_section(bus: NatsServer) -> str:
    return f'[bus]\nservers = "{bus.url}"\nsite = "lab"\nmonitor_url = "{bus.monitor_url}"\n'


@contextmanager
def watched(directory: Path, engine: EngineProcess) -> Iterator[Prometheus]:
    address = urlsplit(engine.status()["engine"]["addresses"]["metrics"]).netloc
    with prometheus(directory, [address], rules=[RULES]) as server:
        server.wait_for('backstay_vms{vcenter="lab"} == 4')
        yield server


def play(day: Day) -> None:
    lab, engine, (first, second) = day.lab, day.engine, day.protected
    gold = GOLD.format(first=first, second=second, excluded=day.excluded)
    (engine.policies / "all.toml").write_text(gold)
    engine.until(lambda: engine.points(first) and engine.points(second), seconds=60)

    lab.write_random_grains(first, share=0.05, seed=1)
    lab.drs_move(first)
    engine.until(lambda: len(engine.points(first)) == 2, seconds=60)

    lab.inject("CreateSnapshotEx_Task", "TooManySnapshotLevels", vm=lab.vm(second).moref)
    with pytest.raises(RemoteFailure):
        engine.finished(BackUpVm(second))

    engine.finished(Verify())
    asyncio.run(send(day))
    engine.until(lambda: all(point["holds"] for point in engine.points(first)), seconds=60)
    day.reaches("increase(backstay_messages_refused_total{reason='malformed'}[1h]) > 0")
    day.reaches("backstay_restore_points_held == 3")


async def send(day: Day) -> None:
    """A backup and a hold are asked for, and something is said that nobody understands."""
    client = await nats.connect(day.bus.url)
    try:
        stream = client.jetstream()
        await stream.publish("backstay.v1.lab.cmd.backup", command("backup", day.protected[0]))
        await stream.publish("backstay.v1.lab.cmd.hold", b"this is not JSON")
        await asyncio.to_thread(day.engine.until, lambda: len(day.engine.points(day.protected[0])) == 3, seconds=60)
        await stream.publish("backstay.v1.lab.cmd.hold", command("hold", day.protected[0]))
    finally:
        await client.close()


def command(what: str, vm: str) -> bytes:
    data = {"vm": {"name": vm}, "reason": "a test asks"}
    kind = f"io.backstay.command.{what}.v1"
    return json.dumps(
        {"specversion": "1.0", "id": f"{what}-{vm}", "source": "/tests", "type": kind, "data": data}
    ).encode()


async def stored(bus: NatsServer, stream: str) -> list[Any]:
    """Every message of a stream, oldest first."""
    client = await nats.connect(bus.url)
    try:
        manager = client.jetstream()
        state = (await manager.stream_info(stream)).state
        numbers = range(state.first_seq, state.last_seq + 1) if state.messages else ()
        return [await manager.get_msg(stream, number) for number in numbers]
    finally:
        await client.close()


def test_a_run_does_not_wait_for_a_bus_that_is_away_and_is_told_when_it_is_back(tmp_path: Path) -> None:
    with (
        start_lab(tmp_path / "lab", vms=1, disks_per_vm=1, disk_bytes=8 * MIB) as lab,
        nats_server(tmp_path / "nats") as bus,
        engine_for(lab, tmp_path / "engine", ON_REQUEST, more=bus_section(bus)) as engine,
    ):
        [vm] = lab.vms()
        engine.start()
        engine.until(lambda: connected(engine) == 1)
        bus.kill()
        engine.until(lambda: connected(engine) == 0)
        point = engine.back_up(vm.name)
        engine.until(lambda: any("about runs not sent" in problem for problem in engine.problems()))
        bus.start()
        engine.until(lambda: len(asyncio.run(stored(bus, "BACKSTAY_LAB_RUNS"))) == 2, seconds=60)
        started, done = (json.loads(m.data)["data"] for m in asyncio.run(stored(bus, "BACKSTAY_LAB_RUNS")))
        assert (started["state"], done["state"], done["point"]) == ("started", "done", point["id"])
        assert done["run"] == started["run"] == point["attributes"]["run"]
        assert not any("about runs not sent" in problem for problem in engine.problems())


def connected(engine: EngineProcess) -> float:
    with urlopen(engine.status()["engine"]["addresses"]["metrics"], timeout=10) as answer:
        page = answer.read().decode()
    found = re.search(r'^backstay_connected\{peer="nats"\} ([\d.]+)$', page, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("panel", dashboard_expressions(DASHBOARD))
def test_every_expression_of_the_dashboard_shows_data_after_a_day_in_the_lab(day: Day, panel: str) -> None:
    assert day.prometheus.wait_for(dashboard_expressions(DASHBOARD)[panel])


def test_nothing_fires_and_only_the_vm_without_a_policy_is_on_its_way_to(day: Day) -> None:
    day.reaches("backstay_verify_state{state='ok'} == 1")
    day.reaches("backstay_vms_unprotected == 1")
    day.reaches("ALERTS{alertname='VMUnprotected'}")
    assert day.prometheus.alerts() == {"VMUnprotected": "pending"}
    day.reaches("count(ALERTS) == 1")
    [alert] = day.prometheus.query("ALERTS")
    assert alert.labels["vm"] == day.bare


def test_the_last_success_is_0_for_a_vm_that_was_never_backed_up_and_a_time_for_the_others(day: Day) -> None:
    day.reaches("count(backstay_vm_last_success_timestamp_seconds > 0) == 2")
    seen = by_vm(day, "backstay_vm_last_success_timestamp_seconds")
    assert seen[day.bare] == seen[day.excluded] == 0.0
    assert day.only("time()") - 300 < min(seen[name] for name in day.protected)


def test_coverage_tells_protected_unprotected_and_excluded_vms_apart(day: Day) -> None:
    day.reaches("backstay_vms_excluded == 1")
    assert day.only("backstay_vms") == 4.0
    assert day.only("backstay_vms_unprotected") == 1.0
    assert by_vm(day, "backstay_vm_protected") == {**dict.fromkeys(day.protected, 1.0), day.bare: 0.0}
    slack = by_vm(day, "backstay_vm_rpo_slack_seconds")
    assert set(slack) == set(day.protected)
    assert all(3000 < seconds < 3600 for seconds in slack.values())


def by_vm(day: Day, metric: str) -> Mapping[str, float]:
    return {sample.labels["vm"]: sample.value for sample in day.prometheus.query(metric)}


def test_runs_and_their_bytes_are_counted_under_their_policy(day: Day) -> None:
    day.reaches('backstay_runs_total{policy="gold",result="done"} >= 4')
    day.reaches('backstay_runs_total{policy="gold",result="failed"} == 1')

    def counted(kind: str) -> bool:
        shown = day.only(f'backstay_bytes_{kind}_total{{policy="gold"}}')
        stored = sum(int(point[f"{kind}_bytes"]) for point in day.points())
        return shown == stored > 0

    # The job that failed is tried again some time: look until both sides have the same of it.
    day.engine.until(lambda: counted("read") and counted("stored"))
    assert day.only('backstay_bytes_deduplicated_total{policy="gold"}') > 0
    assert day.only("sum(backstay_full_reads_total{reason='first'})") == 2.0
    day.engine.until(lambda: day.only("backstay_incremental_reads_total") == len(day.points()) - 2)
    day.engine.until(lambda: day.only('backstay_disks_read_total{transport="nbd"}') == len(day.points()))


def test_every_stage_of_a_run_took_time(day: Day) -> None:
    spent = {s.labels["stage"]: s.value for s in day.prometheus.query("backstay_run_stage_seconds_total")}
    assert spent.pop("other") == 0.0
    assert set(spent) == {"queued", "snapshot", "changes", "open", "read", "close", "release", "commit"}
    assert all(seconds > 0 for seconds in spent.values()), spent


def test_events_are_counted_with_their_lag_and_their_source_is_alive(day: Day) -> None:
    assert day.only('backstay_events_total{type="vm.migrated"}') == 1.0
    assert day.only('backstay_events_total{type="backup.requested"}') == 2.0
    assert day.only('backstay_events_total{type="hold.requested"}') == 1.0
    assert day.only("sum(backstay_events_found_by_reconcile_total)") == 0.0
    for source in ("vcenter", "nats"):
        assert 0.0 <= day.only(f'backstay_event_lag_seconds{{source="{source}"}}') < 30.0
        assert day.only(f'time() - backstay_event_source_alive_timestamp_seconds{{source="{source}"}}') < 30.0


def test_the_peers_are_connected_and_their_clocks_and_disks_are_known(day: Day) -> None:
    assert day.only('backstay_connected{peer="vcenter"}') == day.only('backstay_connected{peer="nats"}') == 1.0
    assert abs(day.only('backstay_clock_skew_seconds{peer="vcenter"}')) < 5.0
    assert day.only('backstay_nats_durability{state="durable"}') == 1.0


def test_the_repository_is_as_large_as_it_says_and_was_verified(day: Day) -> None:
    day.reaches("backstay_restore_points_held == 3")
    shown = {
        "points": "backstay_restore_points",
        "chunks": "backstay_repository_chunks",
        "packs": "backstay_repository_packs",
        "stored_bytes": 'backstay_repository_size_bytes{kind="stored"}',
    }
    told = day.engine.status

    def agrees() -> bool:
        return all(day.only(metric) == told()["repository"][key] > 0 for key, metric in shown.items())

    day.engine.until(agrees)
    assert day.only("time() - backstay_verify_last_success_timestamp_seconds") < 300
    assert day.only('backstay_operations_total{operation="verify",result="done"}') == 1.0


def test_no_snapshot_is_left(day: Day) -> None:
    day.reaches("backstay_orphan_snapshots == 0")
    assert day.only("backstay_foreign_snapshots") == 0.0


def test_a_message_that_is_not_json_is_refused_counted_and_kept_as_a_dead_letter(day: Day) -> None:
    assert day.only('backstay_messages_refused_total{reason="malformed"}') == 1.0
    [letter] = asyncio.run(stored(day.bus, "BACKSTAY_LAB_DEAD"))
    assert letter.data == b"this is not JSON"
    assert letter.subject == "backstay.v1.lab.dlq.cmd.hold"
    assert "JSON" in letter.headers["Backstay-Reason"]


def test_every_run_is_told_to_the_bus_once_a_state(day: Day) -> None:
    def told(state: str) -> list[dict[str, Any]]:
        messages = [json.loads(message.data)["data"] for message in asyncio.run(stored(day.bus, "BACKSTAY_LAB_RUNS"))]
        return [one for one in messages if one["state"] == state]

    day.engine.until(lambda: sorted(one["point"] for one in told("done")) == sorted(p["id"] for p in day.points()))
    day.engine.until(lambda: len(told("started")) == len(told("done")) + 1)
    [failed] = told("failed")
    assert failed["vm"] == day.protected[1] and failed["error"]
