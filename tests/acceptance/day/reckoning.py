"""What a day came to: by the independent reader and the lab's own records, never by Backstay's word alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any

from engine.commands import RestoreToFile
from engine.failures import RemoteFailure
from tests.acceptance.day.script import BIG, PROXY
from tests.acceptance.day.world import BY_HAND, World, say
from tests.acceptance.test_events_take_effect_once import NORMALISED
from tests.lab.vcenter import Frozen

READER = Path(__file__).with_name("reader.py")
OURS = {"engine", "connectors", "storage", "policies", "metrics", "tests", "benchmarks"}

DELTA = re.compile(r"-[0-9]{6}\.vmdk$")


@dataclass
class Figures:
    """The last line of `make day`."""

    vms: int = 0
    events: int = 0
    restore_points: int = 0
    restored_identical: int = 0
    leftover_snapshots: int = 0
    leftover_disks: int = 0
    silently_unprotected: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Reckoning:
    """The figures, and whatever is not as it must be, in sentences."""

    figures: Figures = field(default_factory=Figures)
    wrong: list[str] = field(default_factory=list)

    def claim(self, held: bool, sentence: str) -> None:
        """Note and tell what does not hold."""
        if not held:
            self.wrong.append(sentence)
            say(f"WRONG  {sentence}")


class Reader:
    """The process that reads vCenter and compares bytes without any code of ours."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(READER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, do: str, **order: object) -> dict[str, Any]:
        """The answer to an order; RuntimeError with what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **order}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"the reader could not {do}: {answer['error']}")
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextmanager
def reading() -> Iterator[Reader]:
    reader = Reader()
    try:
        yield reader
    finally:
        reader.stop()


def reckon(world: World, before: set[int], morning: Mapping[str, Any], vms: int, scratch: Path) -> Reckoning:
    """Everything that must hold after a day. The engine runs when it begins, and is stopped on the way.

    `before` are keys of events that the engine did not have to follow, `morning` what the reader saw of the proxy.
    """
    found = Reckoning()
    found.figures.vms = vms
    evening = datetime.now(UTC)
    points = list(world.engine.api.get("/v1/points"))
    _compare_restored(world, points, scratch, found)
    _compare_events(world, before, found)
    points = list(world.engine.api.get("/v1/points"))
    _jobs_once(world, found)
    standing = world.engine.status()
    published = datetime.fromisoformat(standing["upkeep"]["metrics"].partition(" ")[0])
    metrics = world.engine.metrics() if published > evening else ""
    world.engine.stop()
    with reading() as reader:
        facts = world.lab.facts()
        login = {key: facts[key] for key in ("host", "port", "password", "ca_file")}
        reader.ask("login", user=facts["admin"], **login)
        seen = reader.ask("inventory")["vms"]
        _left_over(seen, morning, found)
        _protected(seen, standing, points, metrics, found)
        _movable(reader, seen, found)
        imported = set(reader.ask("modules")["modules"])
        found.claim(not imported & OURS, f"the reader imported {imported & OURS}")
    for transport in BIG:
        found.claim(world.moved[transport] > 0, f"no move came while a disk was read by {transport}")
    found.claim(world.kills > 0, "the engine was never killed")
    return found


def proxy_of(seen: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The proxy among the VMs that the reader saw."""
    return next(vm for vm in seen if vm["name"] == PROXY.name)


def _left_over(seen: Sequence[Mapping[str, Any]], morning: Mapping[str, Any], found: Reckoning) -> None:
    left = [(vm["name"], name) for vm in seen for name in vm["snapshots"] if name != BY_HAND]
    found.figures.leftover_snapshots = len(left)
    found.claim(not left, f"snapshots are left: {left}")
    attached = [disk for disk in proxy_of(seen)["disks"] if disk not in morning["disks"]]
    users = Counter(DELTA.sub(".vmdk", disk) for vm in seen for disk in vm["disks"])
    shared = [disk for disk, count in users.items() if count > 1 and disk not in map(_base, attached)]
    found.figures.leftover_disks = len(attached) + len(shared)
    found.claim(not attached, f"disks are left attached to the proxy: {attached}")
    found.claim(not shared, f"disks are attached to two VMs: {shared}")


def _base(disk: str) -> str:
    return DELTA.sub(".vmdk", disk)


def _movable(reader: Reader, seen: Sequence[Mapping[str, Any]], found: Reckoning) -> None:
    for vm in seen:
        locked = [method for method in vm["disabled"] if "igrate" in method or "elocate" in method]
        found.claim(not locked, f"{vm['name']} is locked: {locked}")
        refused = reader.ask("move", moref=vm["moref"])["refused"]
        found.claim(not refused, f"{vm['name']} cannot be moved: {refused}")


def _protected(
    seen: Sequence[Mapping[str, Any]], standing: Mapping[str, Any], points: Sequence[Mapping[str, Any]],
    metrics: str, found: Reckoning,
) -> None:  # fmt: skip
    """Each VM of the reader has a good restore point that is young enough, or Backstay says that it has not.

    Metrics are empty when they have not been published since the evening began.
    """
    rows = {row["vm"]: row for row in standing["vms"]}
    told = {
        *standing["coverage"]["unprotected"],
        *standing["coverage"]["never_backed_up"],
        *standing["coverage"]["late"],
    }
    now = datetime.now(UTC)
    for vm in seen:
        row = rows.get(vm["name"])
        if row is None:
            why = "Backstay does not know it"
        elif metrics and f'moref="{vm["moref"]}"' not in metrics:
            why = "no metric names it"
        elif vm["name"] in told or row["last_failure"] or row["refusal"]:
            continue
        else:
            good = [
                datetime.fromisoformat(point["taken_at"]) for point in points
                if point["vm_id"] == row["vm_id"] and point["complete"] and not point["damaged"]
            ]  # fmt: skip
            goal = timedelta(seconds=row["rpo_seconds"] or 0) + timedelta(minutes=1)
            if good and now - max(good) <= goal:
                continue
            why = f"its newest good restore point is of {max(good)}" if good else "it has no good restore point"
        found.figures.silently_unprotected += 1
        found.claim(False, f"{vm['name']} is silently unprotected: {why}; {row}")


def _compare_events(world: World, before: set[int], found: Reckoning) -> None:
    """Every event of the lab's log that has a name is in the journal once, and nothing that is not in the log.

    Some tasks are told by their TaskEvent alone (a revert), of which the log does not say what it did.
    """
    log: dict[int, str] = {}
    journal: Counter[tuple[int, str]] = Counter()

    def missing() -> Counter[tuple[int, str]]:
        log.clear()
        log.update({event.key: event.type for event in world.lab.event_log() if event.key not in before})
        rows = world.engine.rows("SELECT key, type FROM events WHERE source LIKE 'vcenter:%' AND key LIKE 'vc:%'")
        journal.clear()
        journal.update((int(row["key"].rpartition(":")[2]), row["type"]) for row in rows)
        return Counter((key, NORMALISED[kind]) for key, kind in log.items() if kind in NORMALISED) - journal

    try:
        world.engine.until(lambda: not missing(), seconds=15)
    except AssertionError:
        lost = missing()
        found.claim(False, f"{len(lost)} events are lost: {sorted(lost)[:5]}")
    extra = [
        (key, kind, count) for (key, kind), count in journal.items()
        if count > 1 or NORMALISED.get(log.get(key, ""), kind if log.get(key) == "TaskEvent" else "") != kind
    ]  # fmt: skip
    found.claim(not extra, f"{len(extra)} events are twice in the journal, or others in the lab's log: {extra[:5]}")
    found.figures.events = sum(kind in NORMALISED for kind in log.values())


def _jobs_once(world: World, found: Reckoning) -> None:
    """No event led to two jobs, and no two jobs have one restore point. A tick of the clock may start many."""
    jobs = world.engine.rows("SELECT event_key, point, id, state FROM jobs WHERE kind = 'backup'")
    for what, column in (("event led to two jobs", "event_key"), ("restore point came of two jobs", "point")):
        values = Counter(job[column] for job in jobs if job[column] and not str(job[column]).startswith("clock:"))
        twice = [value for value, count in values.items() if count > 1]
        found.claim(not twice, f"an {what}: {twice}")


def _compare_restored(world: World, points: Sequence[Mapping[str, Any]], scratch: Path, found: Reckoning) -> None:
    """Every restore point, restored by the engine, is what the lab froze for its run's snapshot."""
    frozen: dict[str, list[Frozen]] = {}
    for one in world.lab.frozen():
        if one.name != BY_HAND:
            frozen.setdefault(one.name.rpartition("-")[2], []).append(one)
    twice = {run: len(made) for run, made in frozen.items() if len(made) > 1}
    found.claim(not twice, f"a run made two snapshots: {twice}")
    with reading() as first, reading() as second, ThreadPoolExecutor(2) as pool:
        free: Queue[Reader] = Queue()
        free.put(first)
        free.put(second)

        def restored(nth: int) -> str | None:
            with _taken(free) as reader:
                return _one_restored(world, points[nth], frozen, scratch / f"{nth}", reader)

        answers = list(pool.map(restored, range(len(points))))
    for point, wrong in zip(points, answers, strict=True):
        if wrong is None:
            continue
        found.figures.restore_points += 1
        found.figures.restored_identical += not wrong
        found.claim(not wrong, f"{point['vm']} {point['id']}: {wrong}")
    found.claim(found.figures.restore_points > 0, "there is no restore point")


@contextmanager
def _taken(free: Queue[Reader]) -> Iterator[Reader]:
    reader = free.get()
    try:
        yield reader
    finally:
        free.put(reader)


def _one_restored(
    world: World, point: Mapping[str, Any], frozen: Mapping[str, list[Frozen]], folder: Path, reader: Reader
) -> str | None:
    """What differs, "" when nothing does; None for a restore point that retention took meanwhile."""
    folder.mkdir(parents=True)
    try:
        detail = world.engine.point(point["id"])
        run = detail["attributes"]["run"]
        copies = {disk.label: disk for disk in frozen[run][0].disks} if run in frozen else {}
        labels = [disk["label"] for disk in detail["disks"]]
        if sorted(labels) != sorted(copies):
            return f"it holds {labels}, the lab froze {sorted(copies)}"
        for label in labels:
            target = folder / "disk.raw"
            world.engine.finished(RestoreToFile(point["id"], target, label, force=True))
            if not reader.ask("same", one=str(target), other=str(copies[label].image))["same"]:
                changes = [disk.get("changes") for disk in detail["disks"] if disk["label"] == label]
                return f"{label} is not what the lab froze; it was read as {changes}"
            target.unlink()
        return ""
    except RemoteFailure as failure:
        gone = point["id"] not in {each["id"] for each in world.engine.api.get("/v1/points")}
        return None if gone else f"it cannot be restored: {failure}"
