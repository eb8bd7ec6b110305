"""Which VM is this: by address, instance UUID, BIOS UUID with a disk, and never by a guess."""

from __future__ import annotations

from engine.identity import Book, Known, Traits, Unknown
from policies.facts import Address, VmId

WEB = VmId("web")


def traits(moref: str = "vm-1", instance: str = "i-1", bios: str = "b-1", *disks: str, name: str = "web") -> Traits:
    return Traits(Address("vc", moref), name, instance, bios, frozenset(disks or ("d-1",)))


def nowhere(_: VmId) -> bool:
    return False


def elsewhere(_: VmId) -> bool:
    return True


def test_the_address_decides_while_anything_else_agrees() -> None:
    book = Book([(WEB, traits())])
    assert book.match(traits(instance="i-2"), nowhere) == Known(WEB, "address")


def test_an_address_that_was_given_to_another_vm_does_not_decide() -> None:
    book = Book([(WEB, traits())])
    assert isinstance(book.match(traits("vm-1", "i-2", "b-2", "d-2"), nowhere), Unknown)


def test_a_vm_that_was_registered_again_is_found_by_its_instance_uuid() -> None:
    book = Book([(WEB, traits())])
    assert book.match(traits("vm-9"), nowhere) == Known(WEB, "instance UUID")


def test_the_bios_uuid_counts_only_together_with_a_disk() -> None:
    book = Book([(WEB, traits())])
    assert book.match(traits("vm-9", "i-9"), nowhere) == Known(WEB, "BIOS UUID and a disk")
    assert book.match(traits("vm-9", "i-9", "b-1", "d-9"), nowhere) == Unknown()


def test_a_copy_of_a_vm_that_is_still_there_gets_an_id_of_its_own_and_an_alert() -> None:
    book = Book([(WEB, traits())])
    found = book.match(traits("vm-9", name="web-copy"), elsewhere)
    assert isinstance(found, Unknown)
    assert "web-copy has the instance UUID of web" in found.alert
    assert found.candidates == (WEB,)


def test_two_candidates_are_no_answer() -> None:
    book = Book([(WEB, traits()), (VmId("old"), traits("vm-2", name="old"))])
    found = book.match(traits("vm-9"), nowhere)
    assert isinstance(found, Unknown)
    assert set(found.candidates) == {WEB, VmId("old")}


def test_what_is_not_seen_does_not_erase_what_was_known() -> None:
    book = Book([(WEB, traits())])
    book.note(WEB, Traits(Address("vc", "vm-5"), "web"))
    assert book.match(Traits(Address("vc", "vm-6"), "", "i-1"), nowhere) == Known(WEB, "instance UUID")
    assert book.at(Address("vc", "vm-1")) is None
    assert book.at(Address("vc", "vm-5")) == WEB
