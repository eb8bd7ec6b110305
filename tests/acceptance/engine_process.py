"""The engine as an operator has it: `backstay run` against a lab, killed and started again, asked through its API."""

from __future__ import annotations

import filecmp
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from engine.client import Engine
from engine.commands import BackUpVm, RestoreToFile, Task
from engine.failures import Exit, NotReachable, RemoteFailure
from tests.console import BACKSTAY, Ran, backstay, environment
from tests.lab.vcenter import Frozen, Lab

EVERYTHING = """
schema = 1
[policy.everything]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
"""

ON_REQUEST = """
schema = 1
[policy.on_request]
select.all = ["*"]
consistency = { want = "crash", fallback = "crash" }
"""
"""Selects everything and starts nothing by itself."""


def configuration(
    lab: Lab, *, password: str, repository: Path, order: tuple[str, ...], proxy: str, more: str, timers: str
) -> str:
    return f"""
schema = 1
name = "acceptance"
state_dir = "state"
policies = "policies"
repository.path = "{repository}"
[vcenter.lab]
host = "{lab.host}"
port = {lab.port}
user = "{lab.user}"
password = "file:password"
ca_file = "{lab.ca_file}"
[transport]
order = [{", ".join(f'"{way}"' for way in order)}]
plugin = ["python", "{lab.facts()["vddk_plugin"]}"]
libdir = "{lab.root}"
proxy = "{proxy}"
device_folder = "{lab.device_folder}"
[limits]
total = 2
[timers]
clock = "1s"
policies = "1s"
janitor = "2s"
{timers}
[metrics]
listen = "127.0.0.1:0"
{more}
"""


TRACEBACK = re.compile(r"^[\s+|]*(?:Exception Group )?Traceback", re.MULTILINE)
"""One of the engine's own: those of the lab's stand-in plugin come within a line."""


@dataclass
class EngineProcess:
    """One engine's directory, and its process while it runs. What asks it raises NotReachable or RemoteFailure."""

    home: Path
    lab: Lab
    repository: Path
    extra: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    knows_nothing: bool = True
    """Whether it was started without a state: then it follows events from some moment on."""

    @property
    def config(self) -> Path:
        return self.home / "backstay.toml"

    @property
    def policies(self) -> Path:
        return self.home / "policies"

    @property
    def state(self) -> Path:
        return self.home / "state" / "state.duckdb"

    @property
    def api(self) -> Engine:
        return Engine(self.home / "state" / "backstay.sock")

    @property
    def log(self) -> str:
        """What the engine has said, in all its lives."""
        return (self.home / "engine.log").read_text()

    @property
    def environment(self) -> dict[str, str]:
        return {**environment(self.home), "BACKSTAY_CONFIG": str(self.config), **self.extra}

    # its life

    def launch(self, *, die_at: str = "", prepare: Callable[[], None] | None = None) -> None:
        """Start the process without waiting for anything; with die_at it kills itself with SIGKILL there."""
        self.knows_nothing = not self.state.exists()
        with (self.home / "engine.log").open("ab") as log:
            self.process = subprocess.Popen(
                [BACKSTAY, "run"],
                env=self.environment | ({"BACKSTAY_FAILPOINT": die_at} if die_at else {}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=prepare,
            )  # fmt: skip

    def start(self, *, die_at: str = "", prepare: Callable[[], None] | None = None) -> None:
        """Start and wait until no event can pass the engine by and it knows its vCenter's inventory."""
        self.launch(die_at=die_at, prepare=prepare)
        self.until(self.follows, seconds=90)

    def follows(self) -> bool:
        try:
            seen = self.status()["vcenters"]
        except NotReachable:
            return False
        return bool(seen) and all(one["inventory_at"] and (one["events_at"] or not self.knows_nothing) for one in seen)

    def ended(self, *, seconds: float = 90) -> int:
        """Wait for the process to end by itself; its exit code, negative for a signal."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the engine still runs after {seconds} s\n{self.log[-3000:]}") from None

    def kill(self) -> None:
        """SIGKILL, as if the power went."""
        assert self.process is not None
        self.process.kill()
        assert self.ended() == -signal.SIGKILL

    def stop(self) -> None:
        """SIGTERM; the engine must end by itself and well."""
        assert self.process is not None
        self.process.terminate()
        assert self.ended() == Exit.DONE, self.log[-3000:]

    def peak_memory_bytes(self) -> int:
        """The most memory that the process ever held (VmHWM)."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the kernel does not tell VmHWM")

    # what it says

    def status(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.api.get("/v1/status")
        return found

    def problems(self) -> list[str]:
        """What a person should look at, as /healthz and `backstay status` tell it."""
        return list(self.status()["problems"])

    def points(self, vm: str) -> list[dict[str, Any]]:
        """Restore points of a VM, oldest first; none while the engine does not know the VM."""
        try:
            return list(self.api.get("/v1/points", {"vm": vm}))
        except RemoteFailure as unknown:
            assert "no VM is known" in str(unknown), unknown
            return []

    def point(self, reference: str) -> dict[str, Any]:
        return dict(self.api.get("/v1/point", {"reference": reference}))

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What `backstay sql` answers."""
        answer = self.api.post("/v1/sql", {"query": query, "rows": 100_000})
        names = [name for name, _ in answer["columns"]]
        return [dict(zip(names, row, strict=True)) for row in answer["rows"]]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in self.metrics().splitlines()
            if line.partition("{")[0].partition(" ")[0] == name
        ]
        assert found, f"no metric {name}"
        return sum(found)

    def metrics(self) -> str:
        """What a scrape gets."""
        address = self.status()["engine"]["addresses"]["metrics"]
        with urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())

    # what it is told

    def backstay(self, *words: str | Path, expect: int | None = 0, prepare: Callable[[], None] | None = None) -> Ran:
        """A command as its operator types it."""
        return backstay(*words, home=self.home, env=self.environment, expect=expect, prepare=prepare)

    def finished(self, task: Task) -> Mapping[str, Any]:
        """Ask for what takes long and wait for its result; RemoteFailure with sentence and exit code."""
        return self.api.finish(self.api.submit(task), lambda report: None)

    def back_up(self, vm: str) -> dict[str, Any]:
        """Back a VM up on request; the new restore point with all that is recorded of it."""
        return self.point(str(self.finished(BackUpVm(vm))["id"]))

    def restored(self, point: str, label: str, target: Path) -> Path:
        """A disk of a restore point as a file."""
        self.finished(RestoreToFile(point, target, label, force=True))
        return target

    def assert_same_as_frozen(self, point: str, frozen: Frozen, scratch: Path) -> None:
        """Every disk of the restore point is byte for byte what the lab froze."""
        labels = [disk["label"] for disk in self.point(point)["disks"]]
        assert sorted(labels) == sorted(disk.label for disk in frozen.disks)
        for disk in frozen.disks:
            assert filecmp.cmp(self.restored(point, disk.label, scratch / "restored.raw"), disk.image, shallow=False)

    def until(self, claim: Callable[[], object], *, seconds: float = 90) -> None:
        """Wait until a claim about the engine, the lab or the repository is true."""
        deadline = time.monotonic() + seconds
        while not claim():
            if self.process is not None and (code := self.process.poll()) is not None:
                raise AssertionError(f"the engine ended with {code}\n{self.log[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not true after {seconds} s\n{self.log[-3000:]}")
            time.sleep(0.05)


@contextmanager
def engine_for(
    lab: Lab,
    home: Path,
    policy: str = EVERYTHING,
    *,
    order: tuple[str, ...] = ("nbd",),
    proxy: str = "",
    more: str = "",
    timers: str = "",
    password: str | None = None,
    repository: Path | None = None,
) -> Iterator[EngineProcess]:
    """A furnished engine that does not run yet; it is ended at the end of the block whatever happens."""
    (home / "policies").mkdir(parents=True)
    (home / "policies" / "all.toml").write_text(policy)
    secret = home / "password"
    secret.touch(mode=0o600)
    secret.write_text(lab.password if password is None else password)
    engine = EngineProcess(home, lab, repository or home / "repository")
    engine.config.write_text(
        configuration(
            lab, password="password", repository=engine.repository, order=order, proxy=proxy, more=more, timers=timers
        )
    )
    (home / "engine.log").touch()
    engine.backstay("repo", "init", engine.repository)
    try:
        yield engine
    finally:
        if engine.process is not None and engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()
    assert not TRACEBACK.search(engine.log), engine.log[-4000:]


def frozen_at(lab: Lab, point: Mapping[str, Any]) -> Frozen:
    """What the lab froze for this restore point: the snapshot that carries its run's id."""
    run = point["attributes"]["run"]
    [found] = [each for each in lab.frozen(point["vm"]) if run in each.name]
    return found
