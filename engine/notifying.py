"""Tells people what needs them: looks at what is wrong now and then, and keeps what was told across starts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from engine.parts import Parts
from engine.telling import Known, Letter, Topic, compare, letter
from engine.threads import settled
from engine.troubles import troubles, unsure
from policies.naming import unknown_targets
from storage.errors import StorageError

log = logging.getLogger("engine.notices")

MEMORY = "notices told"
"""The name under which the state keeps what was delivered."""

LOOKS = 6
"""How often what is wrong is looked at while news is collected."""


@dataclass(slots=True)
class Notifier:
    """Compares, writes letters and remembers. Touched from the event loop alone."""

    parts: Parts
    known: Mapping[str, Known] = field(default_factory=dict)
    delivered: dict[str, Known] = field(default_factory=dict)
    """What targets were told for certain: what is kept across starts."""
    unknown: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look and deliver for ever."""
        parts = self.parts
        await self.recall()
        interval = parts.config.timers.notices / LOOKS
        async with asyncio.TaskGroup() as loops:
            for outbox in parts.outboxes.values():
                outbox.delivered = self.note
                loops.create_task(outbox.run())
            while True:
                await self.look()
                await asyncio.sleep(interval.total_seconds())

    async def look(self) -> None:
        """Write the letters that are due now."""
        parts = self.parts
        self._warn()
        if not parts.outboxes:
            return
        wrong = await troubles(parts)
        now, boxes = parts.now(), parts.outboxes
        found = compare(
            self.known,
            wrong,
            now,
            wait=parts.config.timers.notices,
            unsure=lambda one: unsure(parts, one),
            busy={name for name, box in boxes.items() if box.letter is not None},
        )
        self.known = found.known
        for name, news in found.letters.items():
            if name in boxes:
                boxes[name].put(letter(parts.config.name, news, now))
        parts.metrics.notices.waiting({name: box.letter is not None for name, box in boxes.items()})

    def _warn(self) -> None:
        unknown = unknown_targets(self.parts.rulebook.in_force, self.parts.config.notify)
        for name in unknown.keys() - self.unknown:
            log.error("target of notices unknown", extra={"target": name, "why": unknown[name]})
        self.unknown = frozenset(unknown)

    async def recall(self) -> None:
        """Take over what an earlier engine has told."""
        parts = self.parts
        try:
            text = await settled(parts.threads.state, parts.state.kept, MEMORY)
            self.delivered = _read(text)
        except (ValueError, TypeError, StorageError) as error:
            log.warning("what was told before may be told again", extra={"why": str(error)})
        self.known = dict(self.delivered)

    async def note(self, target: str, sent: Letter) -> None:
        """A letter has arrived."""
        for one in sent.news:
            before = self.delivered.get(one.key, Known(one.topic, one.good, one.since))
            told = before.told - {target} if one.over else before.told | {target}
            self.delivered[one.key] = replace(before, told=told)
            if not told:
                del self.delivered[one.key]
        parts = self.parts
        try:
            await settled(parts.threads.state, parts.state.keep, MEMORY, _written(self.delivered))
        except StorageError as error:
            log.warning("what was told before may be told again", extra={"why": str(error)})


def _written(delivered: Mapping[str, Known]) -> str:
    rows = [[key, one.topic.value, one.good, one.since.isoformat(), sorted(one.told)] for key, one in delivered.items()]
    return json.dumps(rows)


def _read(text: str) -> dict[str, Known]:
    rows = json.loads(text or "[]")
    return {
        key: Known(Topic(topic), good, datetime.fromisoformat(since), frozenset(told))
        for key, topic, good, since, told in rows
    }
