"""What a network address tells by itself."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, as far as its name alone tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port"; ValueError says what is missing."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'"{address}" is not an address with a port; write for instance "127.0.0.1:9464"')
    return host.strip("[]"), int(port)
