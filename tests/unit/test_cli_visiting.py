"""Which vCenter is meant: by its name in the configuration, by its address there, or one that nobody configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cli.look import look
from engine.cli.visiting import configured
from engine.failures import BadInput

CONFIG = """
schema = 1
repository.path = "repository"

[vcenter.main]
host = "vc.example.com"
port = 8443
user = "backup"
password = "file:password"

[vcenter.east]
host = "both.example.com"
user = "backup"
password = "file:password"

[vcenter.west]
host = "both.example.com"
port = 9443
user = "backup"
password = "file:password"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "backstay.toml").write_text(CONFIG)
    return tmp_path / "backstay.toml"


@pytest.mark.parametrize(
    ("named", "port"),
    [
        ("main", 8443),
        ("vc.example.com", 8443),
        ("https://VC.example.com:8443/ui", 8443),
        ("vc.example.com:443", None),
        ("both.example.com", None),
        ("both.example.com:9443", 9443),
        ("other.example.com", None),
    ],
)
def test_a_configured_vcenter_is_known_by_its_name_and_its_address(config: Path, named: str, port: int | None) -> None:
    found = configured(named, config, by_address=True)
    assert (found[0].port if found is not None else None) == port


def test_who_says_how_to_log_in_does_not_mean_what_is_configured_at_that_address(config: Path) -> None:
    assert configured("vc.example.com", config, by_address=False) is None


def test_a_login_beside_a_configured_name_is_refused_not_overlooked(config: Path) -> None:
    with pytest.raises(BadInput, match="says how to log in"):
        look("main", user="somebody", config=config)
