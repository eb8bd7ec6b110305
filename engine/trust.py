"""Trust on first use: a server's certificate, fetched without trusting it, for a person to confirm."""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass

from engine.failures import BadInput, NotReachable

CONNECT_SECONDS = 15.0
"""How long a vCenter may take to show its certificate."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's own certificate: PEM text and SHA-256 fingerprint in the form AA:BB:…"""

    pem: str
    fingerprint: str


def fetch_certificate(host: str, port: int) -> Certificate:
    """What the server shows. Nothing is sent to it; NotReachable when it does not answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            der = wrapped.getpeercert(binary_form=True)
    except OSError as error:
        said = error.strerror or str(error) or type(error).__name__
        raise NotReachable(f"the vCenter does not answer: {said}", where=f"{host}:{port}") from None
    if der is None:
        raise NotReachable("the server shows no certificate", where=f"{host}:{port}")
    return Certificate(ssl.DER_cert_to_PEM_cert(der), fingerprint(der))


def is_trusted(host: str, port: int) -> bool:
    """Whether an authority that this system knows vouches for a server that answers."""
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError:
        return False


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, in pairs."""
    return hashlib.sha256(der).digest().hex(":").upper()


def check_fingerprint(certificate: Certificate, expected: str, where: str) -> None:
    """BadInput when the server's certificate is not the one that a person expects."""
    wanted = expected.replace(":", "").replace(" ", "").upper()
    if len(wanted) != 64 or any(c not in "0123456789ABCDEF" for c in wanted):
        raise BadInput("this is not a SHA-256 fingerprint", where="--fingerprint", hint="64 hexadecimal digits")
    if wanted != certificate.fingerprint.replace(":", ""):
        raise BadInput(
            f"the server shows another certificate: {certificate.fingerprint}",
            where=where,
            hint="do not go on unless you know why",
        )
