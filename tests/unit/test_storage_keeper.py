"""An append-only repository: what another user may do through its keeper, and what nobody may."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path

import pytest

from storage.errors import AlreadyExists, Missing, NoRepository, Refused, StoreFailed
from storage.keeper import Keeper, establish
from storage.keeping import KEEPER_FILE, may_create, may_delete, terms_of
from storage.kept import KeptBlobs
from tests.storage_kit import make
from tests.users import OWNER, STRANGER, WRITER, as_user, give, open_folder, serving

MARKS = ("marks/a/x", "marks/a/1-hold-00000000", "marks/a/1000000000-hold-00000000", "marks/a/000001-hold-00000000x")
PACK = "packs/01/00000001-" + "ab" * 16 + ".data"


@pytest.fixture
def root() -> Iterator[Path]:
    """A repository that OWNER owns, in the group of the writer."""
    with open_folder() as folder:
        root = make(folder / "repo")
        (folder / "run").mkdir()
        give(root, OWNER)
        give(folder / "run", OWNER)
        yield root


@pytest.fixture
def kept(root: Path) -> Iterator[KeptBlobs]:
    """The store as a writer sees it; its keeper runs as OWNER in a process of its own."""
    path = root.parent / "run" / "keeper.sock"
    with serving(OWNER, lambda: Keeper(root, establish(root, path, WRITER)).serve(), path):
        terms = terms_of(root)
        assert terms is not None
        as_user(WRITER, partial(KeptBlobs(root, terms).put, "numbers/000000", b"claimed"))
        blobs = KeptBlobs(root, terms)
        yield blobs
        blobs.close()


def test_a_writer_adds_and_reads_what_it_added(kept: KeptBlobs) -> None:
    def act() -> None:
        kept.put("manifests/20260101t000000z-0a0b0c0d", b"manifest")
        assert kept.get("manifests/20260101t000000z-0a0b0c0d") == b"manifest"
        writer = kept.writer()
        writer.write_at(0, [b"head", memoryview(b"body")])
        assert writer.read_at(4, 4) == b"body"
        writer.publish(PACK)
        data = bytearray(8)
        kept.read_into(PACK, 0, memoryview(data))
        assert data == b"headbody"
        assert list(kept.list("packs/")) == [PACK]
        assert abs(kept.clock().timestamp() - time.time()) < 5
        with pytest.raises(AlreadyExists):
            kept.put("manifests/20260101t000000z-0a0b0c0d", b"another")
        again = kept.writer()
        again.write_at(0, [b"other"])
        with pytest.raises(AlreadyExists):
            again.publish(PACK)
        kept.put("committing/00ff", b"soon")
        kept.delete("committing/00ff")
        with pytest.raises(Missing):
            kept.size("committing/00ff")

    as_user(WRITER, act)


def test_a_writer_changes_and_removes_nothing_by_whatever_way(kept: KeptBlobs, root: Path) -> None:
    def act() -> None:
        kept.put("manifests/a", b"manifest")
        writer = kept.writer()
        writer.write_at(0, [b"pack"])
        writer.publish(PACK)
        for key in ("manifests/a", PACK, "config", "marks/a/000001-hold-00000000"):
            with pytest.raises(Refused):
                kept.delete(key)
            with pytest.raises(Refused):
                kept.replace(key, b"x")
        for path in (root / "manifests" / "a", root / PACK, root / "config"):
            for attempt in (
                lambda path=path: os.open(path, os.O_WRONLY),
                lambda path=path: path.unlink(),
                lambda path=path: path.rename(path.with_name("other")),
                lambda path=path: path.chmod(0o666),
                lambda path=path: os.truncate(path, 0),
            ):
                with pytest.raises(PermissionError):
                    attempt()
        for folder in (root, root / "packs", root / "manifests", root / "spool", root / "packs" / "01"):
            with pytest.raises(PermissionError):
                (folder / "planted").touch()

    as_user(WRITER, act)


def test_what_can_still_be_written_is_never_published(kept: KeptBlobs) -> None:
    def act() -> None:
        for hold in (os.dup, lambda fd: mmap.mmap(fd, 4)):
            writer = kept.writer()
            writer.write_at(0, [b"good"])
            held = hold(writer._fd)
            with pytest.raises(Refused, match="may still write"):
                writer.publish(PACK)
            os.close(held) if isinstance(held, int) else held.close()
        assert list(kept.list("packs/")) == []

    as_user(WRITER, act)


def test_only_names_of_a_repository_are_taken(kept: KeptBlobs, root: Path) -> None:
    def act() -> None:
        for key in (
            "../out",
            "keeper.json",
            "packs/01/x.data",
            "manifests/../config2",
            "condemned/x",
            "index/a.run",
            *MARKS,
        ):
            with pytest.raises(Refused):
                kept.put(key, b"x")
            writer = kept.writer()
            with pytest.raises(Refused):
                writer.publish(key)
        with pytest.raises(Refused):
            kept.put(PACK, b"a pack comes as a file")

    as_user(WRITER, act)
    assert {path.name for path in root.parent.iterdir()} == {"repo", "run"}


def test_a_pack_has_a_number_that_was_claimed_and_nobody_claims_all_of_them(kept: KeptBlobs) -> None:
    def act() -> None:
        kept.put("numbers/000003", b"some writers died after their claims\n")
        with pytest.raises(Refused, match="append-only"):
            kept.put("numbers/ffffff", b"")
        for number, taken in ((0x3FF, True), (0x4FF, False), (0xFFFFFFFF, False)):
            writer = kept.writer()
            writer.write_at(0, [b"x"])
            key = f"packs/ff/{number:08x}-{'ab' * 16}.data"
            with nullcontext() if taken else pytest.raises(Refused, match="append-only"):
                writer.publish(key)

    as_user(WRITER, act)


def test_a_file_that_a_forked_process_holds_for_a_moment_is_published(kept: KeptBlobs) -> None:
    def act() -> None:
        writer = kept.writer()
        writer.write_at(0, [b"whole"])
        reader, speaker = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reader, 1)  # with a copy of every descriptor
            os._exit(0)
        threading.Timer(0.3, os.write, (speaker, b"x")).start()
        writer.publish(PACK)
        os.waitpid(child, 0)

    as_user(WRITER, act)


def test_a_keeper_that_was_started_anew_is_no_refusal(kept: KeptBlobs) -> None:
    def act() -> None:
        writer = kept.writer()
        writer.write_at(0, [b"whole"])
        kept.close()  # as when it dies: what was begun goes
        with pytest.raises(StoreFailed, match="started anew"):
            writer.publish(PACK)

    as_user(WRITER, act)


def test_an_idle_connection_that_died_is_made_anew(kept: KeptBlobs) -> None:
    def act() -> None:
        kept.put("committing/00", b"before")
        assert kept._connection is not None
        kept._connection.shutdown(socket.SHUT_RDWR)  # as when the keeper is started anew
        kept.put("committing/01", b"after")

    as_user(WRITER, act)


def test_many_connections_do_not_end_the_keeper(kept: KeptBlobs, root: Path) -> None:
    path = str(root.parent / "run" / "keeper.sock")

    def act() -> None:
        kept.put("marks/a/000001-hold-00000000", b"")
        with ExitStack() as crowd:
            for _ in range(200):
                crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
            kept.put("marks/a/000002-hold-00000000", b"")

    as_user(WRITER, act)


def test_strangers_are_not_heard_and_may_not_read(kept: KeptBlobs, root: Path) -> None:
    def act() -> None:
        with pytest.raises(StoreFailed, match="does not answer"):
            kept.put("manifests/a", b"x")

    as_user(STRANGER, act, gid=STRANGER)


def test_nonsense_on_the_socket_ends_its_connection_and_no_other(kept: KeptBlobs, root: Path) -> None:
    terms = terms_of(root)
    assert terms is not None
    path = str(terms.socket)

    def act() -> None:
        nonsense = (
            b"\xff\xff\xff\xff",
            b"\x02\0\0\0[]",
            b'\x05\0\0\0{"op"',
            b'\x0b\0\0\0{"op":"rm"}x',
            (60000).to_bytes(4, "little") + b"[" * 60000,
        )
        for said in nonsense:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
                raw.connect(path)
                raw.sendall(said)
                raw.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    assert raw.recv(100) == b""
        kept.put("manifests/a", b"x")

    as_user(WRITER, act)


def test_what_a_writer_left_behind_goes_with_its_connection(kept: KeptBlobs, root: Path) -> None:
    as_user(WRITER, lambda: kept.writer().write_at(0, [b"half"]))
    deadline = time.monotonic() + 10
    while list((root / "spool").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_keeper_that_is_gone_is_told_with_what_to_do(root: Path) -> None:
    path = root.parent / "run" / "keeper.sock"
    as_user(OWNER, partial(establish, root, path, WRITER))
    terms = terms_of(root)
    assert terms is not None
    with pytest.raises(StoreFailed, match="repo keep") as told:
        KeptBlobs(root, terms).put("manifests/a", b"x")
    assert told.value.retry


def test_only_the_owner_keeps_and_only_for_another_user(root: Path) -> None:
    path = root.parent / "keeper.sock"

    def refused() -> None:
        with pytest.raises(Refused, match="another user"):
            establish(root, path, OWNER)
        with pytest.raises(NoRepository):
            establish(root.parent, path, WRITER)
        establish(root, path, WRITER)
        with pytest.raises(Refused, match=f"user {WRITER} writes here"):
            establish(root, path, STRANGER)

    with pytest.raises(Refused, match="only the user who owns"):
        establish(root, path, WRITER)
    as_user(OWNER, refused)
    assert (root / KEEPER_FILE).exists()


@pytest.mark.parametrize(
    ("key", "create", "delete"),
    [
        ("config", True, False),
        ("numbers/0000ff", True, False),
        ("committing/0a", True, True),
        ("marks/x/000001-hold-00000000", True, False),
        ("marks/x", False, False),
        ("packs/01/../../config", False, False),
        ("committing/../config", False, False),
        ("manifests/a\n", False, False),
    ],
)
def test_what_a_key_allows(key: str, create: bool, delete: bool) -> None:
    assert (may_create(key), may_delete(key)) == (create, delete)
