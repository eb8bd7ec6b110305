"""A key that is begun before a command is known: only where its arguments leave no doubt, and never in its way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.cli import ahead
from engine.cli.ahead import begin_key
from storage import keyderivation
from storage.format import ENVELOPE
from storage.keyderivation import KDF_ITERATIONS, KDF_LANES, KDF_MEMORY_KIB, Derivation
from storage.keyslots import new_key_file
from storage.owner import Ownership
from tests.storage_kit import NOW, make

PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def nothing_begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BACKSTAY_PASSPHRASE", raising=False)
    keyderivation._begun.clear()
    yield
    keyderivation._begun.clear()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def repository(tmp_path: Path, secret: Path) -> Path:
    place = tmp_path / "r"
    assert main(["repo", "init", str(place), "--encrypt", "--passphrase-file", str(secret)]) == 0
    assert main(["points", "--repo", str(place), "--passphrase-file", str(secret)]) == 0
    return place


def test_it_finds_the_document_where_the_format_has_it() -> None:
    assert ENVELOPE.size == ahead.CONFIG_HEAD_BYTES


def test_the_command_takes_the_key_that_was_begun(
    repository: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    derived: list[str] = []
    argon2id = keyderivation._argon2id

    def counted(derivation: Derivation) -> bytes:
        derived.append(threading.current_thread().name)
        return argon2id(derivation)

    monkeypatch.setattr(keyderivation, "_argon2id", counted)
    for given in (["--passphrase-file", str(secret)], []):
        if not given:
            monkeypatch.setenv("BACKSTAY_PASSPHRASE", PASSPHRASE)
        assert main(["points", "--repo", str(repository), *given]) == 0
    assert derived == ["key derivation", "key derivation"]
    assert not keyderivation._begun


def test_a_wrong_passphrase_is_told_as_ever(repository: Path, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret.write_text("wrong\n")
    assert main(["points", "--repo", str(repository), "--passphrase-file", str(secret)]) == 12
    assert "the passphrase does not open this repository" in capsys.readouterr().err


def test_a_derivation_that_fails_is_told_where_the_key_is_needed() -> None:
    impossible = Derivation("x", b"salt" * 4, 1, 1, 4)
    keyderivation.begin(impossible)
    with pytest.raises(ValueError, match="memory_cost"):
        keyderivation.derive(impossible)


def test_a_machine_without_threads_derives_the_key_when_it_is_needed(
    repository: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        begin_key(["points", "--repo", str(repository), "--passphrase-file", str(secret)])
    assert not keyderivation._begun


def test_no_message_has_the_passphrase() -> None:
    assert PASSPHRASE not in repr(Derivation(PASSPHRASE, b"salt", 1, 1, 1))


def test_one_key_is_derived_after_the_other() -> None:
    one, other = (Derivation(text, b"salt" * 4, KDF_MEMORY_KIB, KDF_ITERATIONS, KDF_LANES) for text in ("one", "other"))
    keyderivation.begin(one)
    assert keyderivation.derive(other) != keyderivation.derive(one)


def test_nothing_is_begun_where_there_is_any_doubt(repository: Path, secret: Path, tmp_path: Path) -> None:
    plain = make(tmp_path / "plain")
    pipe, open_to_all, empty, key_file = (tmp_path / name for name in ("pipe", "open", "empty", "key-file"))
    os.mkfifo(pipe, 0o600)
    open_to_all.write_text(PASSPHRASE)
    open_to_all.chmod(0o644)
    empty.touch(0o600)
    key_file.touch(0o600)
    key_file.write_text(new_key_file())
    at, by = ["points", "--repo", str(repository)], ["--passphrase-file", str(secret)]
    for given in (
        ["points", *by],
        at,
        ["points", "--repo", "s3://bucket/folder", *by],
        ["points", "--repo", str(tmp_path / "nothing"), *by],
        ["points", "--repo", str(plain), *by],
        [*at, "--passphrase-file"],
        *(
            [*at, "--passphrase-file", str(path)]
            for path in (pipe, open_to_all, empty, key_file, tmp_path, secret / "x")
        ),
    ):
        begin_key(given)
        assert not keyderivation._begun, given


def test_whoever_writes_the_passphrase_into_a_pipe_waits_for_the_command(repository: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    writer = threading.Thread(target=pipe.write_text, args=(PASSPHRASE,))
    writer.start()
    begin_key(["points", "--repo", str(repository), "--passphrase-file", str(pipe)])
    writer.join(0.2)
    assert writer.is_alive()
    assert main(["points", "--repo", str(repository), "--passphrase-file", str(pipe)]) == 0
    writer.join()


def test_nothing_is_begun_where_an_engine_may_have_the_key(repository: Path, secret: Path) -> None:
    Ownership(repository, "engine unix:/run/backstay.sock", NOW).release()
    begin_key(["points", "--repo", str(repository), "--passphrase-file", str(secret)])
    assert not keyderivation._begun


@pytest.mark.parametrize("at", ["head", "slots", "kdf", "memory_kib"])
def test_nothing_is_begun_for_a_config_that_nobody_would_have_written(repository: Path, secret: Path, at: str) -> None:
    config = repository / "config"
    data = config.read_bytes()
    config.chmod(0o600)
    config.write_bytes(b"{" if at == "head" else data.replace(f'"{at}":'.encode(), f'"{at[:-1]}":'.encode()))
    begin_key(["points", "--repo", str(repository), "--passphrase-file", str(secret)])
    assert not keyderivation._begun
