"""`[notify.NAME]`: whom to tell what needs a person, by a webhook or by mail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.addresses import is_loopback
from engine.credentials import Secret
from engine.stores import SecretSource, Section

SECURITY_PORTS = {"starttls": 587, "tls": 465, "none": 25}
"""The port that is usual for each."""

OUR_HEADERS = frozenset({"content-type", "content-length", "host", "transfer-encoding", "connection"})


def _mail_address(value: str) -> str:
    name, at, domain = value.partition("@")
    if not (name and at and domain) or set(value) & set(' \t\r\n<>,;"') or not value.isascii():
        raise ValueError(f'"{value}" is no mail address; write for instance "ops@example.com"')
    return value


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _check_header(name: str) -> None:
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name) or not name.isascii():
        raise ValueError(f'"{name}" is no name of a header')
    if name.lower() in OUR_HEADERS:
        raise ValueError(f"the header {name} is not for you to set; leave it out")


MailAddress = Annotated[str, AfterValidator(_mail_address)]
MailAddresses = Annotated[tuple[MailAddress, ...], BeforeValidator(_one_or_more)]


class Notify(Section):
    """`[notify.NAME]`: a target of notices, which policies name in `notify`.

    Either `webhook`, a source of its address, with `headers`, whose values are sources too; or `smtp`, a mail server
    as "host" or "host:port", with `sender` and `to`. `security` is "starttls", "tls" from the first byte, or "none",
    for a server on this machine. With `engine` it is told as well what belongs to no policy.
    """

    webhook: SecretSource | None = None
    headers: dict[str, SecretSource] = Field(default_factory=dict)
    smtp: str = ""
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password: SecretSource | None = None
    sender: MailAddress | None = None
    to: MailAddresses = ()
    ca_file: Path | None = None
    engine: bool = True

    @model_validator(mode="after")
    def _is_one_target(self) -> Notify:
        if (self.webhook is None) == (not self.smtp):
            raise ValueError('write webhook = "file:/path/to/address", or smtp = "mail.example.com", and not both')
        for name in self.headers:
            _check_header(name)
        if self.webhook is not None:
            if self.user or self.password or self.sender or self.to:
                raise ValueError("a webhook takes no user, password, sender or to; leave them out")
            return self
        if self.headers:
            raise ValueError("mail takes no headers; leave them out")
        if self.sender is None or not self.to:
            raise ValueError('mail needs sender = "backstay@example.com" and to = ["ops@example.com"]')
        if bool(self.user) != (self.password is not None):
            raise ValueError("user and password belong together; add the missing one")
        host, _ = self.server
        if self.security == "none" and not is_loopback(host):
            raise ValueError(f'{host} is not on this machine and needs TLS; write security = "starttls" or "tls"')
        return self

    @property
    def server(self) -> tuple[str, int]:
        """Host and port of the mail server."""
        bracketed = self.smtp.startswith("[") and self.smtp.endswith("]")
        host, colon, port = ("", "", "") if bracketed else self.smtp.rpartition(":")
        if not colon:
            return self.smtp.strip("[]"), SECURITY_PORTS[self.security]
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f'"{self.smtp}" is no mail server; write for instance "mail.example.com:587"')
        return host.strip("[]"), int(port)

    def secrets(self) -> dict[str, Secret]:
        """The sources of what is secret, by key."""
        found = {"webhook": self.webhook, "password": self.password}
        found |= {f"headers.{name}": secret for name, secret in self.headers.items()}
        return {key: secret for key, secret in found.items() if secret is not None}
