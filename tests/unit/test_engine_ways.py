"""The ways to a disk that are left when one breaks."""

from __future__ import annotations

import pytest

from engine.ways import in_writing, left_after, none_writes, steps

WAYS: tuple[str, ...] = ("hotadd", "nbd", "https")


@pytest.mark.parametrize(
    ("used", "broken", "left"),
    [
        ("hotadd", (), ("hotadd", "nbd", "https")),
        ("hotadd", ("hotadd",), ("nbd", "https")),
        ("nbd", ("hotadd", "hotadd"), ("nbd", "https")),
        ("nbd", ("hotadd", "hotadd", "nbd"), ("https",)),
        ("https", (), ("https",)),
        ("https", ("https",), ()),
    ],
)
def test_a_way_is_opened_once_more_and_then_given_up_for_the_next(
    used: str, broken: tuple[str, ...], left: tuple[str, ...]
) -> None:
    assert left_after(WAYS, used, broken) == left


def test_a_reading_ends_however_often_ways_break() -> None:
    ways, broken = WAYS, list[str]()
    while ways:
        used = ways[0]
        ways = left_after(ways, used, broken)
        broken.append(used)
    assert broken == [way for way in WAYS for _ in range(2)]


def test_ways_that_only_read_are_told_to_who_wants_to_write() -> None:
    assert none_writes(("https", "export")) == "by export and https no disk is written into a VM that is there"
    assert (
        none_writes(("https", "export"), new=True) == none_writes(("export", "nbd")) == none_writes(("hotadd",)) == ""
    )
    assert none_writes(("https",), new=True) == none_writes(("https",)) == "by https disks are only read"


def test_an_export_is_an_import_in_writing_at_the_same_place_of_the_order() -> None:
    assert in_writing(("hotadd", "nbd", "export", "https")) == ("hotadd", "nbd", "import")
    assert steps(("hotadd", "nbd", "import")) == [("hotadd", "nbd"), ("import",)]
    assert steps(in_writing(("export", "nbd", "https"))) == [("import",), ("nbd",)]
    assert steps(in_writing(("https",))) == []
