"""Connections to where the addresses of a lease lead: to an ESXi host, or to vCenter itself."""

from __future__ import annotations

import hashlib
import socket
import ssl
from contextlib import suppress
from http.client import HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from connectors.errors import TransportFailed
from connectors.vsphere.session import Session


class NfcLine:
    """A verified connection to one address of a lease. Blocking; for one thread at a time.

    An ESXi host is verified by the session's CAs and by the thumbprint that vCenter told. Where the configuration
    pins vCenter's own certificate instead of a CA, the thumbprint alone decides. No cookie is sent: the address is the
    secret.
    """

    def __init__(self, session: Session, url: str, thumbprint: str, where: str) -> None:
        parts = urlsplit(url)
        own = parts.hostname in ("*", session.settings.host.lower())
        self.path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.where = where
        self._thumbprint = thumbprint.replace(":", "").lower()
        host = session.settings.host if own else str(parts.hostname or "")
        port = parts.port or (session.settings.port if own else 443)
        if parts.scheme != "https" or not host:
            raise TransportFailed("vCenter names no HTTPS address for the disk", where=where)
        pinned = not session.tls.check_hostname and not own
        if pinned and not self._thumbprint:
            raise TransportFailed(
                f"host {host} cannot be verified: vCenter tells no thumbprint of it",
                where=where,
                hint="give the CA of vCenter and its hosts as ca_file",
            )
        context = _by_thumbprint() if pinned else session.tls
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
        self._verify(self.http.sock)

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

    def _verify(self, sock: Any) -> None:
        kind = "sha256" if len(self._thumbprint) == 64 else "sha1"
        shown = hashlib.new(kind, sock.getpeercert(binary_form=True) or b"", usedforsecurity=False).hexdigest()
        if self._thumbprint and shown != self._thumbprint:
            raise TransportFailed(f"host {self.host} shows another certificate than vCenter tells of", where=self.where)


def _by_thumbprint() -> ssl.SSLContext:
    """For a host that is verified by the thumbprint of its certificate, which is compared before anything is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
