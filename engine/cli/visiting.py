"""A vCenter that is named on the command line: by its name in the configuration, or by host or URL with flags."""

from __future__ import annotations

import getpass
import os
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from engine.config import Config, find, load
from engine.credentials import KINDS, Secret, parse_secret
from engine.failures import BadInput
from engine.sections import VCenter

PASSWORD_VARIABLE = "BACKSTAY_VCENTER_PASSWORD"
USER_VARIABLE = "BACKSTAY_VCENTER_USER"


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port of a vCenter, and the user where the URL names one."""

    host: str
    port: int
    user: str = ""


def parse_address(text: str) -> Address:
    """ "vc.example.com", "vc.example.com:8443" or a URL; BadInput, without repeating it, when it holds a password."""
    parts = urlsplit(text if "://" in text else f"https://{text}")
    if parts.password is not None:
        raise BadInput("the address holds a password", where="vCenter", hint=f"set {PASSWORD_VARIABLE} instead")
    try:
        port = parts.port or 443
    except ValueError:
        port = 0
    if parts.scheme != "https" or not parts.hostname or not 0 < port < 65536:
        raise BadInput("this is not the address of a vCenter", where=text, hint="write https://vc.example.com")
    return Address(parts.hostname, port, parts.username or "")


def configured(name: str, config: Path | None, *, by_address: bool) -> tuple[VCenter, Config] | None:
    """The vCenter of this name, or else of this address where that counts, with its configuration."""
    place = config or find()
    if config is None and not place.exists():
        return None
    loaded = load(place)
    known = loaded.vcenter.get(name) or (_at(name, loaded) if by_address else None)
    return (known, loaded) if known is not None else None


def _at(text: str, config: Config) -> VCenter | None:
    """The only configured vCenter at this address; without a port in it, whatever its port."""
    address = parse_address(text)
    bare = urlsplit(text if "://" in text else f"https://{text}").port is None
    found = [
        vcenter
        for vcenter in config.vcenter.values()
        if vcenter.host.lower() == address.host.lower() and (bare or vcenter.port == address.port)
    ]
    return found[0] if len(found) == 1 else None


def read_authority(path: Path) -> str:
    """Certificates in PEM form; BadInput when the file cannot be read or holds none."""
    try:
        pem = path.read_text(encoding="ascii")
        ssl.create_default_context(cadata=pem)
    except (UnicodeDecodeError, ssl.SSLError):
        pem = ""
    if "BEGIN CERTIFICATE" not in pem:
        raise BadInput("this file holds no certificate in PEM form", where=f"--ca-file {path}")
    return pem


def user_of(address: Address, user: str | None) -> str:
    """Who logs in; BadInput when nobody is named."""
    named = user or address.user or os.environ.get(USER_VARIABLE, "")
    if not named:
        raise BadInput("no user was named", where="--user", hint=f"or set {USER_VARIABLE}")
    return named


def password_source(source: str | None) -> Secret:
    """Where the password is: as told, else in the environment, else asked for."""
    if source is not None:
        try:
            secret = parse_secret(source)
        except ValueError as error:
            raise BadInput(str(error), where="--password") from None
        return Secret("file", str(Path(secret.place).absolute())) if secret.kind == KINDS[0] else secret
    if PASSWORD_VARIABLE in os.environ:
        return Secret("env", PASSWORD_VARIABLE)
    if not sys.stdin.isatty():
        raise BadInput("no password was given", where="--password", hint=f"set {PASSWORD_VARIABLE}")
    os.environ[PASSWORD_VARIABLE] = getpass.getpass("vCenter password: ")
    return Secret("env", PASSWORD_VARIABLE)
