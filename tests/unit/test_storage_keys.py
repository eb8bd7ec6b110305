"""Key slots: what opens a repository, what a change of keys leaves behind, and what a hostile config can do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from storage import config as configs
from storage import keyderivation, keyslots
from storage.errors import AlreadyExists, Damaged, NoRepository, Refused, StorageError, Unsupported, WrongKey
from storage.format import CONFIG_KEY, ObjectKind
from storage.keys import add_slot, described, remove_slot, rotate
from storage.repository import Repository, create, open_repository
from storage.sealing import Sealing, open_plain
from tests.storage_kit import NOW, PASSPHRASE, FaultyBlobs, back_up, image, later, make, opened, read_back

COPIES = ("config", "config.copy")


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
        yield


def opened_with(location: Path, opener: str) -> Repository:
    return open_repository(location, passphrase=lambda: opener, now=NOW, owner="test")


def document_of(location: Path, name: str = CONFIG_KEY) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(open_plain(ObjectKind.CONFIG, CONFIG_KEY, (location / name).read_bytes()))
    return found


def spoil(location: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Write the config as somebody who knows the format may, without the key unless it is given."""
    document = document_of(location)
    edited = edit(document)
    payload = keyslots.canonical(document) if edited is None else json.dumps(edited).encode()
    repository = keyslots_repository(location)
    for name in COPIES:
        (location / name).write_bytes(Sealing(repository, None).close_plain(ObjectKind.CONFIG, CONFIG_KEY, payload))


def keyslots_repository(location: Path) -> bytes:
    return (location / CONFIG_KEY).read_bytes()[16:32]


def test_several_passphrases_and_key_files_open_the_same_repository(tmp_path: Path) -> None:
    disk, key_file = image(1, 20), keyslots.new_key_file()
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        point = back_up(repo, disk)
        ids = {add_slot(repo, "another"), add_slot(repo, key_file), repo.config.opened_by}
    assert len(ids) == 3
    used = set()
    for opener in (PASSPHRASE, "another", key_file, f"\n{key_file}\n"):
        with opened_with(tmp_path / "r", opener) as repo:
            assert read_back(repo, point.id) == disk
            used.add(repo.config.opened_by)
    assert used == ids
    with pytest.raises(WrongKey, match="key file does not open"):
        opened_with(tmp_path / "r", keyslots.new_key_file())


def test_a_repository_may_have_key_files_alone(tmp_path: Path) -> None:
    key_file = keyslots.new_key_file()
    create(tmp_path / "r", now=NOW, passphrase=key_file)
    with opened_with(tmp_path / "r", key_file) as repo:
        assert [described(slot).kind for slot in repo.config.slots] == [keyslots.KEY_FILE]
    with pytest.raises(WrongKey):
        opened(tmp_path / "r")


def test_a_mistyped_key_file_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    key_file = keyslots.new_key_file()
    create(tmp_path / "r", now=NOW, passphrase=key_file)
    typed = key_file[:20] + ("1" if key_file[20] == "0" else "0") + key_file[21:]
    for wrong in (typed, key_file[:-9], f"{keyderivation.KEY_FILE_HEAD}:"):
        with pytest.raises(WrongKey, match="not as it was made"):
            opened_with(tmp_path / "r", wrong)


def test_a_removed_key_opens_no_more_and_is_in_no_copy(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        first = repo.config.opened_by
        second = add_slot(repo, "another")
        with pytest.raises(Refused, match="opened the repository just now"):
            remove_slot(repo, first)
        with pytest.raises(Refused, match="no key"):
            remove_slot(repo, "00000000")
    with opened_with(tmp_path / "r", "another") as repo:
        remove_slot(repo, first)
        with pytest.raises(Refused, match="last key"):
            remove_slot(repo, second)
    with pytest.raises(WrongKey):
        opened(tmp_path / "r")
    for name in COPIES:
        assert [slot["id"] for slot in document_of(tmp_path / "r", name)["slots"]] == [second]


def test_a_rotated_slot_keeps_its_id_and_nothing_of_its_old_wrapping(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        point = back_up(repo, image(1, 20))
        (old,) = repo.config.slots
        packs = {path.name: path.read_bytes() for path in (tmp_path / "r" / "packs").rglob("*.data")}
        with patch.object(keyslots, "KDF_ITERATIONS", 5):
            assert rotate(repo, "new") == old["id"] == repo.config.opened_by
    for name in COPIES:
        text = (tmp_path / "r" / name).read_bytes()
        assert old["salt"].encode() not in text and old["sealed"].encode() not in text
        assert document_of(tmp_path / "r", name)["slots"][0]["iterations"] == 5
    with pytest.raises(WrongKey):
        opened(tmp_path / "r")
    with opened_with(tmp_path / "r", "new") as repo:
        assert read_back(repo, point.id) == image(1, 20)
    assert packs == {path.name: path.read_bytes() for path in (tmp_path / "r" / "packs").rglob("*.data")}


def test_one_passphrase_never_makes_two_keys(tmp_path: Path) -> None:
    key_file = keyslots.new_key_file()
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        first = repo.config.opened_by
        second = add_slot(repo, key_file)
        with pytest.raises(Refused, match=f"this passphrase is key {first} already"):
            add_slot(repo, PASSPHRASE)
        with pytest.raises(Refused, match=f"this key file is key {second} already"):
            rotate(repo, key_file, first)
        assert rotate(repo, PASSPHRASE, first) == first  # the same under a new salt
        assert len(repo.config.slots) == 2


def test_another_slot_can_be_rotated_to_a_key_file(tmp_path: Path) -> None:
    key_file = keyslots.new_key_file()
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        other = add_slot(repo, "another")
        rotate(repo, key_file, other)
    with opened_with(tmp_path / "r", key_file) as repo:
        assert repo.config.opened_by == other
    with pytest.raises(WrongKey):
        opened_with(tmp_path / "r", "another")


def test_slots_have_a_limit_and_a_plain_repository_has_none(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        for _ in range(keyslots.MAX_SLOTS - 1):
            add_slot(repo, keyslots.new_key_file())
        with pytest.raises(Refused, match="16 keys"):
            add_slot(repo, "one more")
    with opened(make(tmp_path / "plain")) as repo, pytest.raises(Refused, match="not encrypted"):
        add_slot(repo, "one")


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("harm", ["missing", "empty", "flipped", "of a newer format", "plain text"])
def test_one_copy_of_the_config_is_enough_and_the_other_is_put_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encrypted: bool, name: str, harm: str
) -> None:
    location = make(tmp_path / "r", encrypted=encrypted)
    with opened(location) as repo:
        point = back_up(repo, image(1, 5))
    path, sound = location / name, (location / name).read_bytes()
    match harm:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            path.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
        case "of a newer format":
            path.write_bytes(sound[:8] + b"\xff" + sound[9:])
        case _:
            path.write_bytes(b"{}" * 100)
    with opened(location) as repo:
        assert read_back(repo, point.id) == image(1, 5)
        assert configs.damage(repo.blobs, repo.sealing) == []
    assert [(location / one).read_bytes() for one in COPIES] == [sound, sound]
    assert f"{name} is" in caplog.text and "put right" in caplog.text


@pytest.mark.parametrize("encrypted", [False, True])
def test_without_a_sound_copy_the_trouble_is_told(tmp_path: Path, encrypted: bool) -> None:
    location = make(tmp_path / "r", encrypted=encrypted)
    sound = (location / "config").read_bytes()
    for name in COPIES:
        (location / name).write_bytes(sound[:-1])
    with pytest.raises(Damaged, match="not what was written"):
        opened(location)
    with pytest.raises(AlreadyExists):
        create(location, now=NOW)
    for name in COPIES:
        (location / name).unlink()
    with pytest.raises(NoRepository):
        opened(location)


def test_a_damaged_copy_is_found_while_the_repository_is_open(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        old = (tmp_path / "r" / "config").read_bytes()
        add_slot(repo, "another")
        assert configs.damage(repo.blobs, repo.sealing) == []
        (tmp_path / "r" / "config").write_bytes(old)
        (tmp_path / "r" / "config.copy").unlink()
        assert [type(one).__name__ for one in configs.damage(repo.blobs, repo.sealing)] == ["Missing"]
        add_slot(repo, "a third")  # which writes both again
        (tmp_path / "r" / "config").write_bytes(old)
        assert ["newest" in str(one) for one in configs.damage(repo.blobs, repo.sealing)] == [True]


@pytest.mark.parametrize("opener", [PASSPHRASE, "new"])
def test_a_rotation_cut_short_is_finished_by_whichever_key_opens_next(tmp_path: Path, opener: str) -> None:
    location = make(tmp_path / "r", encrypted=True)
    before = (location / "config").read_bytes()
    with opened(location) as repo:
        rotate(repo, "new")
    (location / "config").write_bytes(before)  # as if it had died after the copy
    with opened_with(location, opener) as repo:
        rotated = repo.config
    for name in COPIES:
        assert document_of(location, name)["revision"] == 2
        assert before[-300:] not in (location / name).read_bytes()
    with pytest.raises(WrongKey):
        opened(location)
    with opened_with(location, "new") as repo:
        assert repo.config.slots == rotated.slots


def test_a_newer_revision_that_nobody_with_the_key_wrote_is_not_believed(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    sound = (location / "config").read_bytes()
    spoil(location, lambda document: document.update(revision=9, block_bytes=8192))
    (location / "config.copy").write_bytes(sound)
    with opened(location) as repo:
        assert repo.block_bytes == 4096
    assert (location / "config").read_bytes() == sound


def test_a_plain_config_in_the_place_of_an_encrypted_one_is_not_believed(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    sound = (location / "config").read_bytes()
    spoil(location, lambda document: document.update(revision=9, slots=[]))
    (location / "config.copy").write_bytes(sound)
    with opened(location) as repo:
        assert repo.encrypted
    assert (location / "config").read_bytes() == sound


def test_configs_of_two_repositories_are_refused(tmp_path: Path) -> None:
    for name in ("r", "s"):
        make(tmp_path / name)
    (tmp_path / "r" / "config").write_bytes((tmp_path / "s" / "config").read_bytes())
    with pytest.raises(Damaged, match="two repositories"):
        opened(tmp_path / "r")


def test_what_a_newer_version_wrote_beside_is_kept(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    with opened(location) as repo:
        newer = {"id": "0badcafe", "kind": "hardware", "anything": [1, 2]}
        configs.change(
            repo.blobs,
            repo.sealing,
            lambda config: replace(
                config, optional_features=("glitter",), rest={"comment": "ours"}, slots=(newer, *config.slots)
            ),
        )
    with opened(location) as repo:
        add_slot(repo, "another")
        assert repo.config.slots[0] == newer
    for name in COPIES:
        document = document_of(location, name)
        assert (document["comment"], document["optional_features"]) == ("ours", ["glitter"])
        assert document["revision"] == 3


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_unknown_feature_is_refused_by_its_name(tmp_path: Path, encrypted: bool) -> None:
    location = make(tmp_path / "r", encrypted=encrypted)
    with opened(location) as repo:
        configs.change(repo.blobs, repo.sealing, lambda config: replace(config, features=("striped-packs",)))
    with pytest.raises(Unsupported, match=r"striped-packs.*newer Backstay"):
        opened(location)


def test_a_feature_that_somebody_without_the_key_wrote_stops_nobody(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    sound = (location / "config.copy").read_bytes()
    spoil(location, lambda document: document.update(features=["striped-packs"], revision=9))
    (location / "config.copy").write_bytes(sound)
    with opened(location) as repo:
        assert repo.config.features == ()


def test_an_unknown_feature_is_told_with_the_copy_that_has_it(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    sound = (location / CONFIG_KEY).read_bytes()
    spoil(location, lambda document: document.update(features=["striped-packs"], revision=9))
    (location / CONFIG_KEY).write_bytes(sound)
    with pytest.raises(Unsupported) as told:
        opened(location)
    assert told.value.where == "config.copy"


def test_a_wrong_passphrase_is_told_with_the_repository(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    with pytest.raises(WrongKey, match="does not open") as told:
        opened_with(location, "wrong")
    assert told.value.where == str(location)


def _slot(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["slots"][0].update(fields)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list": lambda document: [document],
    "a number": lambda document: 7,
    "nothing": lambda document: {},
    "no revision": lambda document: document.pop("revision") and None,
    "a revision that is true": lambda document: document.update(revision=True),
    "a revision of text": lambda document: document.update(revision="2"),
    "an endless block": lambda document: document.update(block_bytes=1 << 40),
    "an odd block": lambda document: document.update(block_bytes=4097),
    "an endless node": lambda document: document.update(fan_out=1 << 30),
    "features of numbers": lambda document: document.update(features=[1]),
    "features that move the cursor": lambda document: document.update(features=["\x1b[2J"]),
    "another hash": lambda document: document.update(hash=9),
    "a newer format": lambda document: document.update(format=99),
    "slots that are none": lambda document: document.update(slots=[1]),
    "slots in an object": lambda document: document.update(slots={"a": 1}),
    "a thousand slots": lambda document: document.update(slots=document["slots"] * 1000),
    "a time of a number": lambda document: document.update(created_at=5),
    "a seal of a number": lambda document: document.update(seal=5),
    "an empty slot": lambda document: document.update(slots=[{}]),
    "a slot of an unknown kind": _slot(kind="hardware"),
    "a slot whose kind is a list": _slot(kind=[]),
    "all memory": _slot(memory_kib=1 << 40),
    "all time": _slot(iterations=1 << 40),
    "negative memory": _slot(memory_kib=-1),
    "memory of text": _slot(memory_kib="64"),
    "memory of a half": _slot(memory_kib=0.5),
    "more lanes than memory": _slot(lanes=1 << 20),
    "no salt": _slot(salt=None),
    "an empty salt": _slot(salt=""),
    "a salt of letters": _slot(salt="z" * 64),
    "a sealed key of length 0": _slot(sealed=""),
    "an id of a list": _slot(id=["a"]),
    "another derivation": _slot(kdf="md5"),
    "cheaper parameters": _slot(memory_kib=128),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_config_is_refused_in_a_clear_sentence(tmp_path: Path, what: str) -> None:
    location = make(tmp_path / "r", encrypted=True)
    spoil(location, HOSTILE[what])
    with pytest.raises((Damaged, Unsupported, WrongKey)) as told:
        opened(location)
    assert "\x1b" not in str(told.value) and len(str(told.value)) < 200


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{" * 2_000_000, b"1" * 5000])
def test_a_config_that_is_no_json_is_refused(tmp_path: Path, payload: bytes) -> None:
    location = make(tmp_path / "r")
    sealed = Sealing(keyslots_repository(location), None).close_plain(ObjectKind.CONFIG, CONFIG_KEY, payload)
    for name in COPIES:
        (location / name).write_bytes(sealed)
    with pytest.raises(StorageError):
        opened(location)


def test_a_slot_that_is_none_does_not_keep_another_from_opening(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    broken: list[dict[str, object]] = [
        {},
        {"kind": "passphrase"},
        {"id": "00000001", "kind": "passphrase", "salt": 3},
        {"kind": 5},
    ]
    with opened(location) as repo:
        configs.change(repo.blobs, repo.sealing, lambda config: replace(config, slots=(*broken, *config.slots)))
        assert [described(slot).id for slot in configs.list_slots(repo.blobs)][:3] == ["", "", "00000001"]
    with opened(location) as repo:
        assert repo.encrypted


def test_a_creation_cut_short_after_the_copy_is_a_repository(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    (location / "config").unlink()
    with pytest.raises(AlreadyExists):
        create(location, now=NOW)
    with opened(location, now=later(hours=1)) as repo:
        back_up(repo, image(1, 5))
    assert (location / "config").read_bytes() == (location / "config.copy").read_bytes()


def test_a_store_that_cannot_be_written_is_opened_with_the_copy_that_it_has(tmp_path: Path) -> None:
    location = make(tmp_path / "r", encrypted=True)
    with opened(location) as repo:
        point = back_up(repo, image(1, 5))
    (location / "config").unlink()
    with opened(location, blobs=FaultyBlobs(location, 1, once=True)) as repo:
        assert read_back(repo, point.id) == image(1, 5)
    assert not (location / "config").exists()


def test_a_plain_repository_in_the_place_of_an_encrypted_one_is_refused(tmp_path: Path) -> None:
    location = make(tmp_path / "r")
    with pytest.raises(WrongKey, match="not encrypted"):
        open_repository(location, passphrase=lambda: PASSPHRASE, must_be_encrypted=True, now=NOW)
    with opened(location) as repo:  # and its lock was given back
        assert not repo.encrypted
