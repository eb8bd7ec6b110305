"""The way of letters to one target: nothing is lost on it, nothing is held for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from connectors.notices import Webhook
from engine.outbox import GIVEN_UP, Outbox
from engine.sources import Patience
from engine.telling import Letter
from tests.receivers import Hook, webhook

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@dataclass
class Seen:
    box: Outbox
    results: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    at: datetime = NOW
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def outbox(hook: Hook) -> AsyncIterator[Seen]:
    """An outbox that runs; waiting takes no time on our clock, and an hour on its own."""

    def count(target: str, result: str) -> None:
        seen.results.append(result)
        if result != "retried":
            seen.idle.set()

    async def delivered(target: str, letter: Letter) -> None:
        seen.delivered.append(letter.subject)

    async def sleep(seconds: float) -> None:
        seen.waits.append(seconds)
        seen.at += timedelta(hours=1)
        await asyncio.sleep(0)

    box = Outbox("ops", Webhook(lambda: hook.url), lambda: seen.at, count, delivered, patience=Patience(sleep))
    seen = Seen(box)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(box.run())
        yield seen
        running.cancel()


def letter(subject: str, at: datetime = NOW) -> Letter:
    return Letter(at, subject, "text", {})


async def test_a_letter_is_tried_again_until_it_is_taken() -> None:
    async with webhook() as hook, outbox(hook) as seen:
        hook.answers = [503, 429, 500]
        seen.box.put(letter("first"))
        await hook.until(1)
        await seen.idle.wait()
        assert seen.results == ["retried", "retried", "retried", "sent"]
        assert seen.waits == [1.0, 2.0, 4.0]
        assert seen.delivered == ["first"]
        assert (seen.box.trouble, seen.box.last_sent) == ("", seen.at)


async def test_after_a_day_it_is_given_up_and_the_next_one_goes_its_way() -> None:
    async with webhook() as hook, outbox(hook) as seen:
        hook.answers = [503] * 25
        seen.box.put(letter("old"))
        async with asyncio.timeout(10):
            await seen.idle.wait()
        assert seen.results.count("retried") == GIVEN_UP // timedelta(hours=1)
        assert seen.results[-1] == "failed"
        assert seen.delivered == []
        seen.box.put(letter("new", seen.at))
        await hook.until(1)
        assert hook.got[0]["subject"] == "new"
        assert seen.waits[-1] == 60.0, "never longer"


async def test_what_is_refused_is_not_tried_again() -> None:
    async with webhook() as hook, outbox(hook) as seen:
        hook.answers = [400]
        seen.box.put(letter("refused"))
        await seen.idle.wait()
        assert seen.results == ["failed"]
        assert "notify.ops: the webhook did not take it (HTTP 400)" in seen.box.trouble
