"""What commands ask on a terminal, and that passwords are not shown there."""

from __future__ import annotations

import os
from pathlib import Path

from tests.console import backstay, on_terminal


def test_a_new_passphrase_is_asked_twice_and_not_shown(tmp_path: Path) -> None:
    asked = [("New passphrase:", "open sesame"), ("same again:", "open sesame")]
    code, shown = on_terminal(tmp_path, ["repo", "init", "r", "--encrypt"], asked)
    assert code == 0, shown
    assert "open sesame" not in shown
    code, shown = on_terminal(tmp_path, ["points", "--repo", "r", "--json"], [("Passphrase:", "open sesame")])
    assert code == 0 and "[]" in shown and "open sesame" not in shown
    assert on_terminal(tmp_path, ["points", "--repo", "r"], [("Passphrase:", "wrong")])[0] == 12


def test_two_different_passphrases_make_no_repository(tmp_path: Path) -> None:
    asked = [("New passphrase:", "one"), ("same again:", "two")]
    code, shown = on_terminal(tmp_path, ["repo", "init", "r", "--encrypt"], asked)
    assert code == 2 and "not the same" in shown
    backstay("points", "--repo", "r", home=tmp_path, expect=10)


def test_a_long_read_shows_a_bar_on_a_terminal_and_leaves_the_result(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    (tmp_path / "disk.img").write_bytes(os.urandom(8 << 20))
    code, shown = on_terminal(tmp_path, ["disk", "backup", "disk.img", "--repo", "r", "--name", "web"], [])
    assert code == 0 and "Restore point" in shown and "8.0 MiB read" in shown
