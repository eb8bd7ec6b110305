"""The lab's answers come in parts, as a vCenter's may: with a token, or truncated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.lab.vcenter import Lab

PC = vmodl.query.PropertyCollector


@pytest.fixture
def paged(lab: Lab) -> Iterator[Lab]:
    """The shared lab, with two objects in an answer at most."""
    usual = lab.settings()["page_objects"]
    lab.settings(page_objects=2)
    yield lab
    lab.settings(page_objects=usual)


def names_of_vms(si: Any) -> Any:
    view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [vim.VirtualMachine], True)
    through = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )


def test_an_answer_holds_no_more_objects_than_asked_for_and_the_rest_is_had_for_its_token(paged: Lab) -> None:
    with paged.session() as si, paged.session() as other:
        collector = si.content.propertyCollector
        spec = [names_of_vms(si)]
        pages = [collector.RetrievePropertiesEx(spec, PC.RetrieveOptions())]
        while token := pages[-1].token:
            with pytest.raises(vmodl.fault.InvalidArgument):
                other.content.propertyCollector.ContinueRetrievePropertiesEx(token)
            pages.append(collector.ContinueRetrievePropertiesEx(token))
            with pytest.raises(vmodl.fault.InvalidArgument):
                collector.ContinueRetrievePropertiesEx(token)
        assert [len(page.objects) for page in pages] == [2, 2, 2]
        assert {o.obj._moId for page in pages for o in page.objects} == {vm.moref for vm in paged.vms()}
        assert len(collector.RetrievePropertiesEx(spec, PC.RetrieveOptions(maxObjects=1)).objects) == 1
        given_up = collector.RetrievePropertiesEx(spec, PC.RetrieveOptions()).token
        collector.CancelRetrievePropertiesEx(given_up)
        with pytest.raises(vmodl.fault.InvalidArgument):
            collector.ContinueRetrievePropertiesEx(given_up)


def test_updates_are_cut_and_the_rest_follows_at_once(paged: Lab) -> None:
    with paged.session() as si:
        collector = si.content.propertyCollector.CreatePropertyCollector()
        collector.CreateFilter(names_of_vms(si), False)
        told: list[tuple[int, bool]] = []
        version = ""
        while not told or told[-1][1]:
            updates = collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=60, maxObjectUpdates=4))
            version = updates.version
            told.append((sum(len(s.objectSet) for s in updates.filterSet), bool(updates.truncated)))
        assert told == [(2, True), (2, True), (2, False)]
        paged.settings(page_objects=0)
        everything = collector.WaitForUpdatesEx("", PC.WaitOptions(maxObjectUpdates=4))
        collector.DestroyPropertyCollector()
    assert everything is not None
