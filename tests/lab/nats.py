"""A real nats-server with JetStream on a free loopback port, stopped by its own process id."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(sys.executable).parent / "nats-server"
START_SECONDS = 15.0


class NatsServer:
    """One server with its store in a directory; `kill` and `start` again keep store and port."""

    def __init__(
        self, directory: Path, *, configuration: str = "", sync_always: bool = True, tls: bool = False
    ) -> None:
        self.directory = directory
        self._configuration = configuration
        self._sync = "always" if sync_always else "2m"
        self._scheme = "tls" if tls else "nats"
        self._port = -1
        self._process: subprocess.Popen[bytes] | None = None
        self.monitor_url = ""

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"{self._scheme}://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port as the server told it."""
        return self._port

    def start(self) -> None:
        """Start and wait until the server has told its ports."""
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "server.conf"
        configuration.write_text(
            f"listen: 127.0.0.1:{self._port}\n"
            "http: 127.0.0.1:-1\n"
            f'jetstream {{ store_dir: "{self.directory / "store"}", sync_interval: {self._sync} }}\n'
            f'ports_file_dir: "{self.directory}"\n'
            f"{self._configuration}\n",
            encoding="utf-8",
        )
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [SERVER, "-c", str(configuration)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ports = self._ports(self.directory / f"nats-server_{self._process.pid}.ports")
        self._port = int(ports["nats"][0].rsplit(":", 1)[1])
        self.monitor_url = ports["monitoring"][0]

    def kill(self) -> None:
        """SIGKILL, as if the power went."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM and wait."""
        self._end(signal.SIGTERM)

    def log(self) -> str:
        """What the server wrote."""
        return (self.directory / "server.log").read_text(encoding="utf-8", errors="replace")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    def _ports(self, file: Path) -> dict[str, list[str]]:
        assert self._process is not None
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended at once:\n{self.log()}")
            try:
                ports: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                time.sleep(0.01)
            else:
                return ports
        self.kill()
        raise RuntimeError(f"nats-server did not tell its ports:\n{self.log()}")


@contextmanager
def nats_server(
    directory: Path, *, configuration: str = "", sync_always: bool = True, tls: bool = False
) -> Iterator[NatsServer]:
    """A started server; stopped on every way out."""
    server = NatsServer(directory, configuration=configuration, sync_always=sync_always, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()
