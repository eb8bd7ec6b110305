"""Carries out the steps of a day: what people and guests do in the lab, what goes wrong, and how the engine dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path

from pyVmomi import vim, vmodl

from engine.commands import BackUpVm
from engine.failures import NotReachable, RemoteFailure
from tests.acceptance.day.script import BIG, HELD, PROXY, STORES, Step
from tests.acceptance.engine_process import EngineProcess
from tests.lab.vcenter import MIB, Lab

BY_HAND = "by hand"
"""The name of snapshots that people take."""

NOT_MET = "SIGKILL did not come to its moment"

WAIT_FOR_DEATH = 4.0
"""Seconds that a moment for a kill is waited for; after that the kill comes at once."""

WAIT_FOR_READING = 12.0
TRIES = 12


def say(sentence: str) -> None:
    """A line of progress."""
    print(sentence, file=sys.stderr, flush=True)


@dataclass
class World:
    """The lab and the engine on one day. `moved` counts moves while a disk was read, by transport.

    By export these are moves that were refused, as vCenter lets nobody move a VM under a lease.
    """

    lab: Lab
    engine: EngineProcess
    began: float = field(default_factory=time.monotonic)
    moved: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    _buried: subprocess.Popen[bytes] | None = None

    def play(self, steps: tuple[Step, ...]) -> None:
        """Every step at its time, or as soon after it as the ones before it allow."""
        self.began = time.monotonic()
        for step in steps:
            time.sleep(max(0.0, step.at - (time.monotonic() - self.began)))
            self.do(step)

    def do(self, step: Step) -> None:
        """One step. What the lab refuses a person is told and counted."""
        say(f"{time.monotonic() - self.began:6.1f} s  {step}")
        try:
            getattr(self, f"_{step.what}")(step)
        except (vmodl.MethodFault, RuntimeError, KeyError, OSError, HTTPException) as error:
            name = type(error).__name__
            if isinstance(error, RuntimeError) and "lab refused" not in str(error):
                raise
            self.refused[f"{step.what} {name}"] += 1
            say(f"          refused: {name}")

    # What people and guests do

    def _write(self, step: Step) -> None:
        self.lab.write_random_grains(step.vm, 0, share=step.more["share"], seed=step.more["seed"])

    def _migrate(self, step: Step) -> None:
        self.lab.migrate(step.vm)

    def _drs_move(self, step: Step) -> None:
        self.lab.drs_move(step.vm)

    def _relocate(self, step: Step) -> None:
        here = self.lab.vm(step.vm).datastore
        self.lab.relocate(step.vm, step.more.get("datastore") or next(name for name in STORES if name != here))

    def _power_on(self, step: Step) -> None:
        self.lab.power_on(step.vm)

    def _power_off(self, step: Step) -> None:
        self.lab.power_off(step.vm)

    def _suspend(self, step: Step) -> None:
        self.lab.suspend(step.vm)

    def _create(self, step: Step) -> None:
        self.lab.create_vm(step.vm, datastore=step.more["datastore"], disks=(16 * MIB,))
        self.lab.write_random_grains(step.vm, 0, share=0.3, seed=1)

    def _clone(self, step: Step) -> None:
        self.lab.clone_vm(step.vm, step.more["name"])

    def _remove(self, step: Step) -> None:
        self.lab.remove_vm(step.vm)

    def _rename(self, step: Step) -> None:
        self.lab.rename(step.vm, step.more["name"])

    def _register_again(self, step: Step) -> None:
        if self.lab.vm(step.vm).power == "on":
            self.lab.power_off(step.vm)
        self.lab.register(self.lab.unregister(step.vm))

    def _add_disk(self, step: Step) -> None:
        self.lab.add_disk(step.vm, 8 * MIB)

    def _extend_disk(self, step: Step) -> None:
        vm = self.lab.vm(step.vm)
        if vm.snapshots:
            say("          not under a snapshot: vCenter would refuse it")
            return
        self.lab.extend_disk(step.vm, 0, vm.disks[0].capacity_bytes + 4 * MIB)

    def _snapshot_by_hand(self, step: Step) -> None:
        self.lab.snapshot(step.vm, BY_HAND)

    def _by_hand(self, vm: str) -> str:
        """The moref of a person's snapshot; KeyError when there is none."""
        here = self.lab.vm(vm)
        for frozen in reversed(self.lab.frozen(here.moref)):
            if frozen.name == BY_HAND and frozen.snapshot in here.snapshots:
                return frozen.snapshot
        raise KeyError(vm)

    def _end_snapshot_by_hand(self, step: Step) -> None:
        self.lab.remove_snapshot(self._by_hand(step.vm))

    def _revert(self, step: Step) -> None:
        moref = self._by_hand(step.vm)
        with self.lab.session() as service:
            snapshot = vim.vm.Snapshot(moref, service._stub)
            self.lab.finish(lambda: snapshot.RevertToSnapshot_Task())

    def _reset_tracking(self, step: Step) -> None:
        self.lab.set_tracking(step.vm, False)
        self.lab.set_tracking(step.vm, True)

    def _evacuate(self, step: Step) -> None:
        """DRS empties the host of this VM."""
        host = self.lab.vm(step.vm).host
        for vm in self.lab.vms():
            if vm.host == host and vm.name != PROXY.name:
                self.lab.drs_move(vm.name)

    def _need_consolidation(self, step: Step) -> None:
        self.lab.need_consolidation(step.vm)

    # What goes wrong

    def _lose_sessions(self, step: Step) -> None:
        self.lab.kill_sessions()

    def _outage(self, step: Step) -> None:
        self.lab.outage(step.more["seconds"])
        time.sleep(step.more["seconds"])

    def _restart_vcenter(self, step: Step) -> None:
        self.lab.restart(1.0)
        time.sleep(1.0)

    def _manners(self, step: Step) -> None:
        self.lab.settings(**step.more)

    def _read_errors(self, step: Step) -> None:
        """The disks' beginnings cannot be read over the network for a moment."""
        with self.lab.nbd_fault(error_at=0, times=2):
            time.sleep(0.5)

    def _stop(self, step: Step) -> None:
        if self.lives and self.engine.process is not None:
            self.engine.process.terminate()
            # One that has hardly begun has not yet said what the signal means to it.
            assert (code := self.engine.ended()) in (0, -signal.SIGTERM), f"ended with {code}"

    def _fault(self, step: Step) -> None:
        self.lab.inject(user=self.lab.user, **step.more)

    # The engine's lives

    @property
    def lives(self) -> bool:
        """Whether the engine's process runs."""
        return self.engine.process is not None and self.engine.process.poll() is None

    def _kill(self, step: Step) -> None:
        how = step.more["how"]
        if not self.lives:
            return
        match how:
            case "at once":
                pass
            case "nbd" | "hotadd" | "held":
                if not self._dies_reading(how):
                    say(f"          {NOT_MET}")
            case failpoint:
                # The points are counted from the start of a process, so this one makes place for one that dies there.
                self._sigkill()
                self.engine.launch(die_at=failpoint)
                if not self._meets(lambda: not self.lives, seconds=3 * WAIT_FOR_DEATH):
                    say(f"          {NOT_MET}")
        self._sigkill()

    def _dies_reading(self, how: str) -> bool:
        """SIGKILL with a disk open, hot-added or slowly read by NBD; whether it came to that."""
        vm = HELD.name if how == "held" else BIG[how].name
        with self.lab.nbd_fault(delay_ms=300):
            try:
                self._ask(vm)
            except (RemoteFailure, NotReachable):
                return False
            assert self.engine.process is not None
            pid = self.engine.process.pid
            is_open = partial(self._has_open, pid, vm) if how == "hotadd" else partial(self._is_half_read, vm)
            if not self._meets(is_open, seconds=WAIT_FOR_READING):
                return False
            self._sigkill()
            return True

    def _sigkill(self) -> None:
        process = self.engine.process
        assert process is not None
        if process is self._buried or process.returncode == 0:
            return
        process.kill()
        code = process.wait()
        assert code == -signal.SIGKILL, f"the engine ended with {code} by itself\n{self.engine.log[-3000:]}"
        self._buried = process
        self.kills += 1

    def _start(self, step: Step) -> None:
        if not self.lives:
            self.engine.launch()

    def _running(self) -> list[dict[str, object]]:
        try:
            return list(self.engine.status()["queue"]["running"])
        except NotReachable:
            return []

    @staticmethod
    def _meets(claim: Callable[[], object], *, seconds: float = WAIT_FOR_DEATH) -> bool:
        deadline = time.monotonic() + seconds
        while not claim():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    # Moves while a disk is read

    def _move_while_read(self, step: Step) -> None:
        self._start(step)
        self.engine.until(self.engine.follows)
        self.lab.heal()
        transport = step.more["transport"]
        moves = {
            "hotadd": self._move_while_attached, "nbd": self._move_while_served,
            "export": self._move_while_exported, "https": self._move_while_fetched,
        }  # fmt: skip
        for _ in range(TRIES):
            if moves[transport](step):
                self.moved[transport] += 1
                return
        say(f"          no disk was read by {transport} when the move came")

    def _ask(self, vm: str) -> None:
        deadline = time.monotonic() + WAIT_FOR_READING
        while True:
            try:
                self.engine.api.submit(BackUpVm(vm, reason="a full read by day", full=True))
                return
            except (RemoteFailure, NotReachable):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _move_while_attached(self, step: Step) -> bool:
        """The engine stands still with the disk open, until the VM has moved."""
        process = self.engine.process
        assert process is not None
        self._ask(step.vm)
        if not self._meets(lambda: self._has_open(process.pid, step.vm), seconds=WAIT_FOR_READING):
            return False
        os.kill(process.pid, signal.SIGSTOP)
        try:
            still = self._has_open(process.pid, step.vm)
            self.do(Step(step.at, step.more["move"], step.vm))
            return still
        finally:
            os.kill(process.pid, signal.SIGCONT)

    @staticmethod
    def _has_open(pid: int, vm: str) -> bool:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if f"/{vm}/" in target and ".snapshot-" in target:
                return True
        return False

    def _move_while_served(self, step: Step) -> bool:
        """nbdkit answers slowly, until the VM has moved."""
        with ExitStack() as slow:
            slow.enter_context(self.lab.nbd_fault(delay_ms=300))
            self._ask(step.vm)
            if not self._meets(lambda: self._is_half_read(step.vm), seconds=WAIT_FOR_READING):
                return False
            slow.enter_context(self.lab.busy_guest(step.vm, seed=1))
            self.do(Step(step.at, step.more["move"], step.vm))
            return self._is_half_read(step.vm)

    def _move_while_exported(self, step: Step) -> bool:
        """The host answers slowly, until vCenter has refused the move; it goes through once the lease is given back."""
        self.lab.inject("GET /nfc", delay_seconds=1.5)
        self._ask(step.vm)
        if not self._meets(lambda: self.lab.leases()["held"], seconds=WAIT_FOR_READING):
            return False
        try:
            self.lab.migrate(step.vm)
        except vim.fault.TaskInProgress:
            refused = bool(self.lab.leases()["held"])
        else:
            raise AssertionError(f"{step.vm} was moved although a lease was held")
        self._meets(lambda: not self.lab.leases()["held"], seconds=WAIT_FOR_READING)
        self.do(Step(step.at, step.more["move"], step.vm))
        return refused

    def _move_while_fetched(self, step: Step) -> bool:
        """vCenter answers slowly, until the files of the VM, which is off, have moved."""
        here = self.lab.vm(step.vm).datastore
        self.lab.inject("GET /folder", delay_seconds=0.4, times=0)
        try:
            self._ask(step.vm)
            if not self._meets(lambda: self._is_half_read(step.vm), seconds=WAIT_FOR_READING):
                return False
            self.do(Step(step.at, step.more["move"], step.vm))
            return self.lab.vm(step.vm).datastore != here
        finally:
            self.lab.heal()

    def _is_half_read(self, vm: str) -> bool:
        for job in self._running():
            if job["vm"] == vm and job["stage"] == "read":
                return 0 < int(str(job["done_bytes"])) < int(str(job["planned_bytes"]))
        return False

    # The evening

    def settle(self, *, seconds: float) -> None:
        """Nothing goes wrong any more; wait until the engine has done what it can, and ask for what failed."""
        self.lab.heal()
        self.lab.settings(leave_deltas=0, removal_delay_ms=0, snapshot_delay_ms=0, move_delay_ms=0, device_delay_ms=20)
        self._start(Step(0, "start"))
        self.engine.until(self.engine.follows, seconds=seconds)
        asked: set[str] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            standing = self.engine.status()
            behind = [
                row["vm"] for row in standing["vms"]
                if row["protected"] and not row["running"] and row["vm"] not in asked
                and (row["last_failure"] or row["last_success"] is None)
            ]  # fmt: skip
            for vm in behind:
                asked.add(vm)
                try:
                    self.engine.api.submit(BackUpVm(vm, reason="asked for in the evening"))
                except RemoteFailure as refused:
                    say(f"          {vm} is not backed up: {refused}")
            soon = [job for job in standing["queue"]["waiting"] if _is_soon(job["not_before"])]
            if not (behind or soon or standing["queue"]["running"]):
                return
            time.sleep(0.2)
        say("          the engine is still at it when the evening ends")


def _is_soon(at: str) -> bool:
    return datetime.fromisoformat(at) < datetime.now(UTC) + timedelta(seconds=3)


__all__ = ["BY_HAND", "PROXY", "World", "say"]
