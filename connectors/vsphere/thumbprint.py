"""How an ESXi host is verified: by the session's CAs and by the thumbprint that vCenter tells of its certificate.

Where the configuration pins vCenter's own certificate instead of a CA, the thumbprint alone decides.
"""

from __future__ import annotations

import hashlib
import ssl

from connectors.errors import TransportFailed


def host_context(tls: ssl.SSLContext, thumbprint: str, host: str, where: str) -> ssl.SSLContext:
    """The TLS context for a connection to a host. What it shows has to go through `check_host` before anything is sent.

    `tls` is the session's. Raises TransportFailed where nothing could tell the host.
    """
    if tls.check_hostname:
        return tls
    if not thumbprint:
        raise TransportFailed(
            f"host {host} cannot be verified: vCenter tells no thumbprint of it",
            where=where,
            hint="give the CA of vCenter and its hosts as ca_file",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_host(certificate: bytes | None, thumbprint: str, host: str, where: str) -> None:
    """Hold the certificate (DER) that a host shows against its thumbprint, if there is one. Raises TransportFailed."""
    told = thumbprint.replace(":", "").lower()
    kind = "sha256" if len(told) == 64 else "sha1"
    shown = hashlib.new(kind, certificate or b"", usedforsecurity=False).hexdigest()
    if told and shown != told:
        raise TransportFailed(f"host {host} shows another certificate than vCenter tells of", where=where)
