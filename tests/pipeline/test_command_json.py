"""What commands give to programs: times in one form, and the same whether the engine is asked or the repository."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.commands import Reclaim
from tests.console import backstay
from tests.pipeline.running import EVERYTHING, now
from tests.pipeline.serving import served

EITHER_WAY = (
    "status",
    "points",
    "points web@latest",
    "disk backup loose.img --name loose",
    "restore web@latest --to-file {way}-web.raw",
    "verify",
    "expire loose@latest --last",
    "reclaim --plan --min-age 0s",
    "reclaim --min-age 1s --yes",
    "reclaim --plan",
    "sql --views",
    *(f"sql 'SELECT * FROM {view}'" for view in ("restore_points", "events", "jobs")),
    "policy explain web",
    "policy explain --point web@latest",
)
"""Asked of the running engine, and again of what it left."""

ENGINE_ONLY = (
    "backup web --full",
    "rehearse web",
    "policy plan new --against policies",
    "policy simulate policies --days 2",
    "policy lint policies --live",
    "policy test new",
)
"""What has only one way to be answered."""

TIMELESS = {
    "restore web@latest --to-file {way}-web.raw",
    "expire loose@latest --last",
    "reclaim --plan --min-age 0s",
    "reclaim --min-age 1s --yes",
    "sql --views",
    "rehearse web",
    "policy lint policies --live",
    "policy test new",
    "task",
}
"""What tells no time; all others do."""

KEEP_ONE = (
    EVERYTHING
    + """
[policy.everything.retention]
keep_last = 1
grace = "1d"
[[test]]
name = "web"
now = 2026-11-23T12:00:00Z
vm = [{ name = "web" }]
expect.web.policy = "everything"
"""
)

pytestmark = pytest.mark.timeout(600)  # for the answers, which are asked for once, by dozens of processes

TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.+-]+Z?|\d{4}-\d\d-\d\d [0-9:.]+[+-][0-9:]+")
"""A time for programs, in any form; the times in sentences have no offset."""

Answers = Mapping[tuple[str, str], Any]


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """What each command says, by who was asked and its words."""
    with tempfile.TemporaryDirectory(prefix="json") as name:
        yield asyncio.run(_ask_all(Path(name)))


async def _ask_all(home: Path) -> Answers:
    (home / "disks").mkdir()
    (home / "loose.img").write_bytes(bytes(range(256)) * 4096)
    found: dict[tuple[str, str], Any] = {}
    async with served(home, "web", "db") as desk:
        desk.write("new", KEEP_ONE)
        for guest in desk.hypervisor.guests.values():
            guest.vm = desk.hypervisor.set(guest.vm, boot_time=now() - timedelta(days=1))
        for words in (*ENGINE_ONLY, *EITHER_WAY):
            ran = await desk.command(*_given(words, "asked"), expect=None)
            found["engine", words] = ran.data if ran.out else ran.code
        task = await desk.engine.control.submit(Reclaim(plan_only=True, min_age_seconds=0.0), "test")
        ran = await desk.command("task", task, "--json", expect=None)
        found["engine", "task"] = {"code": ran.code, "result": ran.data}
        await desk.command("policy", "state", "--out", "state.json")
        found["engine", "policy state"] = json.loads((home / "state.json").read_bytes())
        journal = (await desk.command("policy", "journal")).out
        found["engine", "policy journal"] = [json.loads(line) for line in journal.splitlines()]
    for words in EITHER_WAY:
        more = ("--state", "state.json") if words.startswith("policy") else ("--config", "backstay.toml")
        ran = await asyncio.to_thread(backstay, *_given(words, "own"), *more, home=home, expect=None)
        found["repository", words] = ran.data if ran.out else ran.code
    return found


def _given(words: str, way: str) -> tuple[str, ...]:
    more = () if words.startswith("expire") else ("--json",)
    return (*shlex.split(words.format(way=way)), *more)


def test_every_time_is_in_utc_with_a_z(answers: Answers) -> None:
    times = {asked: TIME.findall(json.dumps(said)) for asked, said in answers.items()}
    telling = {words for (_, words), several in times.items() if several}
    assert {words for _, words in answers} - telling == TIMELESS
    assert [(asked, at) for asked, several in times.items() for at in several if not at.endswith("Z")] == []


OF_THE_ENGINE = ("coverage", "datastores", "gates", "leases", "missed_events", "notify", "policies", "problems",
                 "queue", "rehearsals", "repositories", "snapshots", "upkeep", "vcenters", "verification", "vms",
                 "waits_for_a_person")  # fmt: skip
"""What `status` tells only while an engine runs; `engine` is null otherwise."""

DATA = (".rehearsal", ".recorded", ".provenance")
"""Whose keys are what is known."""


@pytest.mark.parametrize("words", EITHER_WAY)
def test_what_is_told_has_the_same_keys_either_way(answers: Answers, words: str) -> None:
    asked, own = answers["engine", words], answers["repository", words]
    if words == "status":
        assert own["engine"] is None
        asked = {key: part for key, part in asked.items() if key not in OF_THE_ENGINE} | {"engine": None}
    assert differing(asked, own) == []


def test_a_task_that_is_waited_for_ends_as_its_command_would_have(answers: Answers) -> None:
    task = answers["engine", "task"]
    assert task["code"] == 3
    assert differing(task["result"], answers["engine", "reclaim --plan --min-age 0s"]) == []


def differing(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two values have other keys or kinds; of lists the first elements are compared."""
    match one, other:
        case dict(), dict():
            return (
                []
                if at.endswith(DATA)
                else [
                    problem
                    for key in {**one, **other}
                    for problem in (
                        differing(one[key], other[key], f"{at}.{key}")
                        if key in one and key in other
                        else [f"{at}.{key}"]
                    )
                ]
            )
        case list(), list():
            return differing(one[0], other[0], f"{at}[]") if one and other else []
        case (None, _) | (_, None):
            return []
        case _:
            return [] if type(one) is type(other) or {type(one), type(other)} <= {int, float} else [at]
