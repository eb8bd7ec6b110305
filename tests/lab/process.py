"""The lab's vCenter as a process, and the certificate that it shows."""

import hashlib
import ipaddress
import json
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.build import vcsim


@dataclass(frozen=True, slots=True)
class Shown:
    """Files of what a server shows, and its key. The thumbprint is SHA-1, as VDDK wants it."""

    certificate: Path
    key: Path
    thumbprint: str


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of the lab's own CA, of what its vCenter shows, and of what its hosts show."""

    ca: Path
    certificate: Path
    key: Path
    thumbprint: str
    host: Shown


def make_certificates(directory: Path) -> Certificates:
    now = datetime.now(UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Backstay lab CA")])
    ca = (
        x509.CertificateBuilder()
        .subject_name(ca_name)
        .issuer_name(ca_name)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    own = _shown(directory, "server", ca, ca_key, ["127.0.0.1"])
    host = _shown(directory, "host", ca, ca_key, [f"127.0.0.{n}" for n in range(2, 32)])
    return Certificates(directory / "ca.pem", own.certificate, own.key, own.thumbprint, host)


def _shown(
    directory: Path, stem: str, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, addresses: list[str]
) -> Shown:
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses)]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    made = Shown(directory / f"{stem}.pem", directory / f"{stem}.key", _thumbprint(leaf))
    made.certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    made.key.touch(mode=0o600)
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _thumbprint(certificate: x509.Certificate) -> str:
    # SHA-1 is what VDDK asks for; nothing is trusted because of it.
    digest = hashlib.sha1(certificate.public_bytes(serialization.Encoding.DER), usedforsecurity=False).hexdigest()
    return ":".join(digest[i : i + 2] for i in range(0, 40, 2)).upper()


class VcenterProcess:
    """A running simulator. It ends with `stop`, or by itself when this process dies: its input ends then."""

    def __init__(self, root: Path, specification: Mapping[str, Any]) -> None:
        self.log = root / "vcsim.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(vcsim())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=root
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(specification).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BaseException:
            self.stop()
            raise
        if not line:
            self.stop()
            raise RuntimeError(f"the lab's vCenter did not start:\n{self.log.read_text()[-4000:]}")
        ready: dict[str, Any] = json.loads(line)
        self.address: str = ready["address"]
        self.control: str = ready["control"]
        self.hosts_port: int = ready["hosts_port"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def order(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send one of the lab's own orders; its answer, or RuntimeError with what was wrong."""
        request = Request(f"{self.control}{path}", data=json.dumps(body or {}).encode(), method="POST")
        try:
            with urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except OSError as error:
            detail = error.read().decode(errors="replace") if hasattr(error, "read") else str(error)
            if hasattr(error, "close"):
                error.close()
            raise RuntimeError(f"the lab refused {path} {dict(body or {})}: {detail.strip()}") from None

    def stop(self) -> None:
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def client_context(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))
