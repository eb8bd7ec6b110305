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
        (await desk.command("policy", "state", "--out", "state.json"))
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
