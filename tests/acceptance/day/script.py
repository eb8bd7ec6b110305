"""What happens on a day, and when: a pure function of a seed, a number of VMs and a length in seconds.

Names of VMs are those that the day itself leads to: a clone of 9 o'clock may move at 11. Whether a person's action
succeeds is the lab's to say; one that is refused is told and the day goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.lab.machines import MIB, Machine, company

DISK_BYTES = 16 * MIB
BIG_BYTES = 32 * MIB
SLOW_BYTES = 8 * MIB
STORES = ("fast-1", "bulk-1")

PROXY = Machine(name="backstay-proxy", disks=(8 * MIB,), content=False, datastore=STORES[0])
BIG = {
    "hotadd": Machine(name="big-near", disks=(BIG_BYTES,), datastore=STORES[0], tracking=True),
    "nbd": Machine(name="big-far", disks=(BIG_BYTES,), datastore=STORES[1], tracking=True, host=1),
    "export": Machine(name="big-out", disks=(SLOW_BYTES,), datastore=STORES[1], tracking=True, host=1),
    "https": Machine(name="big-off", disks=(2 * SLOW_BYTES,), datastore=STORES[0], tracking=True, host=2, power="off"),
}
"""What moves while it is read, by the transport that the policies choose for it: an export refuses the move."""
HELD = Machine(name="db-held", disks=(BIG_BYTES,), datastore=STORES[1], tracking=True, host=2)
"""What nobody can move while it is read, by NBD: an engine that dies then leaves it so."""

APART = (*BIG.values(), HELD)
"""VMs that stay what they are but for such moves and deaths."""

MOVES = ("migrate", "drs_move", "relocate")

FAULTY_CALLS: Mapping[str, tuple[str, ...]] = {
    "CreateSnapshotEx_Task": ("SystemError", "TaskInProgress", "FileFault"),
    "RemoveSnapshot_Task": ("SystemError", "FileLocked", "TaskInProgress"),
    "ReconfigVM_Task": ("SystemError", "FileLocked", "TaskInProgress"),
    "QueryChangedDiskAreas": ("SystemError", "FileFault"),
    "RetrievePropertiesEx": ("SystemError",),
    "WaitForUpdatesEx": ("SystemError", "InvalidCollectorVersion"),
    "CancelWaitForUpdates": ("SystemError",),
    "CreateContainerView": ("SystemError",),
    "DestroyView": ("SystemError",),
    "CreateFilter": ("SystemError",),
    "CreatePropertyCollector": ("SystemError",),
    "DestroyPropertyCollector": ("SystemError",),
    "CreateCollectorForEvents": ("SystemError",),
    "ReadNextEvents": ("SystemError", "NotAuthenticated"),
    "DestroyCollector": ("SystemError",),
    "CurrentTime": ("SystemError",),
    "DisableMethods": ("SystemError", "NotAuthenticated", "RestrictedVersion"),
    "EnableMethods": ("SystemError", "NotAuthenticated"),
    "ConsolidateVMDisks_Task": ("SystemError", "FileLocked"),
}
"""Calls that the engine makes, and faults that they can meet; each can lose its answer too."""

MANNERS: tuple[Mapping[str, int | str], ...] = (
    {"superset_grains": 3},
    {"superset_grains": 0},
    {"page_areas": 7},
    {"page_areas": 2000},
    {"star": "whole"},
    {"star": "fault"},
    {"star": "allocated"},
    {"leave_deltas": 2},
    {"removal_delay_ms": 300},
    {"removal_delay_ms": 0},
    {"device_delay_ms": 300},
    {"move_delay_ms": 200},
    {"snapshot_delay_ms": 200},
)
"""How the lab's vCenter behaves from then on, each as some real one does."""

DEATHS = (
    "at once", "nbd", "hotadd", "held", "pack.sealed:2", "commit.packs_sealed:2", "commit.manifest_written:2",
    "commit.catalog_written",
)  # fmt: skip
"""How the engine is killed: from outside, while it reads a disk by a transport, or at a failpoint of its next life."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is done at a time, in seconds from the day's begin."""

    at: float
    what: str
    vm: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.what, self.vm, *(f"{name}={value}" for name, value in self.more.items())])


def machines(vms: int) -> list[Machine]:
    """The VMs of the morning, four at least, the proxy not among them."""
    small = company(
        max(1, vms - len(APART)), disks=None, size=DISK_BYTES, hosts=3, clusters=1, datastores=STORES, tracking=True,
        tools=True, content=True,
    )  # fmt: skip
    return [*small, *APART]


def script(seed: int, vms: int, seconds: float) -> tuple[Step, ...]:
    """The day. At least one kill, one lost session, and one move while a disk is read for each transport."""
    chance = Random(f"day {seed} {vms}")
    day = _Day(chance, [machine.name for machine in machines(vms) if machine not in APART])
    steps = [_one_of(day, at) for at in sorted(chance.uniform(0, seconds) for _ in range(round(2.5 * vms)))]
    steps += [after for step in steps for after in _of_a_snapshot(chance, step, seconds)]
    steps += _lost_and_faulty(chance, seconds)
    steps += _lives(chance, seconds)
    steps += _moves_while_read(chance, seconds)
    return tuple(sorted(steps, key=lambda step: step.at))


@dataclass(slots=True)
class _Day:
    """What is there by now, as far as the script knows."""

    chance: Random
    alive: list[str]
    power: dict[str, bool] = field(default_factory=dict)
    made: int = 0

    def any(self) -> str:
        return self.chance.choice(self.alive)


def _one_of(day: _Day, at: float) -> Step:
    """Something that people, guests or DRS do at this time."""
    kinds: tuple[tuple[int, Callable[[_Day, float], Step]], ...] = (
        (10, _write), (5, _move), (4, _power), (2, _appear), (1, _disappear), (4, _change),
    )  # fmt: skip
    [chosen] = day.chance.choices([make for _, make in kinds], [weight for weight, _ in kinds])
    return chosen(day, at)


def _write(day: _Day, at: float) -> Step:
    share = day.chance.choice((0.002, 0.01, 0.05, 0.3))
    return Step(at, "write", day.any(), {"share": share, "seed": day.chance.randrange(10**6)})


def _move(day: _Day, at: float) -> Step:
    what = day.chance.choice(MOVES)
    return Step(at, what, day.any(), {"datastore": day.chance.choice(STORES)} if what == "relocate" else {})


def _power(day: _Day, at: float) -> Step:
    vm = day.any()
    on = day.power.get(vm, True)
    day.power[vm] = not on
    return Step(at, day.chance.choice(("power_off", "suspend")) if on else "power_on", vm)


def _appear(day: _Day, at: float) -> Step:
    day.made += 1
    if day.chance.random() < 0.5:
        source, name = day.any(), f"clone-{day.made:02d}"
        day.alive.append(name)
        return Step(at, "clone", source, {"name": name})
    name = f"new-{day.made:02d}"
    day.alive.append(name)
    day.power[name] = True
    return Step(at, "create", name, {"datastore": day.chance.choice(STORES)})


def _disappear(day: _Day, at: float) -> Step:
    if len(day.alive) < 4:
        return _write(day, at)
    vm = day.any()
    day.alive.remove(vm)
    return Step(at, "remove", vm)


def _change(day: _Day, at: float) -> Step:
    plain = (
        "add_disk", "extend_disk", "register_again", "snapshot_by_hand", "snapshot_by_hand", "need_consolidation",
        "reset_tracking", "evacuate", "rename",
    )  # fmt: skip
    match day.chance.choice(plain):
        case "rename":
            vm = day.any()
            day.alive.remove(vm)
            day.made += 1
            day.alive.append(name := f"named-{day.made:02d}")
            if vm in day.power:
                day.power[name] = day.power.pop(vm)
            return Step(at, "rename", vm, {"name": name})
        case what:
            return Step(at, what, day.any())


def _of_a_snapshot(chance: Random, step: Step, seconds: float) -> list[Step]:
    """What becomes of a person's snapshot: reverted to, sometimes twice, or removed, or forgotten."""
    if step.what != "snapshot_by_hand":
        return []
    revert, end = "revert", "end_snapshot_by_hand"
    after = chance.choice(([revert], [revert, revert], [revert, end], [end], []))
    times = sorted(chance.uniform(step.at + 1, seconds + 1) for _ in after)
    return [Step(at, what, step.vm) for at, what in zip(times, after, strict=True)]


def _lost_and_faulty(chance: Random, seconds: float) -> list[Step]:
    """What goes wrong with vCenter."""
    steps = [Step(chance.uniform(0.1, 0.9) * seconds, "lose_sessions") for _ in range(1 + int(seconds / 30))]
    steps += [
        Step(chance.uniform(0, 0.9) * seconds, "outage", more={"seconds": round(chance.uniform(0.2, 2), 1)})
        for _ in range(int(seconds / 40))
    ]
    steps += [Step(chance.uniform(0, 0.9) * seconds, "restart_vcenter") for _ in range(int(seconds / 60))]
    steps += [Step(chance.uniform(0, 0.9) * seconds, "read_errors") for _ in range(1 + int(seconds / 30))]
    steps += [Step(chance.uniform(0, 0.9) * seconds, "manners", more=chance.choice(MANNERS)) for _ in range(4)]
    for _ in range(max(8, int(seconds * 0.7))):
        method = chance.choice(list(FAULTY_CALLS))
        order: dict[str, Any] = {"method": method, "times": chance.choice((1, 1, 1, 2, 4))}
        way = chance.random()
        if way < 0.35:
            order["drop"] = True
        elif way < 0.5:
            order["delay_seconds"] = round(chance.uniform(0.1, 1.5), 1)
        else:
            order["fault"] = chance.choice(FAULTY_CALLS[method])
            order["in_task"] = method.endswith("_Task") and order["fault"] != "TaskInProgress" and chance.random() < 0.6
        steps.append(Step(chance.uniform(0, 0.9) * seconds, "fault", more=order))
    return steps


def _lives(chance: Random, seconds: float) -> list[Step]:
    """The engine's deaths and its births after them, the first ones spread so that it also lives for a while."""
    steps = []
    count = 1 + int(seconds / 15)
    for n in range(count):
        begin = (n + 0.25) / count * seconds
        at = begin + chance.uniform(0, 0.3) * seconds / count
        stops = n > 0 and chance.random() < 0.15
        how = chance.choice(DEATHS) if n else "held"
        steps.append(Step(at, "stop") if stops else Step(at, "kill", more={"how": how}))
        steps.append(Step(at + chance.uniform(0.3, 1.5), "start"))
    return steps


def _moves_while_read(chance: Random, seconds: float) -> list[Step]:
    steps = []
    for transport, machine in BIG.items():
        for n in range(1 + int(seconds / 60)):
            first = "relocate" if transport == "https" else "migrate"
            move = first if n == 0 or transport == "https" else chance.choice(MOVES)
            at = chance.uniform(0.3, 1) * seconds
            steps.append(Step(at, "move_while_read", machine.name, {"transport": transport, "move": move}))
    return steps
