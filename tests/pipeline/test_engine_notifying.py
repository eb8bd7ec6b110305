"""A running engine tells people what needs them: real servers on loopback, over the whole way."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from connectors.errors import NotPermitted
from engine.commands import BackUpVm
from engine.config import Config
from engine.failures import BadInput
from engine.notifying import MEMORY
from engine.outbox import try_out
from engine.sources import Patience
from engine.state import State
from metrics.exposition import render
from tests.console import backstay
from tests.pipeline.hypervisor_in_memory import HypervisorInMemory
from tests.pipeline.running import Running, configure, now, running
from tests.receivers import Hook, mail_server, webhook

POLICIES = """
schema = 1
[policy.databases]
rpo = "24h"
select.all = ["name:db*"]
consistency = { want = "crash" }
notify = ["ops", "dba"]
[policy.rest]
rpo = "24h"
select.all = ["*"]
consistency = { want = "crash" }
notify = ["ops"]
"""

TOKEN = "t0p-s3cr3t"


@pytest.fixture
def hypervisor(tmp_path: Path) -> HypervisorInMemory:
    (tmp_path / "disks").mkdir()
    return HypervisorInMemory(tmp_path / "disks")


def config_of(root: Path, policies: str = POLICIES, **hooks: Hook) -> Config:
    """A configuration whose webhooks are these; `ops` alone is told what belongs to no policy."""
    text = ""
    for name, hook in hooks.items():
        (root / f"{name}.url").write_text(f"{hook.url}\n")
        (root / f"{name}.url").chmod(0o600)
        text += f'[notify.{name}]\nwebhook = "file:{name}.url"\nengine = {str(name == "ops").lower()}\n'
        text += 'headers = { Authorization = "env:NOTIFY_TOKEN" }\n'
    return at_once(configure(root, policies, more=text))


def at_once(config: Config) -> Config:
    """News is collected for a fraction of the second that a configuration can name."""
    timers = config.timers.model_copy(update={"notices": timedelta(milliseconds=90)})
    return config.model_copy(update={"timers": timers})


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_TOKEN", TOKEN)


def told(hook: Hook) -> list[str]:
    return [f"{one['state']} {one['topic']} {one['sentence']}" for got in hook.got for one in got["news"]]


def value(engine: Running, name: str, **labels: str) -> float:
    return engine.parts.metrics.registry.get_sample_value(f"backstay_{name}", labels) or 0.0


def days_later(engine: Running, days: float) -> None:
    """For those who look at what is wrong it is so much later; nothing is backed up for it."""
    engine.parts.now = lambda: now() + timedelta(days=days)


async def test_a_missed_rpo_is_told_once_to_those_whom_policies_name_and_once_when_it_is_met(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("db1")
    hypervisor.add("web")
    async with (
        webhook() as ops,
        webhook() as dba,
        running(tmp_path, hypervisor, config_of(tmp_path, ops=ops, dba=dba)) as engine,
    ):
        await engine.until(lambda: engine.points_of("web") == engine.points_of("db1") == 1)
        days_later(engine, 2)
        await ops.until(1)
        await dba.until(1)
        assert [re.sub("is [0-9].* old", "is N old", said) for said in told(ops)] == [
            "began rpo_missed db1 missed its RPO of 1 d: its newest restore point is N old",
            "began rpo_missed web missed its RPO of 1 d: its newest restore point is N old",
        ]
        assert ops.got[0]["subject"] == "Backstay test-engine: 2 × missed RPO"
        assert [said.split()[2] for said in told(dba)] == ["db1"]
        assert dba.headers[0]["authorization"] == TOKEN
        days_later(engine, 0)
        await ops.until(2)
        await dba.until(2)
        assert told(ops)[2:] == [
            "over rpo_missed db1 meets its RPO of 1 d again",
            "over rpo_missed web meets its RPO of 1 d again",
        ]
        await engine.until(lambda: value(engine, "notices_total", target="ops", result="sent") == 2)
        assert (len(ops.got), len(dba.got)) == (2, 2)


async def test_a_run_that_failed_for_good_is_told_with_its_error(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    hypervisor.fail_vm = NotPermitted("the account lacks VirtualMachine.State.CreateSnapshot", where="web")
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        await ops.until(1)
        [said] = told(ops)
        assert said.startswith("began run_failed the backup of web failed for good")
        assert "CreateSnapshot" in said
        hypervisor.fail_vm = None
        done = await engine.finished(await engine.control.submit(BackUpVm("web"), "test"))
        assert done["exit"] == 0
        await ops.until(2)
        assert told(ops)[1:] == ["over run_failed web is backed up again"]


async def test_what_belongs_to_no_policy_is_told_to_who_is_told_of_the_engine(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with (
        webhook() as ops,
        webhook() as dba,
        running(tmp_path, hypervisor, config_of(tmp_path, ops=ops, dba=dba)) as engine,
    ):
        await engine.until(lambda: engine.points_of("web") == 1)
        file = tmp_path / "policies" / "all.toml"
        file.write_text(POLICIES.replace('["*"]', '["name:nothing"]'))
        await engine.parts.rulebook.look()
        engine.parts.unreachable["far"] = "no route to host"
        engine.parts.retention_refused = "600 restore points would expire"
        engine.parts.sources.answering[hypervisor.vcenter] = False
        await engine.until(lambda: len(told(ops)) == 4)
        assert [said.partition(":")[0] for said in sorted(told(ops))] == [
            "began policy_change a change of policies waits for confirmation",
            "began retention_refused retention removes nothing",
            "began vcenter_away vCenter far is away",
            "began vcenter_away vCenter lab is away",
        ]
        assert dba.got == []
        file.write_text("schema = 1\n[policy.broken]\nwhat = 1\n")
        await engine.parts.rulebook.look()
        await engine.until(lambda: len(told(ops)) == 5)
        assert "began policy_files the policy files cannot be used, the old policies stay: all.toml:3:1" in told(ops)[4]
        file.write_text(POLICIES)
        await engine.parts.rulebook.look()
        engine.parts.unreachable.clear()
        await engine.until(lambda: sum(said.startswith("over") for said in told(ops)) >= 3)
        assert "over vcenter_away vCenter far is back" in told(ops)
        assert "over policy_files the policy files can be used again" in told(ops)


async def test_full_datastores_and_vms_to_be_consolidated_are_told_until_they_are_not(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.upkeep.DATASTORES_SECONDS", 0.05)
    vm = hypervisor.add("web")
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        hypervisor.free["ds-1"] = 1 << 30
        hypervisor.set(vm, consolidation_needed=True)
        await engine.until(lambda: len(told(ops)) == 2)
        full, merge = sorted(told(ops), reverse=True)
        assert full.startswith("began datastore_full lab: datastore ds-1 has 1 GiB free")
        assert merge.startswith("began consolidation lab: web needs consolidation")
        hypervisor.free["ds-1"] = 1 << 39
        hypervisor.set(vm, consolidation_needed=False)
        await engine.until(lambda: len(told(ops)) == 4)
        assert sorted(told(ops)[2:]) == [
            "over consolidation web needs no consolidation any more",
            "over datastore_full datastore ds-1 of lab has room for snapshots again",
        ]


async def test_a_target_that_is_away_disturbs_nothing_and_gets_its_notice_when_it_is_back(
    tmp_path: Path, hypervisor: HypervisorInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    hypervisor.add("web")
    async with webhook() as ops:
        config = config_of(tmp_path, ops=ops)
    async with running(tmp_path, hypervisor, config) as engine:
        engine.parts.unreachable["far"] = "no route to host"
        box = engine.parts.outboxes["ops"]
        box.patience = Patience(seconds=0.05)
        await engine.until(lambda: box.trouble)
        assert "notify.ops: the webhook cannot be reached" in box.trouble
        assert (await engine.finished(await engine.control.submit(BackUpVm("web"), "test")))["exit"] == 0
        problems = (await engine.control.health())["problems"]
        assert any("notices to ops wait" in problem for problem in problems)
        assert value(engine, "notices_waiting", target="ops") == 1
        assert value(engine, "notices_total", target="ops", result="retried") >= 1
        async with webhook(port=ops.port) as back:
            await back.until(1)
            assert "began vcenter_away vCenter far is away: no route to host" in told(back)
            await engine.until(lambda: not box.trouble and box.letter is None)
    assert [record.getMessage() for record in caplog.records].count("notice not delivered") == 1, "the same, once"


async def test_a_notice_that_is_not_taken_is_given_up_and_told_by_a_metric_and_the_log(
    tmp_path: Path, hypervisor: HypervisorInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        ops.answers = [404]
        engine.parts.unreachable["far"] = "no route to host"
        await engine.until(lambda: value(engine, "notices_total", target="ops", result="failed") == 1)
        assert engine.parts.outboxes["ops"].letter is None
        engine.parts.unreachable["near"] = "no route to host"
        await ops.until(1)
        assert told(ops) == ["began vcenter_away vCenter near is away: no route to host"]
    assert "notice given up" in [record.getMessage() for record in caplog.records]


async def test_what_was_told_is_not_told_again_after_a_start(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    async with webhook() as ops:
        config = config_of(tmp_path, ops=ops)
        for start, name in enumerate(("first", "second")):
            async with running(tmp_path, hypervisor, config) as engine:
                engine.parts.unreachable["far"] = "no route to host"
                await engine.until(lambda: len(ops.got) > 0)
                engine.parts.unreachable[name] = "no route to host"
                await ops.until(2 + start)
                await engine.until(lambda: engine.parts.outboxes["ops"].letter is None)
        assert told(ops) == [
            "began vcenter_away vCenter far is away: no route to host",
            "began vcenter_away vCenter first is away: no route to host",
            "began vcenter_away vCenter second is away: no route to host",
            "over vcenter_away vCenter first is back",
        ]


async def test_a_vm_of_an_inventory_that_is_not_known_is_not_said_to_be_well(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    hypervisor.add("web")
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        await engine.until(lambda: engine.points_of("web") == 1)
        days_later(engine, 2)
        await ops.until(1)
        engine.parts.world.complete.clear()
        engine.parts.world.vms.clear()
        engine.parts.unreachable["far"] = "no route to host"
        await ops.until(2)
        assert not [said for said in told(ops) if said.startswith("over")]


async def test_secrets_are_told_nowhere(
    tmp_path: Path, hypervisor: HypervisorInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine")
    caplog.set_level(logging.INFO, "connectors")
    async with webhook() as ops:
        config = config_of(tmp_path, ops=ops)
        assert TOKEN not in repr(config)
        async with running(tmp_path, hypervisor, config) as engine:
            engine.parts.outboxes["ops"].patience = Patience(seconds=0.05)
            ops.answers = [500, 401]
            engine.parts.unreachable["far"] = "no route to host"
            await engine.until(lambda: value(engine, "notices_total", target="ops", result="failed") == 1)
            engine.parts.unreachable["near"] = "no route to host"
            await ops.until(1)
            shown = str(await engine.control.status()) + str(await engine.control.health())
            shown += render(engine.parts.metrics.registry, "").body.decode() + repr(engine.parts.outboxes["ops"].letter)
    shown += caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "notice sent" in shown
    assert TOKEN not in shown
    assert "s3cr3t-path" not in shown


async def test_a_policy_that_names_an_unknown_target_is_told(
    tmp_path: Path, hypervisor: HypervisorInMemory, caplog: pytest.LogCaptureFixture
) -> None:
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        problems = (await engine.control.health())["problems"]
        assert problems == [
            'all.toml:3:9: policy "databases" notifies "dba", and the configuration has no [notify.dba]'
        ]
        await engine.until(lambda: "target of notices unknown" in caplog.text)


async def test_a_mail_target_is_told_in_words(tmp_path: Path, hypervisor: HypervisorInMemory) -> None:
    (tmp_path / "mail.password").write_text(TOKEN)
    (tmp_path / "mail.password").chmod(0o600)
    async with mail_server(login=("backstay", TOKEN)) as server:
        more = f"""
[notify.ops]
smtp = "127.0.0.1:{server.port}"
security = "none"
user = "backstay"
password = "file:mail.password"
sender = "backstay@example.com"
to = ["ops@example.com"]
"""
        async with running(tmp_path, hypervisor, at_once(configure(tmp_path, POLICIES, more=more))) as engine:
            engine.parts.unreachable["far"] = "no route to host"
            await engine.until(lambda: server.mails)
            assert await engine.control.try_notify("ops") == "taken by the mail server"
    first, second = server.mails
    assert first["Subject"] == "Backstay test-engine: vCenter far is away: no route to host"
    assert first.get_content().startswith("- vCenter far is away: no route to host")
    assert second["Subject"] == "Backstay test-engine: a trial"


async def test_notify_test_tells_the_outcome(tmp_path: Path) -> None:
    config_file = tmp_path / "backstay.toml"
    async with webhook() as ops:
        (tmp_path / "ops.url").write_text(ops.url)
        (tmp_path / "ops.url").chmod(0o600)
        (tmp_path / "policies.d").mkdir()
        (tmp_path / "policies.d" / "all.toml").write_text(POLICIES)
        config_file.write_text(
            'schema = 1\nname = "site-a"\nrepository.path = "repo"\n[transport]\norder = ["hotadd"]\n'
            '[notify.ops]\nwebhook = "file:ops.url"\nheaders = { Authorization = "env:NOTIFY_TOKEN" }\n'
        )

        def run(*words: str, expect: int = 0, token: str = TOKEN) -> str:
            env = {"NOTIFY_TOKEN": token} if token else {}
            ran = backstay(*words, "--config", config_file, home=tmp_path, env=env, expect=expect)
            assert TOKEN not in ran.out + ran.err
            assert "s3cr3t-path" not in ran.out + ran.err
            return ran.out + ran.err

        said = await asyncio.to_thread(run, "notify", "test", "ops")
        assert said == "A trial message is on its way to ops: HTTP 204.\n"
        assert ops.got[0]["trial"] is True
        assert "site-a" in ops.got[0]["subject"]
        ops.answers = [403]
        assert "refused the login (HTTP 403)" in await asyncio.to_thread(run, "notify", "test", "ops", expect=6)
        backstay("repo", "init", "repo", home=tmp_path)
        linted = await asyncio.to_thread(run, "policy", "lint", expect=2)
        assert 'all.toml:3:9: policy "databases" notifies "dba", and the configuration has no [notify.dba]' in linted
        checked = await asyncio.to_thread(run, "check", expect=2)
        assert "has no [notify.dba]" in checked
        assert "secret notify.ops.headers.Authorization" in checked


async def test_a_trial_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with webhook() as ops:
        config = config_of(tmp_path, ops=ops)
        with pytest.raises(BadInput, match="no target of notices is called nobody"):
            await try_out(config, "nobody", now())
        monkeypatch.delenv("NOTIFY_TOKEN")
        with pytest.raises(BadInput, match="env:NOTIFY_TOKEN: the environment variable is not set"):
            await try_out(config, "ops", now())


async def test_a_secret_that_cannot_be_read_now_is_waited_for(
    tmp_path: Path, hypervisor: HypervisorInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_TOKEN")
    async with webhook() as ops, running(tmp_path, hypervisor, config_of(tmp_path, ops=ops)) as engine:
        box = engine.parts.outboxes["ops"]
        box.patience = Patience(seconds=0.05)
        engine.parts.unreachable["far"] = "no route to host"
        await engine.until(lambda: "env:NOTIFY_TOKEN" in box.trouble)
        monkeypatch.setenv("NOTIFY_TOKEN", TOKEN)
        await ops.until(1)


async def test_a_note_of_what_was_told_that_cannot_be_read_ends_nothing(
    tmp_path: Path, hypervisor: HypervisorInMemory
) -> None:
    async with webhook() as ops:
        config = config_of(tmp_path, ops=ops)
        for garbage in ("{", "[1]", '[["key", "no topic", "", "2026-03-01T00:00:00+00:00", []]]'):
            with closing(State(config.state_dir, now=now())) as state:
                state.keep(MEMORY, garbage)
                assert state.kept(MEMORY) == garbage
            async with running(tmp_path, hypervisor, config) as engine:
                engine.parts.unreachable[f"far {garbage}"] = "no route to host"
                await engine.until(lambda: len(ops.got))
                ops.got.clear()
