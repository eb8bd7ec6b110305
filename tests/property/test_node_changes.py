"""A node changed in place equals one that was taken apart, changed and packed again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage.format import Pieced, pack_node, parse_node
from storage.nodemerge import changed_node, child_of, mapped_by

FAN_OUT = 12
IDS = st.integers(1, 255).map(lambda number: bytes([number]) * 32)
SLOTS = st.integers(0, FAN_OUT - 1)


@given(
    level=st.integers(0, 2),
    before=st.dictionaries(SLOTS, IDS),
    changes=st.dictionaries(SLOTS, st.none() | IDS, min_size=1),
    pieced=st.sets(SLOTS),
)
def test_a_changed_node_is_the_one_that_would_be_packed(
    level: int, before: dict[int, bytes], changes: dict[int, bytes | None], pieced: set[int]
) -> None:
    if not level:
        before = {slot: Pieced(child) if slot in pieced else child for slot, child in before.items()}
        changes = {slot: Pieced(child) if child and slot + 1 in pieced else child for slot, child in changes.items()}
    counts = {slot: slot + 2 for slot in before}
    fresh = {slot: 100 + slot for slot in changes}
    old = pack_node(level, FAN_OUT, before, counts) if before else b""
    expected = {slot: child for slot, child in {**before, **changes}.items() if child is not None}
    beneath = {**counts, **fresh}

    new, mapped = changed_node(old, level, FAN_OUT, changes, fresh)

    assert new == (pack_node(level, FAN_OUT, expected, beneath) if expected else b"")
    if new:
        children = parse_node(new, level, FAN_OUT, "here").children
        for slot in range(FAN_OUT):
            found = child_of(new, level, FAN_OUT, slot)
            assert (type(found), found) == (type(children.get(slot, b"")), children.get(slot, b""))
        assert (
            mapped == mapped_by(new, level, FAN_OUT) == (sum(beneath[s] for s in expected) if level else len(expected))
        )
