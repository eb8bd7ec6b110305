"""What people and messages get wrong: a sentence, an exit code, and an engine that goes on with what it had."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.acceptance.engine_process import EVERYTHING, ON_REQUEST, EngineProcess, engine_for, frozen_at
from tests.lab.nats import NatsServer, nats_server
from tests.lab.vcenter import MIB, Lab, start_lab


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """A running engine whose only VM has its first restore point by policy."""
    root = tmp_path_factory.mktemp("protected")
    with (
        start_lab(root / "lab", vms=1, tracking=True, disk_bytes=8 * MIB) as lab,
        engine_for(lab, root / "engine", EVERYTHING) as engine,
    ):
        engine.start()
        [vm] = lab.vms()
        engine.until(lambda: engine.points(vm.name))
        yield engine


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ('schema = 1\n[policy.broken]\nrop = "4h"\n', "bad.toml:3:1", 'write "rpo"'),
        ('schema = 1\n[policy.broken]\nschedule = "61 * * * *"\n', "bad.toml:3:12", 'such as "0 22 * * mon-fri"'),
        ('schema = 1\n[policy.broken]\nwindow = ["mon 25:00-26:00"]\n', "bad.toml:3:11", "00:00 to 24:00"),
        ('schema = 1\n[policy.everything]\nselect.all = ["name:nobody"]\n', "bad.toml:2:9", "all.toml:3:9"),
    ],
    ids=["an unknown key", "a bad cron", "an impossible window", "two policies of one name"],
)
def test_a_broken_policy_file_is_told_with_its_place_and_never_replaces_the_working_set(
    protected: EngineProcess, text: str, place: str, remedy: str
) -> None:
    [vm] = protected.lab.vms()
    before = protected.status()["policies"]
    bad = protected.policies / "bad.toml"
    bad.write_text(text)
    protected.until(protected.problems)
    [told] = protected.problems()
    assert place in told and remedy in told
    linted = protected.backstay("policy", "lint", protected.policies, expect=2)
    assert place in linted.err and remedy in linted.err
    assert protected.status()["policies"] == before
    assert protected.back_up(vm.name)["attributes"]["policy"] == "everything"
    # Nor does a restart forget what worked.
    protected.stop()
    protected.start()
    assert protected.status()["policies"] == before
    bad.unlink()
    protected.until(lambda: not protected.problems())
    assert protected.status()["policies"] == before


def test_a_message_that_is_not_json_becomes_a_dead_letter_and_the_next_one_takes_effect(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    with nats_server(tmp_path / "nats") as server:
        bus = f'[bus]\nservers = "{server.url}"\nsite = "lab"\n'
        with engine_for(lab, tmp_path / "engine", ON_REQUEST, more=bus) as engine:
            engine.start()
            engine.until(lambda: engine.metric("backstay_connected") == 2)  # vCenter and the bus
            publish(server, b"{ this is not JSON")
            publish(server, command(vm.name))
            engine.until(lambda: engine.points(vm.name))
            [letter] = dead_letters(server)
            assert letter.data == b"{ this is not JSON"
            assert "JSON" in letter.headers["Backstay-Reason"]
            assert engine.metric("backstay_messages_refused_total") == 1
            assert not engine.problems()
            [point] = engine.points(vm.name)
            assert engine.point(point["id"])["attributes"]["event_key"].startswith("nats")


SUBJECT = "backstay.v1.lab.cmd.backup"


def publish(server: NatsServer, data: bytes) -> None:
    async def tell() -> None:
        client = await nats.connect(server.url)
        try:
            await client.jetstream().publish(SUBJECT, data)
        finally:
            await client.close()

    asyncio.run(tell())


def dead_letters(server: NatsServer) -> list[Any]:
    async def read() -> list[Any]:
        client = await nats.connect(server.url)
        try:
            stream = client.jetstream()
            state = (await stream.stream_info("BACKSTAY_LAB_DEAD")).state
            return [await stream.get_msg("BACKSTAY_LAB_DEAD", at) for at in range(state.first_seq, state.last_seq + 1)]
        finally:
            await client.close()

    return asyncio.run(read())


def command(vm: str) -> bytes:
    return json.dumps(
        {
            "specversion": "1.0",
            "id": "b-1",
            "source": "/tests",
            "type": "io.backstay.command.backup.v1",
            "data": {"vm": {"name": vm}, "reason": "a test asks"},
        }
    ).encode()


def test_a_wrong_vcenter_password_ends_the_engine_with_six_and_restores_still_work(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=8 * MIB)
    [vm] = lab.vms()
    with engine_for(lab, tmp_path / "engine", ON_REQUEST) as engine:
        engine.start()
        point = engine.back_up(vm.name)
        engine.stop()
        (engine.home / "password").write_text("not-the-lab-secret")
        engine.launch()
        assert engine.ended() == 6
        said = engine.log.splitlines()[-1]
        assert said.startswith(f"vCenter {lab.host}: ") and "password was not accepted" in said
        assert "not-the-lab-secret" not in engine.log and lab.password not in engine.log
        assert [each["id"] for each in engine.backstay("points", "--json").data] == [point["id"]]
        target = tmp_path / "restored.raw"
        engine.backstay("restore", point["id"], "--to-file", target)
        assert target.read_bytes() == frozen_at(lab, point).disks[0].image.read_bytes()
        (engine.home / "password").write_text(lab.password)
        engine.start()
        assert [each["id"] for each in engine.points(vm.name)] == [point["id"]]
