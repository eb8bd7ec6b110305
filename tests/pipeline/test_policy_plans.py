"""Plans of policy changes against a running engine: made from its state, applied as they were seen, or refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.commands import BackUpVm
from engine.config import Config
from engine.failures import NotYet
from engine.ports import Hypervisor
from engine.sections import VCenter
from engine.statefile import read_standing
from engine.threads import settled
from tests.console import backstay
from tests.pipeline.running import EVERYTHING, configure, engine_of
from tests.pipeline.serving import served

NARROW = EVERYTHING.replace('["*"]', '["name:web*"]')
KEEP_ONE = EVERYTHING + '[policy.everything.retention]\nkeep_last = 1\ngrace = "0s"\n'


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="plan") as name:
        (Path(name) / "disks").mkdir()
        yield Path(name)


async def test_a_plan_made_from_a_state_file_takes_effect_as_it_was_seen_or_not_at_all(home: Path) -> None:
    async with served(home, "web", "db") as desk:
        await desk.command("policy", "state", "--out", "state.json.gz")
        assert ((home / "state.json.gz").stat().st_mode & 0o777) == 0o600
        state = ("--state", "state.json.gz", "--exit-code")
        assert (await desk.plan(EVERYTHING, *state)).out == "Nothing changes.\n"
        assert (
            "db: rpo 1 d → 12 h" in (await desk.plan(EVERYTHING.replace("24h", "12h"), *state, "--all", expect=3)).out
        )
        seen = await desk.plan(NARROW, *state, "--out", "plan.json", expect=5)
        assert "db loses protection: policy everything no longer selects it (name:web* does not match" in seen.out
        assert "1 VM would lose protection, more than the 0 of guard.max_vms_losing_protection" in seen.out

        apply = ("policy", "apply", "--plan", "plan.json")
        refused = await desk.command(*apply, expect=5)
        assert "the policy files are not those of the plan" in refused.err
        desk.write("policies", NARROW)
        refused = await desk.command(*apply, expect=5)
        assert "a guard refuses it: 1 VM would lose protection" in refused.err
        assert "--override-guard" in refused.err
        done = await desk.command(*apply, "--override-guard", "--json")
        assert done.data["digest"] == json.loads((home / "plan.json").read_text())["id"]
        assert "in force already" in (await desk.command(*apply)).err
        [vm] = desk.engine.parts.world.named("db")
        assert not desk.engine.parts.rulebook.in_force.matching(desk.engine.parts.world.vms[vm])
        audited = await settled(desk.engine.parts.threads.state, desk.engine.parts.state.audited)
        [confirmed] = [one for one in audited if "guard overridden" in one.detail]
        assert confirmed.who.endswith(", a local user")

        loose = NARROW + "[guard]\nmax_vms_losing_protection = 5\n"
        loosened = "guard.max_vms_losing_protection 0 → 5 would be loosened"
        assert loosened in (await desk.plan(loose, "--exit-code", expect=5)).out
        desk.write("policies", loose)
        await desk.engine.until(lambda: desk.engine.parts.rulebook.plan)
        assert "--yes with --override-guard confirms" in (await desk.command("policy", "apply", expect=3)).err
        assert (await desk.command("policy", "apply", "--yes", expect=5)).err
        assert desk.engine.parts.rulebook.in_force.guard.max_vms_losing_protection == 0
        await desk.command("policy", "apply", "--yes", "--override-guard")
        assert desk.engine.parts.rulebook.in_force.guard.max_vms_losing_protection == 5
        audited = await settled(desk.engine.parts.threads.state, desk.engine.parts.state.audited)
        assert any(f"guard overridden ({loosened})" in one.detail for one in audited)


async def test_a_plan_is_refused_when_more_would_be_taken_away_by_now(home: Path) -> None:
    async with served(home, "web", "db") as desk:
        shown = (await desk.plan(NARROW, "--out", "plan.json", "--json")).data
        desk.write("policies", NARROW)
        await desk.engine.until(lambda: desk.engine.parts.rulebook.plan)
        assert desk.engine.parts.rulebook.plan is not None
        assert desk.engine.parts.rulebook.plan.id == shown["id"], "the engine and the command plan the same"
        desk.hypervisor.add("mail")
        await desk.engine.until(lambda: desk.engine.parts.world.named("mail"))
        refused = await desk.command("policy", "apply", "--plan", "plan.json", "--override-guard", expect=5)
        assert "the plan does not hold any more: 1 VM more would lose protection (mail)" in refused.err
        [vm] = desk.engine.parts.world.named("db")
        assert desk.engine.parts.rulebook.in_force.matching(desk.engine.parts.world.vms[vm])


async def test_what_restore_points_would_free_is_asked_of_the_repository(home: Path) -> None:
    async with served(home, "web") as desk:
        await desk.engine.finished(await desk.engine.control.submit(BackUpVm("web", full=True), "root"))
        shown = (await desk.plan(KEEP_ONE, "--json")).data
        assert [one["name"] for one in shown["expiring"]] == ["web"]
        assert shown["bytes_freed"]["exact"]
        [vm] = desk.engine.parts.world.named("web")
        [old, _] = desk.engine.parts.world.points[vm]
        assert 0 <= shown["bytes_freed"]["bytes"] <= old.stored_bytes
        text = (await desk.plan(KEEP_ONE)).out
        assert "Would expire within 30 d: 1 restore point" in text
        assert "Bytes that reclaim frees then: " in text
        assert "waits for `backstay policy apply`" in text


async def test_a_plan_names_what_policies_ask_for_and_the_configuration_does_not_have(home: Path) -> None:
    async with served(home, "web") as desk:
        copied = EVERYTHING.replace("[[policy", 'copies = ["offsite"]\nnotify = ["ops"]\n[[policy', 1)
        told = (await desk.plan(copied)).out
        assert '\n\nNot in the configuration:\n  all.toml:3:9: policy "everything" notifies "ops"' in told
        assert 'asks for the second copy "offsite", and the configuration has no [copies.offsite]' in told
        assert len((await desk.plan(copied, "--json")).data["not_configured"]) == 2
        same = await desk.plan(copied, "--against", home / "new")
        assert same.out.startswith("Nothing changes.\n\nNot in the configuration:\n")
        assert (await desk.plan(EVERYTHING, "--json")).data["not_configured"] == []
        await desk.command("policy", "state", "--out", "state.json")
        elsewhere = ("policy", "plan", desk.write("new", copied), "--state", "state.json")
        unknown = await asyncio.to_thread(backstay, *elsewhere, "--json", home=home)
        assert unknown.data["not_configured"] is None
        assert "Not in the" not in (await asyncio.to_thread(backstay, *elsewhere, home=home)).out


async def test_the_state_names_what_the_engine_knows(home: Path) -> None:
    async with served(home, "web", "db") as desk:
        read = read_standing((await desk.command("policy", "state")).out.encode(), "state")
        world = desk.engine.parts.world
        assert read.facts.vms == world.vms
        assert read.facts.points == world.points
        assert read.facts.history == world.history
        assert read.policies == desk.engine.parts.rulebook.accepted


async def test_before_the_inventory_is_known_no_state_is_told(home: Path) -> None:
    async def never(name: str, vcenter: VCenter, config: Config) -> Hypervisor:
        await asyncio.Event().wait()
        raise AssertionError

    async with engine_of(configure(home), never) as engine:
        with pytest.raises(NotYet, match="the inventory is still being read"):
            await engine.control.policy_facts()


async def test_without_an_engine_the_state_is_asked_of_vcenter_and_the_repository(home: Path) -> None:
    async with served(home, "web"):
        pass
    ran = await asyncio.to_thread(
        backstay, "policy", "state", "--config", home / "backstay.toml", home=home, expect=None
    )
    assert ran.code == 6, "its vCenter does not answer"
    assert "No engine runs here" in ran.err


def test_two_revisions_are_compared_as_git_has_them(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (tmp_path / "state.json").write_text(
        json.dumps({"now": "2026-11-23T02:00:00Z", "vms": [{"name": "web"}, {"name": "db"}]})
    )

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    for text in (EVERYTHING, NARROW):
        (folder / "all.toml").write_text(text)
        git("add", "policies")
        git("commit", "-q", "-m", "policies")
    shutil.rmtree(folder)
    folder.mkdir()
    plan = ("policy", "plan", "policies", "--state", "state.json", "--exit-code")
    ran = backstay(*plan, "--from", "HEAD~1", "--to", "HEAD", "--json", home=tmp_path, expect=5)
    assert [(one["name"], one["kind"]) for one in ran.data["vms"]] == [("db", "loses")]
    assert backstay(*plan, "--from", "HEAD", "--to", "HEAD", home=tmp_path).out == "Nothing changes.\n"
    for unknown in ("nothing", "--help"):
        ran = backstay(*plan, "--from", "HEAD", f"--to={unknown}", home=tmp_path, expect=2)
        assert f"git knows no revision {unknown}" in ran.err
    ran = backstay(*plan[:2], home, *plan[3:], "--from", "HEAD", home=tmp_path, expect=2)
    assert "not a git repository" in ran.err
    ran = backstay(*plan, "--to", "HEAD", home=tmp_path, expect=2)
    assert "it is not known which policies are in force" in ran.err
