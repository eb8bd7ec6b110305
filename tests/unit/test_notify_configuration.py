"""`[notify.NAME]` says where it is wrong and what to write; its secrets stay where they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import Config, parse
from engine.credentials import Secret
from engine.failures import BadInput

HERE = Path("/etc/backstay/backstay.toml")
LEAST = 'schema = 1\n[repository]\npath = "repo"\n'


def notify(text: str) -> Config:
    return parse(f"{LEAST}[notify.ops]\n{text}", HERE)


def test_a_webhook_names_the_places_of_its_secrets() -> None:
    target = notify('webhook = "file:ops.url"\nheaders = { Authorization = "file:ops.token", X-Id = "env:ID" }').notify[
        "ops"
    ]
    assert target.engine is True
    assert {key: str(secret) for key, secret in target.secrets().items()} == {
        "webhook": "file:/etc/backstay/ops.url",
        "headers.Authorization": "file:/etc/backstay/ops.token",
        "headers.X-Id": "env:ID",
    }


@pytest.mark.parametrize(
    ("more", "server"),
    [
        ('smtp = "mail.example.com"', ("mail.example.com", 587)),
        ('smtp = "mail.example.com"\nsecurity = "tls"', ("mail.example.com", 465)),
        ('smtp = "mail.example.com:2525"', ("mail.example.com", 2525)),
        ('smtp = "localhost"\nsecurity = "none"', ("localhost", 25)),
        ('smtp = "[::1]:2525"\nsecurity = "none"', ("::1", 2525)),
        ('smtp = "[::1]"\nsecurity = "none"', ("::1", 25)),
    ],
)
def test_a_mail_server_has_the_usual_port(more: str, server: tuple[str, int]) -> None:
    target = notify(f'{more}\nsender = "backstay@example.com"\nto = "ops@example.com"\nengine = false').notify["ops"]
    assert (target.server, target.to, target.engine) == (server, ("ops@example.com",), False)


MAIL = 'smtp = "mail.example.com"\nsender = "a@example.com"\nto = ["b@example.com"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'write webhook = "file:/path/to/address", or smtp'),
        (MAIL + 'webhook = "env:URL"', "and not both"),
        ('webhook = "https://hooks.example.com/s3cr3t"', "a secret does not stand here itself"),
        ('webhook = "env:URL"\nto = ["a@example.com"]', "a webhook takes no user, password, sender or to"),
        ('webhook = "env:URL"\nheaders = { Authorization = "s3cr3t" }', "a secret does not stand here itself"),
        ('webhook = "env:URL"\nheaders = { "X y" = "env:A" }', "is no name of a header"),
        ('webhook = "env:URL"\nheaders = { Host = "env:A" }', "the header Host is not for you to set"),
        (MAIL + 'headers = { A = "env:A" }', "mail takes no headers"),
        ('smtp = "mail.example.com"', "mail needs sender"),
        (MAIL + 'user = "me"', "user and password belong together"),
        (MAIL + 'security = "none"', "mail.example.com is not on this machine and needs TLS"),
        (MAIL.replace(".com", ".com:x", 1), '"mail.example.com:x" is no mail server'),
        (MAIL.replace("b@example.com", "b@example.com, c@example.com"), "is no mail address"),
        (MAIL.replace("b@example.com", "nobody"), '"nobody" is no mail address'),
        (MAIL + 'secrity = "tls"', 'did you mean "security"?'),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        notify(text)
    assert said in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    assert "backstay.toml:" in str(caught.value)


def test_a_place_of_a_secret_is_no_secret() -> None:
    target = notify('webhook = "credential:ops"').notify["ops"]
    assert target.webhook == Secret("credential", "ops")
