"""A real Prometheus on a free loopback port that scrapes what it is told to, stopped by its own process id."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

Found = TypeVar("Found")

START_SECONDS = 30.0
DATASOURCE_VARIABLES = {
    "$__rate_interval": "1m",
    "$__interval": "15s",
    "$__range": "1h",
    "$job": ".*",
    "$vcenter": ".*",
    "$policy": ".*",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant query."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A server that scrapes host:port targets each second and evaluates rule files."""

    def __init__(
        self, directory: Path, targets: Sequence[str], *, rules: Sequence[Path] = (), job: str = "backstay"
    ) -> None:
        self._directory = directory
        self._targets = list(targets)
        self._rules = [str(rule.resolve()) for rule in rules]
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start and wait until it is ready; its address is read from its log."""
        program = shutil.which("prometheus")
        if program is None:
            raise RuntimeError("no prometheus: install Debian's package prometheus")
        self._directory.mkdir(parents=True, exist_ok=True)
        configuration = self._directory / "prometheus.json"
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": self._rules,
                    "scrape_configs": [{"job_name": self._job, "static_configs": [{"targets": self._targets}]}],
                }
            ),
            encoding="utf-8",
        )
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={configuration}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.url = self._wait(self._address)
            self._wait(lambda: "ready" if self._ready() else "")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and wait for it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def query(self, expression: str) -> list[Sample]:
        """An instant query; the empty list is no data."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expression}, timeout=10.0).json()
        if answer["status"] != "success":
            raise ValueError(f"{answer.get('error')}: {expression}")
        result, kind = answer["data"]["result"], answer["data"]["resultType"]
        if kind == "scalar":
            return [Sample({}, float(result[1]))]
        return [Sample(item["metric"], float(item["value"][1])) for item in result]

    def wait_for(self, expression: str, *, seconds: float = 30.0) -> list[Sample]:
        """Ask until there is data."""
        return self._wait(lambda: self.query(expression), seconds, what=expression)

    def alerts(self) -> dict[str, str]:
        """Alert name to state (pending or firing), of every alert that is not inactive."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=10.0).json()
        return {alert["labels"]["alertname"]: alert["state"] for alert in answer["data"]["alerts"]}

    def targets_up(self) -> bool:
        """Whether every target was scraped without error."""
        samples = self.query(f'up{{job="{self._job}"}}')
        return len(samples) == len(self._targets) and all(sample.value == 1.0 for sample in samples)

    def log(self) -> str:
        """What the server wrote."""
        return (self._directory / "prometheus.log").read_text(encoding="utf-8", errors="replace")

    def _address(self) -> str:
        found = re.search(r"address=(127\.0\.0\.1:\d+)$", self._line("Listening on"))
        return f"http://{found[1]}" if found else ""

    def _line(self, message: str) -> str:
        return next((line for line in self.log().splitlines() if f'msg="{message}"' in line), "")

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def _wait(self, look: Callable[[], Found], seconds: float = START_SECONDS, *, what: str = "Prometheus") -> Found:
        assert self._process is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"prometheus ended:\n{self.log()[-2000:]}")
            if found := look():
                return found
            time.sleep(0.05)
        raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")


@contextmanager
def prometheus(
    directory: Path, targets: Sequence[str], *, rules: Sequence[Path] = (), job: str = "backstay"
) -> Iterator[Prometheus]:
    """A started server; stopped on every way out."""
    server = Prometheus(directory, targets, rules=rules, job=job)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def dashboard_expressions(dashboard: Path) -> dict[str, str]:
    """Every expression of a dashboard with its variables filled in, by panel title and letter."""
    found = {}
    for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in DATASOURCE_VARIABLES.items():
                expression = expression.replace(variable, value)
            found[f"{panel['title']} {target['refId']}"] = expression
    return found
