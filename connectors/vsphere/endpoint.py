"""How a vCenter is reached: the TLS context that verifies it, and the API version that both sides speak."""

from __future__ import annotations

import ssl
from http.client import HTTPSConnection
from pathlib import Path
from xml.etree import ElementTree

from cryptography import x509
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from connectors.errors import ConnectorError, LoginRefused, Unreachable

VERSIONS_PATH = "/sdk/vimServiceVersions.xml"


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """A verifying context. With a file, only what is in it is trusted.

    A certificate in it that is no CA is a pin: it is trusted for itself alone, so names need not match. As soon
    as the file holds a CA, names are compared, since that CA could sign for any host.
    """
    if ca_file is None:
        return ssl.create_default_context()
    try:
        pem = ca_file.read_bytes()
        certificates = x509.load_pem_x509_certificates(pem)
        context = ssl.create_default_context(cadata=pem.decode("ascii"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else ""
        raise LoginRefused(
            f"the CA file cannot be read: {why}" if why else "the CA file holds no certificate that can be used",
            where=str(ca_file),
            hint="it must hold certificates in PEM form",
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = any(_is_ca(certificate) for certificate in certificates)
    return context


def negotiate_version(host: str, port: int, tls: ssl.SSLContext, timeout: float) -> str:
    """pyVmomi's name of the newest API version that the server offers too. Blocking; raises socket and TLS errors."""
    connection = HTTPSConnection(host, port, timeout=timeout, context=tls)
    try:
        connection.request("GET", VERSIONS_PATH)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    where = f"{host}:{port}"
    if answer.status != 200:
        raise Unreachable(
            f"no vSphere API here (HTTP {answer.status})", where=where, hint="is this the address of a vCenter?"
        )
    try:
        offered = {e.text for e in ElementTree.fromstring(body).iter("version")}
    except ElementTree.ParseError as error:
        raise Unreachable("no vSphere API here", where=where, hint="is this the address of a vCenter?") from error
    for version in GetServiceVersions("vim25"):
        if versionIdMap[version] in offered:
            return str(version)
    raise ConnectorError("no API version in common", where=where, hint="vSphere 6.5 or newer is needed")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return certificate.issuer == certificate.subject
