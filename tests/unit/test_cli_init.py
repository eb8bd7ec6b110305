"""`backstay init` without a vCenter: what it writes, and above all what it never overwrites."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from engine.config import load
from tests.console import Ran, backstay


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def init(home: Path, *more: str | Path, expect: int = 0) -> Ran:
    return backstay("init", "--config", home / "etc" / "backstay.toml", *more, home=home, expect=expect)


def test_init_never_takes_away_the_passphrase_of_a_repository(home: Path) -> None:
    init(home)
    passphrase = home / "etc" / "repository.passphrase"
    before = passphrase.read_text()
    moved = (home / "etc" / "backstay.toml").rename(home / "moved.toml")
    assert "repository already" in init(home, expect=5).err
    assert "passphrase lies here" in init(home, "--repo", home / "another", expect=5).err
    assert passphrase.read_text() == before
    assert not (home / "another").exists()
    assert backstay("points", "--config", moved, "--json", home=home).data == []


def test_two_engines_of_one_host_have_two_names_each_of_which_stays(home: Path) -> None:
    """By their names they tell their own snapshots from the other's, which their janitors remove."""
    configs = [home / name / "backstay.toml" for name in ("one", "two")]
    for config in configs:
        backstay("init", "--config", config, "--repo", config.parent / "repo", home=home)
    names = [load(config).name for config in configs]
    assert names[0] != names[1]
    assert all(name.startswith(f"{socket.gethostname()}-") for name in names)
    assert load(configs[0]).name == names[0]


def test_without_a_vcenter_init_says_what_is_missing(home: Path) -> None:
    assert "Add your vCenter" in init(home).err


@pytest.mark.parametrize("option", ["--config", "--repo"])
def test_a_file_where_a_directory_is_wanted_is_named(home: Path, option: str) -> None:
    (home / "file").write_text("")
    place = {"--config": home / "etc" / "backstay.toml"} | {option: home / "file" / "below.toml"}
    told = backstay("init", *(word for pair in place.items() for word in pair), home=home, expect=2).err
    assert f"{home / 'file'}: a directory is wanted here" in told
    assert [path.name for path in home.iterdir()] == ["file"]


def test_options_that_cannot_be_meant_together_or_name_nothing_are_refused(home: Path) -> None:
    secret = home / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("long enough to be one")
    assert "no passphrase" in init(home, "--plain", "--passphrase-file", secret, expect=2).err
    assert "no such folder" in init(home, "--vddk", home / "none", expect=2).err
    assert not (home / "etc").exists()
