"""One notice, one attempt: what real servers get, and what an attempt that fails says. No secret is ever repeated."""

from __future__ import annotations

import asyncio
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors import notices
from connectors.errors import ConnectorError, LoginRefused, Rejected, Unreachable
from connectors.notices import Mail, Notice, Webhook, deliver
from tests.lab.certificates import Certificates, make_certificates
from tests.receivers import mail_server, webhook

NOTICE = Notice(
    datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    "Backstay: dbü-1 missed its RPO",
    "dbü-1 missed its RPO of 4 h\n.\nlast line",
    {"format": 1, "topic": "rpo"},
)
SECRET = "s3cr3t"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def server_tls(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    return context


async def failure(target: Webhook | Mail) -> ConnectorError:
    with pytest.raises(ConnectorError) as caught:
        await deliver(target, NOTICE)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    return caught.value


# webhooks


async def test_a_webhook_gets_a_json_document_with_the_headers_of_the_configuration() -> None:
    async with webhook() as hook:
        target = Webhook(lambda: hook.url, {"Authorization": lambda: f"Bearer {SECRET}"})
        assert await deliver(target, NOTICE) == "HTTP 204"
    [got], [headers] = hook.got, hook.headers
    assert got == {
        "format": 1,
        "topic": "rpo",
        "at": "2026-03-01T12:00:00Z",
        "subject": NOTICE.subject,
        "text": NOTICE.text,
    }
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["content-type"] == "application/json"
    assert hook.paths == ["/hooks/s3cr3t-path"]


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (301, Rejected, "HTTP 301"),
        (401, LoginRefused, "HTTP 401"),
        (403, LoginRefused, "HTTP 403"),
        (404, Rejected, "HTTP 404"),
        (408, Unreachable, "HTTP 408"),
        (429, Unreachable, "HTTP 429"),
        (500, Unreachable, "HTTP 500"),
        (503, Unreachable, "HTTP 503"),
    ],
)
async def test_an_answer_that_is_no_success_says_whether_another_attempt_may_help(
    status: int, kind: type[ConnectorError], said: str
) -> None:
    async with webhook() as hook:
        hook.answers = [status]
        error = await failure(Webhook(lambda: hook.url))
    assert type(error) is kind
    assert error.retry is (kind is Unreachable)
    assert said in str(error)


async def test_a_webhook_over_tls_is_believed_only_with_the_authority_that_signed_it(
    certificates: Certificates,
) -> None:
    async with webhook(tls=server_tls(certificates)) as hook:
        error = await failure(Webhook(lambda: hook.url))
        assert isinstance(error, Unreachable)
        assert "its certificate is not trusted" in str(error)
        assert not hook.got
        assert await deliver(Webhook(lambda: hook.url, ca_file=certificates.authority), NOTICE) == "HTTP 204"


@pytest.mark.parametrize(
    "address",
    [
        f"http://example.com/{SECRET}",
        f"ftp://127.0.0.1/{SECRET}",
        SECRET,
        f"https://[{SECRET}",
        f"https://127.0.0.1:{SECRET}/",
        f"https:///{SECRET}",
        f"http://127.0.0.1:1/{SECRET}\x00",
    ],
)
async def test_an_address_that_cannot_be_used_is_refused_without_being_repeated(address: str) -> None:
    assert isinstance(await failure(Webhook(lambda: address)), Rejected)


@pytest.mark.parametrize("value", [f"{SECRET}\r\nX: y", f"{SECRET}\x00", f"{SECRET}ü€"])
async def test_a_header_that_cannot_be_sent_is_refused_without_being_repeated(value: str) -> None:
    async with webhook() as hook:
        error = await failure(Webhook(lambda: hook.url, {"Authorization": lambda: value}))
        assert isinstance(error, Rejected)
        assert not hook.got


async def test_nobody_there_and_a_silent_one_are_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "ANSWER_SECONDS", 0.2)
    async with webhook() as hook:
        hook.silent = True
        assert "did not answer within 0.2 s" in str(await failure(Webhook(lambda: hook.url)))
    error = await failure(Webhook(lambda: hook.url))
    assert isinstance(error, Unreachable)
    assert "cannot be reached" in str(error)


async def test_a_webhook_on_this_machine_is_not_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with webhook() as hook, webhook() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        await deliver(Webhook(lambda: hook.url), NOTICE)
        assert (len(hook.got), len(proxy.got)) == (1, 0)


async def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    target = Webhook(lambda: "https://127.0.0.1:1/", ca_file=tmp_path / "none.pem")
    assert "none.pem" in str(await failure(target))
    (tmp_path / "none.pem").write_text("nothing")
    assert isinstance(await failure(target), Rejected)


# mail


def mail(port: int, *, security: str = "none", user: str = "", ca_file: Path | None = None) -> Mail:
    assert security in ("none", "tls", "starttls")
    return Mail(
        "127.0.0.1",
        port,
        "Backstay <backstay@example.com>",
        ("ops@example.com", "dba@example.com"),
        security=security,  # type: ignore[arg-type]
        user=user,
        password=(lambda: SECRET) if user else None,
        ca_file=ca_file,
    )


async def test_a_mail_arrives_with_its_text_and_its_recipients() -> None:
    async with mail_server() as server:
        assert await deliver(mail(server.port), NOTICE) == "taken by the mail server"
    [got] = server.mails
    assert got["Subject"] == NOTICE.subject
    assert got["Date"].datetime == NOTICE.at
    assert got["Auto-Submitted"] == "auto-generated"
    assert got["Message-ID"].endswith("@example.com>")
    assert got.get_content().replace("\r\n", "\n").replace("\n..\n", "\n.\n") == NOTICE.text + "\n"
    assert server.envelopes == [("backstay@example.com", ("ops@example.com", "dba@example.com"))]


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_mail_goes_over_tls_to_a_server_that_is_believed_and_logs_in_there(
    security: str, certificates: Certificates
) -> None:
    context = server_tls(certificates)
    async with mail_server(tls=context, at_once=security == "tls", login=("backstay", SECRET)) as server:
        error = await failure(mail(server.port, security=security, user="backstay"))
        assert "its certificate is not trusted" in str(error)
        target = mail(server.port, security=security, user="backstay", ca_file=certificates.authority)
        await deliver(target, NOTICE)
        assert server.encrypted == [True]


async def test_a_server_without_starttls_gets_neither_mail_nor_password() -> None:
    async with mail_server(login=("backstay", SECRET)) as server:
        error = await failure(mail(server.port, security="starttls", user="backstay"))
        assert isinstance(error, Rejected)
        assert "STARTTLS" in str(error)
        assert not server.mails


@pytest.mark.parametrize(
    ("command", "answer", "kind", "said"),
    [
        ("AUTH", "535 5.7.8 wrong s3cr3t", LoginRefused, "535"),
        ("AUTH", "454 4.7.0 not now s3cr3t", Unreachable, "454"),
        ("MAIL", "451 4.3.0 later", Unreachable, "451 4.3.0 later"),
        ("MAIL", "550 5.7.1 not you", Rejected, "550 5.7.1 not you"),
        ("RCPT", "550 5.1.1 nobody", Rejected, "550 5.1.1 nobody"),
        ("RCPT", "450 4.2.1 greylisted", Unreachable, "450 4.2.1 greylisted"),
        ("DATA", "554 5.6.0 no", Rejected, "554 5.6.0 no"),
    ],
)
async def test_what_a_mail_server_refuses_says_whether_another_attempt_may_help(
    command: str, answer: str, kind: type[ConnectorError], said: str
) -> None:
    async with mail_server(login=("backstay", SECRET)) as server:
        server.refuse[command] = answer
        error = await failure(mail(server.port, user="backstay"))
    assert type(error) is kind
    assert said in str(error)


async def test_a_mail_server_that_is_away_or_silent_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notices, "ANSWER_SECONDS", 0.2)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert isinstance(await failure(mail(port)), Unreachable)
    error = await failure(mail(port))
    assert isinstance(error, Unreachable)
    assert "refused" in str(error)


async def test_the_name_of_a_vm_makes_no_header() -> None:
    notice = Notice(NOTICE.at, "db\r\nBcc: everybody@example.com " + "x" * 500, "text")
    async with mail_server() as server:
        await deliver(mail(server.port), notice)
    [got] = server.mails
    assert got["Bcc"] is None
    assert len(got["Subject"]) == notices.LONGEST_SUBJECT


@pytest.mark.parametrize("password", ["päss-s3cr3t", "s3cr3t\r\nRCPT TO:<x@example.com>"])
async def test_a_login_of_odd_letters_repeats_nothing_and_adds_no_command(password: str) -> None:
    async with mail_server(login=("backstay", "other")) as server:
        target = replace(mail(server.port, user="backstay"), password=lambda: password)
        assert isinstance(await failure(target), (Rejected, LoginRefused))
        assert not server.mails


async def test_text_that_is_no_text_is_refused() -> None:
    odd = Notice(NOTICE.at, "odd \ud800", "odd \ud800")
    async with mail_server() as server, webhook() as hook:
        with pytest.raises(Rejected, match="cannot be sent"):
            await deliver(mail(server.port), odd)
        assert await deliver(Webhook(lambda: hook.url), odd) == "HTTP 204"


async def test_who_stops_waiting_is_not_held_by_a_silent_mail_server() -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await released.wait()
        writer.close()

    connected, released = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(deliver(mail(port), NOTICE))
            await connected.wait()
            sending.cancel()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < notices.ANSWER_SECONDS / 2
        mine = [thread for thread in threading.enumerate() if thread.name == "notice"]
        released.set()
        assert mine and all(thread.daemon for thread in mine), "the process ends without them"
