"""What a restore point keeps of a VM, damaged or made by somebody else: refused in words, never a crash or a bomb."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile

import httpx
import pytest

from connectors.errors import ConnectorError, Rejected
from connectors.kept_vm import CONFIGURATION, NVRAM, SUMMARY, KeptVm, pack, unpack
from connectors.vsphere.folder_files import FolderFile, _check

KEPT = KeptVm(b"<config/>" * 20, b"nvram" * 10, {"name": "web", "missing": {}})


def archive(*entries: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", how) as made:
        for name, data in entries:
            made.writestr(name, data)
    return held.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive((CONFIGURATION, b"<config/>"), (NVRAM, bytes(1 << 20)), how=zipfile.ZIP_DEFLATED),
        archive((CONFIGURATION, b"<config/>"), how=zipfile.ZIP_BZIP2),
        archive((NVRAM, b"x")),
        archive((CONFIGURATION, b"<config/>"), (SUMMARY, b"[" * 100000)),
        archive((CONFIGURATION, b"<config/>"), (SUMMARY, b"\xff\xfe{")),
        pack(KEPT)[:-10],
    ],
    ids=["deflated", "bzip2", "without-configuration", "deep-summary", "summary-not-text", "cut-off"],
)
def test_an_archive_that_is_none_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected):
        unpack(data)


def test_entries_of_newer_versions_are_passed_over() -> None:
    held = unpack(archive((CONFIGURATION, b"<config/>"), ("../../etc/passwd", b"x"), ("newer", b"y")))
    assert held == KeptVm(b"<config/>")


def test_no_damage_raises_anything_but_a_refusal() -> None:
    whole, chance = pack(KEPT), random.Random(7)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(Rejected):
            unpack(bytes(data))


def test_of_a_summary_only_what_has_our_shape_is_acted_on() -> None:
    strange = b'{"missing": [], "attributes": {"a": 1}, "tags": {}, "cards": ["x", {"key": 4000}], "name": "web"}'
    held = unpack(archive((CONFIGURATION, b"<config/>"), (SUMMARY, strange)))
    assert held.summary == {"attributes": {"a": "1"}, "cards": [{"key": 4000}], "name": "web"}


@pytest.mark.parametrize("status", [204, 206, 301, 302, 307, 416, 500])
def test_only_a_whole_answer_is_taken_for_a_file(status: int) -> None:
    with pytest.raises(ConnectorError):
        _check(httpx.Response(status), FolderFile("[fast] web/web.nvram", "DC0"), (200,))
