"""Connections to where the addresses of a lease lead: to an ESXi host, or to vCenter itself."""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from connectors.errors import TransportFailed
from connectors.vsphere.session import Session
from connectors.vsphere.thumbprint import check_host, host_context


class NfcLine:
    """A verified connection to one address of a lease. Blocking; for one thread at a time.

    An ESXi host is verified as `thumbprint` says. No cookie is sent: the address is the secret.
    """

    def __init__(self, session: Session, url: str, thumbprint: str, where: str) -> None:
        parts = urlsplit(url)
        own = parts.hostname in ("*", session.settings.host.lower())
        self.path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.where = where
        self._thumbprint = thumbprint
        host = session.settings.host if own else str(parts.hostname or "")
        port = parts.port or (session.settings.port if own else 443)
        if parts.scheme != "https" or not host:
            raise TransportFailed("vCenter names no HTTPS address for the disk", where=where)
        context = session.tls if own else host_context(session.tls, thumbprint, host, where)
        self.http = HTTPSConnection(host, port, timeout=session.settings.answer_seconds, context=context)
        self.http.auto_open = 0  # once closed, it stays closed

    @property
    def host(self) -> str:
        """Who is at the other end."""
        return self.http.host

    def connect(self) -> None:
        """Connect and verify. Raises TransportFailed."""
        try:
            self.http.connect()
        except (OSError, HTTPException) as error:
            raise self.refused("serve the disk", error) from error
        check_host(self.http.sock.getpeercert(binary_form=True), self._thumbprint, self.host, self.where)

    def refused(self, what: str, error: BaseException) -> TransportFailed:
        """That the host does not `what`, and what may be in the way."""
        return TransportFailed(
            f"host {self.host} does not {what}: {error or type(error).__name__}",
            where=self.where,
            hint="the engine needs TCP 443 to the ESXi hosts",
        )

    def close(self) -> None:
        """End the connection, also under a thread that waits for the other end. Idempotent."""
        with suppress(OSError, AttributeError):
            self.http.sock.shutdown(socket.SHUT_RDWR)
        self.http.close()
