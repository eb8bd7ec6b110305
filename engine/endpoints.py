"""The sockets that the API listens on: made, guarded and removed here, so that nobody finds one open too wide."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from engine.addresses import split_address
from engine.config import Config
from engine.failures import BadInput
from storage.errors import Locked


@dataclass(slots=True)
class Endpoints:
    """Listening sockets. Close them when the server has ended."""

    local: socket.socket
    path: Path
    tcp: socket.socket | None = None
    metrics: socket.socket | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    """"api", "tcp" and "metrics" as a person would use them."""

    def close(self) -> None:
        """Close every socket and remove the local one's name."""
        self.path.unlink(missing_ok=True)
        for open_socket in (self.local, self.tcp, self.metrics):
            if open_socket is not None:
                open_socket.close()


def open_endpoints(config: Config) -> Endpoints:
    """Bind everything that the configuration asks for; Locked when another engine listens there."""
    endpoints = Endpoints(_local(config.socket), config.socket, addresses={"api": f"unix:{config.socket}"})
    try:
        if config.api.tcp:
            endpoints.tcp = _tcp(config.api.tcp)
            scheme = "https" if config.api.certificate else "http"
            endpoints.addresses["tcp"] = f"{scheme}://{_name(endpoints.tcp)}"
        if config.metrics.listen:
            endpoints.metrics = _tcp(config.metrics.listen)
            endpoints.addresses["metrics"] = f"http://{_name(endpoints.metrics)}/metrics"
    except BadInput:
        endpoints.close()
        raise
    return endpoints


def _local(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The name gets the mode that the socket has before it is bound: there is no moment at which others may connect.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        said = error.strerror or str(error)  # a path that is too long has no errno
        raise BadInput(f"the API cannot listen: {said}", where=str(path), hint="set api.socket") from None
    return listener


def _remove_stale(path: Path) -> None:
    """Take away what a dead engine left; Locked when one answers."""
    if not path.is_socket():
        if path.exists():
            raise BadInput("this is not a socket", where=str(path), hint="move it away or set api.socket")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:
            pass
    raise Locked("another engine listens here", where=str(path), hint="stop it, or set another state_dir")


def _tcp(address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadInput(f"nothing can listen here: {error.strerror}", where=address) from None


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
