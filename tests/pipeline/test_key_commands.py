"""backstay repo key, as a person uses it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.repository import open_repository
from tests.console import backstay, on_terminal


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with an encrypted repository `r` that `old` opens."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(f"{name} passphrase\n")
        (tmp_path / name).chmod(0o600)
    backstay("repo", "init", "r", "--encrypt", "--passphrase-file", "old", home=tmp_path)
    return tmp_path


def listed(home: Path) -> dict[str, str]:
    """Kind by id."""
    return {key["id"]: key["kind"] for key in backstay("repo", "key", "list", "--repo", "r", "--json", home=home).data}


def opens(home: Path, opener: str) -> bool:
    return backstay("points", "--repo", "r", "--passphrase-file", opener, home=home, expect=None).code == 0


def test_keys_are_added_rotated_and_removed(home: Path) -> None:
    (first,) = listed(home)
    made = backstay("repo", "key", "add", "--repo", "r", "--passphrase-file", "old", "--new-key-file", "key", home=home)
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    secret = (home / "key").read_text().split(":")[1]
    assert secret not in made.err + made.out
    keys = listed(home)
    second = next(key for key in keys if key != first)
    assert keys == {first: "passphrase", second: "key-file"}
    backstay(
        "repo", "key", "rotate", first, "--repo", "r", "--passphrase-file", "key", "--new-passphrase-file", "new",
        home=home,
    )  # fmt: skip
    assert not opens(home, "old") and opens(home, "new") and opens(home, "key")
    refused = backstay("repo", "key", "remove", first, "--repo", "r", "--passphrase-file", "new", home=home, expect=5)
    assert "opened the repository just now" in refused.err
    backstay("repo", "key", "remove", first, "--repo", "r", "--passphrase-file", "key", home=home)
    assert listed(home) == {second: "key-file"}
    last = backstay("repo", "key", "remove", second, "--repo", "r", "--passphrase-file", "key", home=home, expect=5)
    assert "last key" in last.err


def test_a_key_file_is_never_overwritten_nor_put_beside_what_it_opens(home: Path) -> None:
    for place, said in (("new", "there already"), ("r/key", "protects nothing"), ("no/where", "cannot be made")):
        ran = backstay(
            "repo", "key", "add", "--repo", "r", "--passphrase-file", "old", "--new-key-file", place,
            home=home, expect=None,
        )  # fmt: skip
        assert ran.code in (2, 5) and said in ran.err
    assert (home / "new").read_text() == "new passphrase\n" and not (home / "r" / "key").exists()
    assert len(listed(home)) == 1


def test_without_a_terminal_a_new_passphrase_comes_from_a_file_alone(home: Path) -> None:
    ran = backstay(
        "repo", "key", "add", "--repo", "r", home=home, env={"BACKSTAY_PASSPHRASE": "old passphrase"}, expect=2
    )
    assert "--new-passphrase-file" in ran.err
    assert "--new-passphrase-file" in backstay(
        "repo", "key", "rotate", "--repo", "r", "--passphrase-file", "old", "--new-passphrase-file", "new",
        "--new-key-file", "k", home=home, expect=2,
    ).err  # fmt: skip
    assert opens(home, "old")


def test_a_terminal_is_asked_for_the_old_and_twice_for_the_new(home: Path) -> None:
    code, shown = on_terminal(
        home,
        ["repo", "key", "rotate", "--repo", "r"],
        [("Passphrase: ", "old passphrase"), ("New passphrase: ", "a third"), ("The same again: ", "a third")],
    )
    assert code == 0 and "third" not in shown
    assert not opens(home, "old")


def test_keys_do_not_change_while_another_process_has_the_repository(home: Path) -> None:
    held = open_repository(
        home / "r", passphrase=lambda: "old passphrase", now=lambda: datetime.now(UTC), owner="somebody"
    )
    with held:
        ran = backstay(
            "repo", "key", "add", "--repo", "r", "--passphrase-file", "old", "--new-key-file", "key",
            home=home, expect=11,
        )  # fmt: skip
        assert "pid" in ran.err and not (home / "key").exists()
        assert len(listed(home)) == 1


def test_a_plain_repository_has_no_keys(tmp_path: Path) -> None:
    backstay("repo", "init", "r", home=tmp_path)
    assert "not encrypted" in backstay("repo", "key", "list", "--repo", "r", home=tmp_path).err
    assert "not encrypted" in backstay("repo", "key", "add", "--repo", "r", home=tmp_path, expect=5).err
    assert backstay("repo", "key", "list", "--repo", "none", home=tmp_path, expect=10).out == ""


def test_a_named_passphrase_refuses_a_repository_that_is_not_encrypted(home: Path) -> None:
    backstay("repo", "init", "plain", home=home)
    ran = backstay("points", "--repo", "plain", "--passphrase-file", "old", home=home, expect=12)
    assert "not encrypted" in ran.err
    backstay("points", "--repo", "plain", home=home, env={"BACKSTAY_PASSPHRASE": "for another one"})


def test_the_time_of_a_key_is_told_as_other_times_are(home: Path) -> None:
    (key,) = backstay("repo", "key", "list", "--repo", "r", "--json", home=home).data
    assert key["created_at"].endswith("Z")
