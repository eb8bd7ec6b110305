"""What keeps the engine from starting is told in one line with its exit code."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.client import Engine
from storage.repository import create, open_repository
from tests.console import BACKSTAY, backstay, environment

POLICY = "schema = 1\n[policy.everything]\nrpo = '24h'\nselect.all = ['*']\n"


def ready(home: Path) -> Path:
    """A configuration without vCenters whose engine would start."""
    backstay("init", "--config", home / "etc" / "backstay.toml", home=home)
    return home / "etc" / "backstay.toml"


def no_repository(config: Path) -> None:
    (config.parent / "repository").rename(config.parent / "elsewhere")


def wrong_passphrase(config: Path) -> None:
    (config.parent / "repository.passphrase").write_text("wrong")


def plain_repository(config: Path) -> None:
    (config.parent / "repository").rename(config.parent / "elsewhere")
    create(config.parent / "repository", now=datetime.now(UTC))


def open_passphrase(config: Path) -> None:
    (config.parent / "repository.passphrase").chmod(0o644)


def unknown_key(config: Path) -> None:
    config.write_text(config.read_text() + "\n[limits]\ntotla = 3\n")


def port_in_use(config: Path) -> None:
    config.write_text(config.read_text() + '\n[metrics]\nlisten = "192.0.2.1:9464"\n')


def policies_are_a_file(config: Path) -> None:
    folder = config.parent / "policies.d"
    (folder / "everything.toml").unlink()
    folder.rmdir()
    folder.write_text("")


def unreachable_login(config: Path) -> None:
    config.write_text(config.read_text() + '\n[vcenter.a]\nhost = "h"\nuser = "u"\npassword = "hunter2"\n')


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (no_repository, 10, "there is no repository here"),
        (wrong_passphrase, 12, "passphrase"),
        (plain_repository, 12, "not encrypted"),
        (open_passphrase, 2, "chmod 600"),
        (unknown_key, 2, 'did you mean "total"'),
        (port_in_use, 2, "192.0.2.1:9464"),
        (policies_are_a_file, 2, "policies.d"),
        (unreachable_login, 2, "vcenter.a.password"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_engine_that_cannot_start_says_why(
    tmp_path: Path, spoil: Callable[[Path], None], code: int, said: str
) -> None:
    config = ready(tmp_path)
    spoil(config)
    ran = backstay("run", "--config", config, home=tmp_path, expect=code)
    assert said in ran.err and "hunter2" not in ran.err
    assert not (tmp_path / "etc" / "state" / "backstay.sock").exists()


def test_without_a_configuration_run_says_what_writes_one(tmp_path: Path) -> None:
    assert "backstay init" in backstay("run", home=tmp_path, expect=2).err


def test_an_engine_waits_for_a_short_command_that_holds_the_repository(tmp_path: Path) -> None:
    config = ready(tmp_path)
    passphrase = (config.parent / "repository.passphrase").read_text().strip()
    held = open_repository(
        config.parent / "repository", passphrase=lambda: passphrase, now=lambda: datetime.now(UTC), owner="a command"
    )
    argv = [str(BACKSTAY), "run", "--config", str(config)]
    api = Engine(config.parent / "state" / "backstay.sock")
    with subprocess.Popen(argv, env=environment(tmp_path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as engine:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                engine.wait(timeout=2)
            held.close()
            until = time.monotonic() + 20
            while not api.listens() and time.monotonic() < until:
                time.sleep(0.05)
            assert api.get("/healthz")["ok"]
        finally:
            engine.send_signal(signal.SIGTERM)
        assert engine.wait(timeout=20) == 0
