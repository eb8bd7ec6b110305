"""A disk is left out by agreement: another policy never leaves more out, and it takes all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.facts import Disk
from policies.protection import left_out, protection, refusal_of
from tests.policies.building import a_disk, a_vm, policies

_TERMS = st.sampled_from(("label:*", "label:hard*", "number:1", "number:2", "number:12", "datastore:*-tmp", "label:x"))
_LISTS = st.lists(st.lists(_TERMS, max_size=3), max_size=3)
_DISKS = st.lists(
    st.builds(
        a_disk,
        st.integers(2000, 2012),
        label=st.sampled_from(("", "Festplatte 2", "scratch")),
        datastore=st.sampled_from(("ssd-1", "ssd-tmp")),
        unprotected=st.sampled_from(("", "", "it is independent")),
    ),
    max_size=4,
    unique_by=lambda disk: disk.key,
)


def out(lists: list[list[str]], disks: list[Disk]) -> tuple[set[int], bool]:
    """The disks that policies with these lists leave out, and whether the VM is refused for it."""
    texts = [
        f'[policy.p{number}]\nselect.all = ["*"]\ndisks.exclude = [{", ".join(repr(term) for term in terms)}]'
        for number, terms in enumerate(lists)
    ]
    vm = a_vm(disks=tuple(disks))
    effective = protection(policies("\n".join(texts)), vm)
    return {disk.key for disk in disks if left_out(effective, disk)}, bool(refusal_of(effective, vm))


@given(_LISTS, _LISTS, _DISKS)
def test_more_policies_never_leave_more_out(some: list[list[str]], more: list[list[str]], disks: list[Disk]) -> None:
    before, after = out(some, disks)[0], out([*some, *more], disks)[0]
    assert not some or after <= before
    alone = [out([terms], disks)[0] for terms in some]
    assert before == (set.intersection(*alone) if alone else set())


@given(_LISTS, _DISKS)
def test_a_vm_is_refused_exactly_when_nothing_is_left_of_it(lists: list[list[str]], disks: list[Disk]) -> None:
    without, refused = out(lists, disks)
    held = {disk.key for disk in disks if not disk.unprotected}
    assert refused == bool(held and held <= without)
