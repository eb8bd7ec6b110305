"""The login at a vCenter: trusted, renewed when lost, and no change carried out twice."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from connectors.errors import Gone, LoginRefused, NotPermitted, Unreachable
from connectors.vsphere.session import Session
from tests.lab.connect import session_settings, until
from tests.lab.process import make_certificates
from tests.lab.vcenter import Lab


async def name_of(session: Session, lab: Lab, which: str = "web-01") -> str:
    vm = session.managed(vim.VirtualMachine, lab.moref(which))
    return str((await session.properties(vm, ["name"]))["name"])


def reconfigurations(lab: Lab) -> int:
    return sum(event.type == "VmReconfiguredEvent" for event in lab.event_log())


async def test_a_session_knows_its_vcenter_and_reads_properties(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        assert session.vcenter == lab.instance_uuid
        assert await name_of(session, lab) == "web-01"
        assert session.cookie.startswith("vmware_soap_session=")


async def test_a_wrong_password_is_refused_and_not_tried_again_at_once(lab: Lab) -> None:
    before = lab.calls().get("Login", 0)
    with pytest.raises(LoginRefused, match="user name or password"):
        await Session.open(session_settings(lab, password="wrong"))
    assert lab.calls()["Login"] == before + 1


async def test_a_certificate_of_an_unknown_ca_is_refused(lab: Lab, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path).ca
    with pytest.raises(LoginRefused, match="certificate of the server is not trusted"):
        await Session.open(session_settings(lab, ca_file=stranger))


async def test_the_servers_own_certificate_is_a_pin_that_needs_no_ca(lab: Lab) -> None:
    async with await Session.open(session_settings(lab, ca_file=lab.root / "server.pem")) as session:
        assert await name_of(session, lab) == "web-01"


async def test_a_file_that_is_no_certificate_says_so(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(LoginRefused, match=r"ca\.pem: the CA file holds no certificate"):
        await Session.open(session_settings(lab, ca_file=tmp_path / "ca.pem"))


async def test_a_vcenter_that_is_not_there_is_unreachable(lab: Lab) -> None:
    with pytest.raises(Unreachable, match="check the address"):
        await Session.open(replace(session_settings(lab), port=1))


async def test_a_password_is_neither_shown_nor_logged(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = session_settings(lab)
    async with await Session.open(settings) as session:
        await name_of(session, lab)
    assert lab.password not in repr(settings)
    assert lab.password not in caplog.text


async def test_many_calls_that_find_the_session_lost_log_in_once(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        lab.kill_sessions()
        names = await asyncio.gather(*(name_of(session, lab) for _ in range(20)))
        assert set(names) == {"web-01"}
        assert session.logins == 2


async def test_a_vcenter_that_was_restarted_is_used_again(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        lab.restart(0.3)
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await name_of(session, lab) == "web-01"
                    break
                except Unreachable:
                    await asyncio.sleep(0.05)
        assert session.logins == 2


async def test_an_object_that_is_not_there_is_gone(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        with pytest.raises(Gone, match="vm-999999"):
            await session.properties(session.managed(vim.VirtualMachine, "vm-999999"), ["name"])
        real = session.managed(vim.VirtualMachine, lab.moref("web-01"))
        gone = session.managed(vim.VirtualMachine, "vm-999999")
        found = await session.read([gone, real], vim.VirtualMachine, ["name"])
        assert found == {lab.moref("web-01"): {"name": "web-01"}}


async def test_a_missing_privilege_is_named(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        vm = session.managed(vim.VirtualMachine, lab.moref("web-01"))
        needed = "VirtualMachine.Config.ChangeTracking"
        place = {"Type": "Folder", "Value": "group-d1"}
        lab.inject("ReconfigVM_Task", "NoPermission", fields={"PrivilegeId": needed, "Object": place})
        with pytest.raises(NotPermitted, match=r"VirtualMachine\.Config\.ChangeTracking"):
            await session.task(lambda: vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


async def test_a_task_whose_start_was_not_answered_is_found_and_not_started_twice(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        vm = session.managed(vim.VirtualMachine, lab.moref("web-01"))
        lab.inject("CreateSnapshotEx_Task", drop=True)
        made = await session.task(
            lambda: vm.CreateSnapshotEx_Task("by hand", "", False, None), entity=vm, operation="CreateSnapshot"
        )
        try:
            assert isinstance(made, vim.vm.Snapshot)
            assert len(lab.vm("web-01").snapshots) == 1
        finally:
            await session.task(lambda: made.RemoveSnapshot_Task(removeChildren=False))


async def test_a_change_without_an_answer_is_an_error_and_never_repeated_on_a_guess(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        vm = session.managed(vim.VirtualMachine, lab.moref("web-01"))
        lab.inject("ReconfigVM_Task", drop=True)
        before = reconfigurations(lab)
        with pytest.raises(Unreachable):
            await session.task(lambda: vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="once")))
        await until(lambda: reconfigurations(lab) > before)
        assert reconfigurations(lab) == before + 1


async def test_a_change_that_found_the_session_lost_is_carried_out_once(lab: Lab) -> None:
    async with await Session.open(session_settings(lab)) as session:
        vm = session.managed(vim.VirtualMachine, lab.moref("web-01"))
        lab.kill_sessions()
        await session.task(lambda: vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="after a lost session")))
        assert session.logins == 2


async def test_a_cancelled_caller_waits_for_the_task_that_it_started(lab: Lab) -> None:
    lab.settings(move_delay_ms=400)
    try:
        async with await Session.open(session_settings(lab)) as session:
            moref = lab.moref("web-01")
            vm = session.managed(vim.VirtualMachine, moref)
            old = lab.vm("web-01").host
            target = session.managed(vim.HostSystem, lab.host_for("web-01")._moId)
            move = asyncio.ensure_future(
                session.task(lambda: vm.MigrateVM_Task(host=target, priority="defaultPriority"))
            )
            await until(lambda: lab.calls().get("MigrateVM_Task", 0) > 0)
            move.cancel()
            with pytest.raises(asyncio.CancelledError):
                await move
            assert lab.vm("web-01").host != old
    finally:
        lab.settings(move_delay_ms=0)


async def test_a_password_that_stopped_working_is_tried_once_however_many_calls_need_it(lab: Lab) -> None:
    words = iter([lab.password])
    settings = replace(session_settings(lab), password=lambda: next(words, "changed"))
    async with await Session.open(settings) as session:
        before = lab.calls()["Login"]
        lab.kill_sessions()
        told = await asyncio.gather(*(name_of(session, lab) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, LoginRefused) for each in told)
        assert lab.calls()["Login"] == before + 1


async def test_an_idle_session_is_kept_alive_and_renewed_by_itself(lab: Lab) -> None:
    async with await Session.open(replace(session_settings(lab), keep_alive_seconds=0.05)) as session:
        lab.kill_sessions()
        await until(lambda: session.logins == 2)


async def test_closing_while_vcenter_is_away_is_quick_and_no_error(lab: Lab) -> None:
    session = await Session.open(session_settings(lab))
    lab.outage(1.0)
    async with asyncio.timeout(5):
        await session.aclose()
        await session.aclose()
    await until(lambda: is_back(lab))


def is_back(lab: Lab) -> bool:
    try:
        lab.moref("web-01")
        lab.connect()._stub.DropConnections()
    except OSError:
        return False
    return True
