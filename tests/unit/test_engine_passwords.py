"""A password that cannot be read ends a start, and never an engine that has logged in with it before."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.errors import LoginRefused
from engine.connecting import password_of
from engine.credentials import Secret
from engine.failures import BadInput


def test_a_password_that_vanishes_is_waited_for_and_one_that_never_was_is_bad_input(tmp_path: Path) -> None:
    place = tmp_path / "password"
    read = password_of(Secret("file", str(place)))
    with pytest.raises(BadInput):
        read()
    place.write_text("secret\n")
    place.chmod(0o600)
    assert read() == "secret"
    place.unlink()
    with pytest.raises(LoginRefused, match="cannot be read now"):
        read()
