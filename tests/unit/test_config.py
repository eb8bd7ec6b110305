"""The configuration says where it is wrong and what to write; secrets stay where they are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.nats_login import BusSettings
from engine.addresses import split_address
from engine.config import Config, load, parse
from engine.connecting import bus_settings
from engine.credentials import Secret, parse_secret
from engine.failures import BadInput

HERE = Path("/etc/backstay/backstay.toml")
HOUR = timedelta(hours=1)
LEAST = 'schema = 1\n[repository]\npath = "repo"\n'


def test_what_is_not_said_has_a_default_and_paths_start_at_the_file() -> None:
    config = parse(LEAST, HERE)
    assert config.place == config.repository.path == Path("/etc/backstay/repo")
    assert config.policies == Path("/etc/backstay/policies.d")
    assert config.vcenter == {} and config.bus is None
    assert config.timers.reconcile == timedelta(minutes=15)
    assert config.socket.name == "backstay.sock"


def test_everything_that_can_be_said_is_understood() -> None:
    config = parse(
        """schema = 1
name = "site-a"
state_dir = "/var/lib/backstay"
[repository]
path = "/srv/backstay"
passphrase = "credential:repository"
[vcenter.main]
host = "vc.example.com"
user = "backup@vsphere.local"
password = "file:vc.password"
ca_file = "vc.pem"
[api]
tcp = "127.0.0.1:8443"
token = "env:TOKEN"
[bus]
servers = ["tls://nats.example.com:4222"]
credentials = "nats.creds"
[transport]
order = ["nbd"]
nbdkit = "nbdkit -v"
plugin = ["/usr/lib/plugin.so", "x=1"]
[limits]
total = 9
per_vcenter = 6
[timers]
verify = "3d"
""",
        HERE,
    )
    vcenter = config.vcenter["main"]
    assert vcenter.password == Secret("file", "/etc/backstay/vc.password")
    assert vcenter.ca_file == Path("/etc/backstay/vc.pem")
    assert config.transport.nbdkit == ("nbdkit", "-v")
    assert (config.limits.total, config.timers.verify) == (9, timedelta(days=3))
    assert (config.limits.per_vcenter, config.limits.per_repository, config.limits.starts_per_minute) == (6, None, 60)


def test_the_window_of_a_repository_comes_before_that_of_verification_and_that_of_all_work() -> None:
    more = """maintenance_window = "sat 00:00-24:00"
[repositories.archive]
path = "archive"
[copies.offsite]
path = "offsite"
[maintenance]
window = ["01:00-05:00"]
verify_window = "22:00-06:00"
timezone = "Europe/Berlin"
"""
    config = parse(LEAST + more, HERE)
    offsite = config.hours_of(config.copies["offsite"])
    every = (config.verify_hours(), config.reclaim_hours(), config.verify_hours("archive"))
    texts = [[window.text for window in hours.windows] for hours in (*every, config.reclaim_hours("archive"), offsite)]
    assert texts == [["sat 00:00-24:00"], ["sat 00:00-24:00"], ["22:00-06:00"], ["01:00-05:00"], ["01:00-05:00"]]
    winter = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
    assert (offsite.opens(winter), offsite.closes(winter)) == (winter + 12 * HOUR, winter + 16 * HOUR)
    assert not offsite.is_open(winter)
    always = parse(LEAST, HERE).reclaim_hours()
    assert always.is_open(winter)
    assert (always.opens(winter), always.closes(winter)) == (winter, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = 1\n", "/etc/backstay/backstay.toml:1:1: repository is missing"),
        ("schema = 1\nrepository = 3\n", ":2:"),
        ("[repository]\npath = 'x'\n", "schema is missing"),
        ("schema = 1\n[repository]\npath = 'x'\n[policies]\nx = 1\n", "policies: write a path in quotes, such as"),
        ("schema = 2\n[repository]\npath = 'x'\n", ":1:1: schema: input should be 1"),
        (LEAST + "[timers]\nverfiy = '7d'\n", ':5:1: unknown key timers.verfiy, did you mean "verify"?'),
        ("polices = 'x'\n" + LEAST, ':1:1: unknown key polices, did you mean "policies"?'),
        (LEAST + "[timers]\nclock = 3\n", 'timers.clock: "3" is not a duration'),
        (LEAST + "[timers]\nclock = '0s'\n", "timers.clock: must be longer than nothing"),
        (LEAST + "[limits]\ntotal = 0\n", "limits.total: input should be greater than or equal to 1"),
        (LEAST + "[api]\ntcp = '127.0.0.1:1'\n", "tcp needs a token"),
        (LEAST + "[api]\ntcp = '0.0.0.0:1'\ntoken = 'env:X'\n", "tcp beyond loopback needs certificate"),
        (LEAST + "[api]\ntcp = 'localhost'\n", "is not an address with a port"),
        (LEAST + "[bus]\nservers = 'nats://nats.example.com:4222'\n", "needs TLS"),
        (LEAST + "[bus]\nservers = 'tls://nats.example.com:4222'\n", "add credentials"),
        (LEAST + "[bus]\nservers = 'nats://u:p@localhost:4222'\n", "holds no password"),
        (LEAST + "[bus]\nservers = 'nats://localhost:4222'\nuser = 'u'\n", "user and password belong together"),
        (LEAST + "[bus]\nservers = 'nats://localhost:4222'\nkey = 'k'\n", "certificate and key belong together"),
        (
            LEAST + "[bus]\nservers = 'nats://localhost:4222'\nnkey_file = 'n'\ncredentials = 'c'\n",
            "keep one way to log in",
        ),
        (LEAST + "[bus]\nservers = 'nats://localhost:4222'\nack_wait = '10ms'\n", "bus.ack_wait"),
        (LEAST + "[bus]\nservers = 'nats://localhost:4222'\nmonitor_url = 'u:p@localhost'\n", "bus.monitor_url"),
        (LEAST + "[bus]\nservers = 'nats://localhost:4222'\nstream = 'X'\n", "unknown key bus.stream"),
        (LEAST + "[transport]\norder = ['san']\n", "transport.order.0"),
        (LEAST + "[vcenter.a]\nhost = 'h'\nuser = 'u'\n", ":4:10: vcenter.a.password is missing"),
        (LEAST + "x = \n", "this is not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_to_write(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, HERE)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(HERE))


def test_a_secret_in_the_configuration_itself_is_refused_and_not_repeated() -> None:
    with pytest.raises(BadInput) as caught:
        parse(LEAST + "[vcenter.a]\nhost = 'h'\nuser = 'u'\npassword = 'hunter2'\n", HERE)
    assert "hunter2" not in str(caught.value) and "file:/path" in str(caught.value)


def test_every_mistake_is_told_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(BadInput) as caught:
        parse("schema = 1\nstaet_dir = 'x'\n[bus]\nserver = 'x'\n[repository]\npath = 'x'\n", HERE)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0].removeprefix(str(HERE)) for line in lines] == [":2:1", ":3:2", ":4:1"]


def test_a_missing_file_says_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="backstay init"):
        load(tmp_path / "none.toml")


def test_a_secret_shows_its_place_and_never_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VC_PASSWORD", "hunter2")
    kept = tmp_path / "kept"
    kept.write_text("hunter2\n")
    kept.chmod(0o600)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for source in ("env:VC_PASSWORD", f"file:{kept}", "credential:kept", "command:printf hunter2"):
        secret = parse_secret(source)
        assert secret.read() == "hunter2"
        assert "hunter2" not in repr(secret).replace("printf hunter2", "") and str(secret) == source


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("env:NOT_SET_AT_ALL", "not set"),
        ("file:/nowhere/at/all", "cannot be read"),
        ("credential:x", "systemd passed no credentials"),
        ("command:false", "ended with code 1"),
        ("command:/nowhere/at/all", "cannot be run"),
        ("command:true", "is empty"),
    ],
)
def test_a_secret_that_is_not_there_says_where_it_was_looked_for(
    source: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(BadInput, match=said) as caught:
        parse_secret(source).read()
    assert str(caught.value).startswith(source.split(" ")[0].replace("file:", ""))


def test_a_secret_file_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("hunter2")
    kept.chmod(0o604)
    with pytest.raises(BadInput, match="chmod 600"):
        parse_secret(f"file:{kept}").read()


def test_everything_that_is_said_of_the_bus_reaches_its_connector() -> None:
    config = parse(
        LEAST
        + """[bus]
servers = ["tls://nats.example.com:4222"]
site = "north"
nkey_file = "engine.nk"
ca_file = "ca.pem"
certificate = "engine.pem"
key = "engine.key"
monitor_url = "http://nats.example.com:8222"
ack_wait = "90s"
max_deliver = 3
""",
        HERE,
    )
    assert config.bus is not None
    assert bus_settings(config.bus) == BusSettings(
        servers=("tls://nats.example.com:4222",),
        site="north",
        nkey_file=HERE.parent / "engine.nk",
        tls_ca=HERE.parent / "ca.pem",
        tls_certificate=HERE.parent / "engine.pem",
        tls_key=HERE.parent / "engine.key",
        monitor_url="http://nats.example.com:8222",
        ack_wait_seconds=90.0,
        max_deliver=3,
    )


@pytest.mark.parametrize(
    ("login", "field"),
    [
        ("credentials = 'x'", "credentials_file"),
        ("token = 'file:x'", "token_file"),
        ("user = 'u'\npassword = 'file:x'", "password_file"),
    ],
)
def test_each_way_to_log_in_to_the_bus_reaches_its_connector(login: str, field: str) -> None:
    config = parse(LEAST + f"[bus]\nservers = 'tls://nats.example.com:4222'\n{login}\n", HERE)
    assert config.bus is not None
    assert getattr(bus_settings(config.bus), field) == HERE.parent / "x"


def test_a_secret_of_the_bus_that_is_not_in_a_file_is_refused() -> None:
    config = parse(LEAST + "[bus]\nservers = 'nats://localhost:4222'\ntoken = 'env:X'\n", HERE)
    assert config.bus is not None
    with pytest.raises(BadInput, match=r"bus\.token"):
        bus_settings(config.bus)


def test_addresses_need_a_port() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    for wrong in ("localhost", ":80", "h:port", "h:99999"):
        with pytest.raises(ValueError, match="not an address"):
            split_address(wrong)


def test_the_configuration_can_be_shown_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "hunter2")
    config: Config = parse(LEAST + "[vcenter.a]\nhost = 'h'\nuser = 'u'\npassword = 'env:X'\n", HERE)
    assert config.vcenter["a"].password.read() == "hunter2"
    assert "hunter2" not in repr(config) + str(config.model_dump())
