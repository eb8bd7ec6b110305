"""The demo's surroundings: the lab's vCenter, a configuration, policies, and an engine that can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.client import Engine
from examples.demo.stage import DemoFailed, Ran, run
from tests.lab.vcenter import MIB, Frozen, Lab, Machine

POLICIES = Path(__file__).parent / "policies"
PROXY = Machine(name="backstay-proxy", disks=(8 * MIB,), content=False)
FILES = Machine(name="files-12", disks=(192 * MIB,), power="off")

CONFIGURATION = """\
schema = 1
name = "demo"
state_dir = "state"
policies = "policies.d"

[repository]
path = "repository"

[vcenter.lab]
host = "{host}"
port = {port}
user = "{user}"
password = "file:password"
ca_file = "{ca_file}"

[transport]
proxy = "backstay-proxy"
device_folder = "{device_folder}"
plugin = ["python", "{plugin}"]
libdir = "{root}"

[metrics]
listen = "127.0.0.1:0"

[timers]
clock = "1s"
policies = "1s"
janitor = "5s"
"""


@dataclass
class World:
    """Everything around the play, below one directory."""

    directory: Path
    lab: Lab
    engine: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def repository(self) -> Path:
        """Where the restore points are."""
        return self.directory / "repository"

    @property
    def policies(self) -> Path:
        """Where the policy files are."""
        return self.directory / "policies.d"

    @property
    def log(self) -> Path:
        """What the engine says."""
        return self.directory / "engine.log"

    def furnish(self) -> None:
        """Write the configuration and the policies, make the repository."""
        facts = self.lab.facts()
        (self.directory / "backstay.toml").write_text(
            CONFIGURATION.format(**{**facts, "plugin": facts["vddk_plugin"]}), encoding="utf-8"
        )
        secret = self.directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(facts["password"], encoding="utf-8")
        shutil.copytree(POLICIES, self.policies)
        self.environment |= {
            "BACKSTAY_CONFIG": str(self.directory / "backstay.toml"),
            "NO_COLOR": "1",
            "COLUMNS": "110",
        }
        self.environment.pop("BACKSTAY_FAILPOINT", None)
        self.backstay("repo", "init", self.repository)

    def backstay(self, *words: str | Path, expect: Sequence[int] = (0,)) -> Ran:
        """Run a command as a user would."""
        return run([Path(sys.executable).parent / "backstay", *words], env=self.environment, expect=expect)

    def start_engine(self, *, die_at: str = "") -> None:
        """Start `backstay run` and wait until it answers; with die_at it kills itself with SIGKILL there."""
        environment = self.environment | ({"BACKSTAY_FAILPOINT": die_at} if die_at else {})
        with self.log.open("ab") as log:
            self.engine = subprocess.Popen(
                [Path(sys.executable).parent / "backstay", "run"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        # Asked of the API alone: a command would take the repository before the engine does.
        api = Engine(self.directory / "state" / "backstay.sock")
        while not (api.listens() and api.get("/v1/status")):
            if self.engine.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"the engine did not start; {self.log} says:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def engine_ended(self) -> int | None:
        """The engine's exit status once it has ended; negative for a signal."""
        return self.engine.poll() if self.engine else None

    def stop_engine(self) -> None:
        """Ask the engine to end, and see that it does."""
        if self.engine and self.engine.poll() is None:
            self.engine.send_signal(signal.SIGTERM)
            try:
                self.engine.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.engine.kill()
                self.engine.wait()
        self.engine = None

    def accepts_backup(self, vm: str) -> bool:
        """Ask for a backup; False while the engine has not read its inventory yet."""
        return self.backstay("backup", vm, "--no-wait", expect=(0, 2, 6, 75)).code == 0

    def points(self, vm: str | None = None) -> list[dict[str, Any]]:
        """Restore points as `backstay points --json` lists them, oldest first."""
        found: list[dict[str, Any]] = self.backstay("points", "--json").json()
        return [point for point in found if vm in (None, point["vm"])]

    def sql(self, query: str) -> list[dict[str, Any]]:
        """Rows of `backstay sql --json`."""
        answer: list[dict[str, Any]] = self.backstay("sql", query, "--json").json()
        return answer

    def packs(self) -> list[Path]:
        """The repository's packs that hold data."""
        return sorted(self.repository.glob("packs/*/*.data"))

    def frozen_for(self, point: dict[str, Any]) -> Frozen:
        """What the lab froze when this restore point was taken: the last snapshot of the VM before its commit."""
        taken = datetime.fromisoformat(point["taken_at"])
        of_vm = self.lab.frozen(point["vm"])
        return min(of_vm, key=lambda frozen: abs((frozen.created - taken).total_seconds()))
