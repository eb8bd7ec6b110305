from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from storage import config as configs
from storage import keyslots
from storage.errors import Damaged, WrongKey
from storage.format import ENTRY, PackKind
from storage.repository import create, open_repository
from tests.storage_kit import NOW, back_up, files, image, make, opened


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
        with patch.object(keyslots, "KDF_MEMORY_KIB", 256):
            create(tmp_path / str(number), now=NOW, passphrase=made)
        with open_repository(tmp_path / str(number), passphrase=lambda word=typed: word, now=NOW) as repo:  # type: ignore[misc]
            assert repo.encrypted


def test_a_config_made_by_somebody_without_the_key_is_refused(tmp_path: Path) -> None:
    with opened(make(tmp_path / "r", encrypted=True)) as repo:
        forged = configs.Config(
            repo.config.repository, repo.config.created_at, 8192, repo.config.fan_out, repo.config.slots
        )
        sealing = type(repo.sealing)(repo.config.repository, b"k" * 32)
    for name in ("config", "config.copy"):
        (tmp_path / "r" / name).write_bytes(configs.encode(forged, sealing))
    with pytest.raises(Damaged, match="with this key"):
        opened(tmp_path / "r")


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
