"""The way of letters to one target: one at a time, tried again as long as that may help, in nobody's way.

While a letter is under way the target counts as busy, so that what happens meanwhile becomes one letter, too: a target
that is away for a day holds one letter here, and gets two when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from connectors.errors import ConnectorError
from connectors.notices import Mail, Notice, Target, Webhook, deliver
from engine.config import Config
from engine.failures import BadInput
from engine.sources import Patience
from engine.targets import Notify
from engine.telling import Letter, trial
from metrics.registry import Metrics

log = logging.getLogger("engine.notices")

GIVEN_UP = timedelta(days=1)
"""A letter that could not be delivered for so long is of no use to anybody."""


def target_of(section: Notify) -> Target:
    """What the connector needs of `[notify.NAME]`."""
    if section.webhook is not None:
        headers = {name: secret.read for name, secret in section.headers.items()}
        return Webhook(section.webhook.read, headers, section.ca_file)
    host, port = section.server
    return Mail(
        host,
        port,
        section.sender or "",
        section.to,
        section.security,
        section.user,
        section.password.read if section.password is not None else None,
        section.ca_file,
    )


async def send(name: str, target: Target, letter: Letter) -> str:
    """One attempt; what the other side said. A ConnectorError, or BadInput for a secret, names the target."""
    try:
        return await deliver(target, Notice(letter.at, letter.subject, letter.text, letter.data))
    except ConnectorError as error:
        error.where = ": ".join(filter(None, [f"notify.{name}", error.where]))
        raise


async def try_out(config: Config, name: str, now: datetime) -> str:
    """Send a trial message to a target, in one attempt; what it said. BadInput when there is no such target."""
    section = config.notify.get(name)
    if section is None:
        known = ", ".join(sorted(config.notify)) or "none"
        raise BadInput(f"no target of notices is called {name}", hint=f"there is: {known}")
    return await send(name, target_of(section), trial(config.name, name, now))


@dataclass(slots=True)
class Outbox:
    """One target's letter. `count` is told "sent", "failed" or "retried" of every attempt."""

    name: str
    target: Target
    now: Callable[[], datetime]
    count: Callable[[str, str], None]
    delivered: Callable[[str, Letter], Awaitable[None]]
    """Told of each letter that has arrived."""
    letter: Letter | None = None
    trouble: str = ""
    """Why the newest attempt failed; empty when it did not."""
    last_sent: datetime | None = None
    patience: Patience = field(default_factory=Patience)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, letter: Letter) -> None:
        """The next letter; only while there is none."""
        assert self.letter is None
        self.letter = letter
        self._more.set()

    async def run(self) -> None:
        """Deliver letters for ever."""
        while True:
            while self.letter is not None:
                if await self._try(self.letter):
                    self.letter = None
                    self.patience.restore()
                else:
                    await self.patience.wait()
            self._more.clear()
            await self._more.wait()

    async def _try(self, letter: Letter) -> bool:
        """One attempt; whether the letter is done with."""
        try:
            said = await send(self.name, self.target, letter)
        except (ConnectorError, BadInput) as error:
            # A secret that cannot be read now may be there again, as a target that does not answer.
            again = error.retry if isinstance(error, ConnectorError) else True
            again = again and self.now() - letter.at < GIVEN_UP
            if self.trouble != str(error) or not again:
                log.error(
                    "notice not delivered" if again else "notice given up",
                    extra={"target": self.name, "subject": letter.subject, "why": str(error)},
                )
            self.trouble = str(error)
            self.count(self.name, "retried" if again else "failed")
            return not again
        self.trouble, self.last_sent = "", self.now()
        self.count(self.name, "sent")
        log.info("notice sent", extra={"target": self.name, "subject": letter.subject, "said": said})
        await self.delivered(self.name, letter)
        return True


def outboxes(config: Config, metrics: Metrics, now: Callable[[], datetime]) -> dict[str, Outbox]:
    """One for each target of the configuration."""

    async def nobody(target: str, sent: Letter) -> None:
        return

    return {
        name: Outbox(name, target_of(section), now, metrics.notices.attempted, nobody)
        for name, section in config.notify.items()
    }
