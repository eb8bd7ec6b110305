"""What a store and the way to it may do wrong: bursts of errors, cut connections, lost answers, wrong keys."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.failures import Exit, verdict
from storage import creation
from storage.blobs import LocalBlobs
from storage.creation import probe
from storage.errors import AccessRefused, AlreadyExists, Missing, NoRepository, Refused, StoreFailed
from storage.objectcalls import Patience
from storage.objects import ObjectBlobs
from storage.places import ObjectPlace, open_blobs
from tests.storage_kit import back_up, image, make, opened, read_back
from tests.stores.fixtures import PlaceOf
from tests.stores.proxy import CHANGING, Fault, Proxy, proxy_before
from tests.stores.server import ObjectServer, free_ports


@pytest.fixture
def proxy(object_server: ObjectServer) -> Iterator[Proxy]:
    with proxy_before(object_server.endpoint) as running:
        yield running


@pytest.fixture
def place(writer_place: PlaceOf, proxy: Proxy) -> ObjectPlace:
    return replace(writer_place("a"), endpoint=proxy.endpoint)


@pytest.mark.parametrize("fault", ["503", "500", "409", "reset", "lost"])
def test_a_burst_of_failures_heals_by_trying_again(place: ObjectPlace, proxy: Proxy, fault: Fault) -> None:
    blobs = open_blobs(place)
    proxy.faults.extend([fault] * 3)
    blobs.put("manifests/a", b"one")
    proxy.faults.extend([fault] * 3)
    assert blobs.get("manifests/a") == b"one"
    proxy.faults.extend([fault] * 3)
    assert list(blobs.list("manifests/")) == ["manifests/a"]
    proxy.faults.extend([fault] * 3)
    blobs.replace_if("manifests/a", b"two", b"one")
    assert blobs.get("manifests/a") == b"two"
    proxy.faults.extend([fault] * 3)
    blobs.delete("manifests/a")
    with pytest.raises(Missing):
        blobs.get("manifests/a")
    assert not proxy.faults


def test_a_lost_answer_is_told_from_another_writer(place: ObjectPlace, proxy: Proxy) -> None:
    blobs = open_blobs(place)
    proxy.methods = CHANGING
    proxy.faults.append("lost")
    blobs.put("manifests/a", b"ours")
    proxy.faults.append("503")
    with pytest.raises(AlreadyExists):
        blobs.put("manifests/a", b"other")


@pytest.mark.parametrize("multipart", [False, True])
def test_a_pack_whose_answer_got_lost_is_there_once(
    place: ObjectPlace, proxy: Proxy, tmp_path: Path, multipart: bool
) -> None:
    blobs = open_blobs(replace(place, multipart=multipart))
    blobs.spool = tmp_path
    writer = blobs.writer()
    content = bytes(range(256)) * (9 << 12)
    writer.write_at(0, [content])
    proxy.methods = CHANGING
    proxy.faults.append("lost")
    writer.publish("packs/00/x")
    assert blobs.get("packs/00/x") == content
    assert not list(tmp_path.iterdir())


def test_a_backup_and_a_restore_outlive_a_bad_line(place: ObjectPlace, proxy: Proxy) -> None:
    disk = image(1, 300)
    make(place)
    with opened(place) as repo:
        proxy.faults.extend(["503", "reset", "lost", "500", "409"] * 4)
        point = back_up(repo, disk)
        proxy.faults.extend(["503", "reset", "lost"] * 2)
        assert read_back(repo, point.id) == disk
    assert not proxy.faults


def test_a_store_that_stays_away_is_told_and_may_be_tried_again(place: ObjectPlace, proxy: Proxy) -> None:
    blobs = open_blobs(replace(place, patience=Patience(0.01, 0.02, 0.1, 0.1)))
    proxy.faults.extend(["503"] * 1000)
    with pytest.raises(StoreFailed, match=r"503.*trying again later can help") as found:
        blobs.put("manifests/a", b"x")
    assert found.value.retry
    assert verdict(found.value).exit_code is Exit.UNREACHABLE


def test_nobody_listening_is_told(writer_place: PlaceOf) -> None:
    (port,) = free_ports(1)
    patience = Patience(0.01, 0.02, 0.1, 0.1)
    with pytest.raises(StoreFailed, match="no connection"):
        opened(replace(writer_place("a"), endpoint=f"http://127.0.0.1:{port}", patience=patience))


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_a_wrong_key_ends_with_six_and_is_never_shown(
    writer_place: PlaceOf, object_server: ObjectServer, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    login = object_server.login() | {wrong: "hunter2hunter2"}
    with pytest.raises(AccessRefused) as found:
        opened(replace(writer_place("a"), credentials=lambda: login))
    assert verdict(found.value).exit_code is Exit.UNREACHABLE
    assert not found.value.retry
    told = f"{found.value} {found.value!r} {caplog.text}"
    assert "hunter2" not in told and object_server.secret not in told
    assert found.value.__cause__ is None and found.value.__suppress_context__


def test_a_missing_bucket_is_told(object_server: ObjectServer, tmp_path: Path) -> None:
    place = object_server.place(tmp_path, "x", bucket="nobody-made-this")
    for act in (opened, make):
        with pytest.raises(NoRepository, match="no such bucket"):
            act(place)


class Overwriting(LocalBlobs):
    """A store that ignores conditions, as some do."""

    def put(self, key: str, data: bytes) -> None:
        self.replace(key, data)


def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    for name in ("spool", "probe"):
        (tmp_path / name).mkdir()
    with pytest.raises(Refused, match="overwrites"):
        probe(Overwriting(tmp_path))
    assert not list((tmp_path / "probe").iterdir())
    probe(LocalBlobs(tmp_path))


def test_the_probe_leaves_nothing_behind(writer_place: PlaceOf) -> None:
    blobs: ObjectBlobs = open_blobs(writer_place("a"))
    probe(blobs)
    assert list(blobs.list(creation.PROBE)) == []
