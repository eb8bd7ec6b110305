from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from storage import config as configs
from storage.blobs import LocalBlobs
from storage.errors import Damaged, WrongKey
from storage.format import ENTRY, PackKind
from storage.repository import create, open_repository
from tests.storage_kit import NOW, PASSPHRASE, back_up, files, image, make, opened, read_back


def test_the_wrong_passphrase_and_none_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "r", encrypted=True)
    with pytest.raises(WrongKey):
        open_repository(tmp_path / "r", passphrase=lambda: "wrong", now=NOW)
    with pytest.raises(WrongKey, match="no passphrase"):
        open_repository(tmp_path / "r", now=NOW)
    with opened(tmp_path / "r") as repo:
        assert repo.encrypted


def test_a_passphrase_in_any_script_opens_however_its_letters_are_composed(tmp_path: Path) -> None:
    for number, (made, typed) in enumerate((("Grün", "Gru\u0308n"), ("密码", "密码"), ("\udce4", "\udce4"))):
        with patch.object(configs, "KDF_MEMORY_KIB", 256):
            create(tmp_path / str(number), now=NOW, passphrase=made)
        with open_repository(tmp_path / str(number), passphrase=lambda word=typed: word, now=NOW) as repo:  # type: ignore[misc]
            assert repo.encrypted


def test_a_second_passphrase_opens_the_same_repository(tmp_path: Path) -> None:
    disk = image(1, 20)
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        point = back_up(repo, disk)
        configs.with_passphrase(LocalBlobs(tmp_path / "r"), repo.config, PASSPHRASE, "another")
    for passphrase in (PASSPHRASE, "another"):
        with open_repository(tmp_path / "r", passphrase=lambda word=passphrase: word, now=NOW) as repo:  # type: ignore[misc]
            assert read_back(repo, point.id) == disk
    with pytest.raises(WrongKey):
        configs.with_passphrase(LocalBlobs(tmp_path / "r"), repo.config, "wrong", "third")


def test_a_config_made_by_somebody_without_the_key_is_refused(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        forged = configs.Config(
            repo.config.repository, repo.config.created_at, 8192, repo.config.fan_out, repo.config.slots
        )
        sealing = type(repo.sealing)(repo.config.repository, b"k" * 32)
    (tmp_path / "r" / "config").write_bytes(configs.encode(forged, sealing))
    with pytest.raises(Damaged, match="with this key"):
        opened(tmp_path / "r")


def test_a_key_slot_may_not_ask_for_all_memory(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        slot = {**repo.config.slots[0], "memory_kib": configs.MAX_KDF_MEMORY_KIB + 1}
        greedy = configs.Config(repo.config.repository, "", 4096, 64, (slot,))
        (tmp_path / "r" / "config").write_bytes(configs.encode(greedy, repo.sealing))
    with pytest.raises(Damaged, match="memory"):
        opened(tmp_path / "r")


def test_no_nonce_repeats_under_a_key(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        for seed in range(3):
            back_up(repo, image(seed, 50), vm=f"vm-{seed}")
        salts = set()
        for name in repo.store.live.values():
            footer = repo.store.footers.get(name)
            salts.add(footer.header.salt)
            offsets = [footer.entry(slot).offset for slot in range(len(footer))]
            assert len(set(offsets)) == len(offsets)
            assert max(offsets) < 2**64  # and so never the footer's nonce
        assert len(salts) == len(repo.store.live)


def test_equal_disks_give_other_bytes_in_each_encrypted_repository(tmp_path: Path) -> None:
    sizes = []
    for name in ("a", "b"):
        with opened(make(tmp_path / name, encrypted=True)) as repo:
            back_up(repo, image(9, 30))
            tree = next(n for n in repo.store.live.values() if n.kind is PackKind.TREE)
            sizes.append({repo.store.footers.get(tree).entry(0).id})
    assert sizes[0].isdisjoint(sizes[1])
    first, second = (
        path.read_bytes() for path in (files(tmp_path / "a", "packs")[0], files(tmp_path / "b", "packs")[0])
    )
    assert len(first) == len(second)
    assert first[-ENTRY.size :] != second[-ENTRY.size :]
