"""The message bus: events and commands come from NATS JetStream at least once each, and leave it only when journaled.

Three streams per site are made if they are not there: work (a work queue), runs, and dead letters. The durable
consumer `engine` takes from work; a message is acknowledged with the server's word for it, so that a crash at any
point brings it again with the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from nats.errors import ConnectionClosedError, NoRespondersError, NotJSMessageError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import api
from nats.js.errors import NoStreamResponseError, NotFoundError

from connectors.errors import ConnectorError, Unreachable
from connectors.messages import MAX_MESSAGE_BYTES, Subjects, key_of
from connectors.nats_client import Foreign, GuardedClient, connect, ours, shut
from connectors.nats_login import BusSettings, read_login
from connectors.vcenter_messages import structured
from metrics.labels import Durability
from metrics.registry import Metrics

log = logging.getLogger(__name__)

CONSUMER = "engine"
BATCH = 32
"""Messages asked for at once: at most 32 x 320 KiB wait in memory."""
MAX_STORED_MESSAGE_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
"""What the work stream takes, headers included; a larger message is refused at its publisher."""
DEAD_LETTER_BYTES = 64 * 1024
"""How much of a refused message is kept."""
PULL_SECONDS = 5.0
ANSWER_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 15.0
DUPLICATE_WINDOW_SECONDS = 600.0
RUNS_KEPT_SECONDS = 7 * 86_400.0
DEAD_LETTERS_KEPT_SECONDS = 90 * 86_400.0


@dataclass(frozen=True, slots=True)
class Streams:
    """The names of one site's streams."""

    work: str
    runs: str
    dead: str


def streams_of(site: str) -> Streams:
    """BACKSTAY_<SITE>_WORK and its neighbours."""
    name = f"BACKSTAY_{site.upper()}"
    return Streams(f"{name}_WORK", f"{name}_RUNS", f"{name}_DEAD")


class NatsMessage:
    """One delivery; `done` or `refuse` ends it, otherwise it comes again after ack_wait."""

    def __init__(self, bus: NatsBus, raw: Any) -> None:
        position = raw.metadata
        headers = raw.headers or {}
        self._bus = bus
        self._raw = raw
        self.subject: str = raw.subject
        self.data: bytes = structured(headers, raw.data, most=MAX_MESSAGE_BYTES)
        self.deliveries: int = position.num_delivered
        self.received_at: datetime = position.timestamp.astimezone(UTC)
        place = f"{position.stream}/{position.sequence.stream}/{self.received_at.isoformat()}"
        self.key: str = key_of(headers.get(api.Header.MSG_ID.value), self.data, position=place)

    async def working(self) -> None:
        """Ask for ack_wait once more."""
        await self._bus.send(self._raw.reply, b"+WPI")

    async def done(self) -> None:
        """Acknowledge and wait until the server has it; Unreachable means that the message will come again."""
        await self._bus.ask(self._raw.reply, b"+ACK")

    async def refuse(self, reason: str) -> None:
        """Put it aside: a dead letter first, then the acknowledgement, so that it is never in neither place."""
        await self._bus.bury(self, reason)
        await self.done()


class NatsBus:
    """The bus of one site, connected. `messages` makes lost connections again; everything else raises Unreachable."""

    def __init__(self, settings: BusSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client: GuardedClient | None = None
        self._where = ", ".join(settings.servers)
        self.subjects = Subjects(settings.site)
        self.streams = streams_of(settings.site)

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._client is not None and self._client.is_connected

    async def start(self) -> None:
        """Connect once and make what is missing on the server."""
        self._client = await connect(self._settings, read_login(self._settings))
        try:
            await self._provide()
        except ConnectorError:
            await self.aclose()
            raise
        self._metrics.connection("nats", up=True)
        self._metrics.nats_durability(await durability(self._settings.monitor_url))

    async def messages(self) -> AsyncGenerator[NatsMessage, None]:
        """Every message at least once, for ever. Only one may iterate, and close it with `contextlib.aclosing`.

        A lost connection is made again with growing pauses; whatever keeps it from being made is logged, never raised.
        """
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                if not self.connected:
                    await self.start()
                    self._metrics.reconnected("nats")
                async with contextlib.aclosing(self._pull()) as pulled:
                    async for message in pulled:
                        pause = FIRST_PAUSE_SECONDS
                        yield message
            except ConnectorError as error:
                _honour_cancellation()
                await self.aclose()
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS) if error.retry else LONGEST_PAUSE_SECONDS
                log.warning("bus lost", extra={"what": str(error), "pause_seconds": pause})
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def publish(self, subject: str, data: bytes, *, key: str) -> None:
        """Publish on one of the site's run subjects; after Unreachable, again with the same key: it is stored once."""
        if not subject.startswith(self.subjects.runs.removesuffix(">")):
            raise ValueError(f"{subject} is not one of this site's run subjects")
        await self._store(subject, data, {api.Header.MSG_ID.value: key})

    async def aclose(self) -> None:
        """Disconnect."""
        if self._client is not None:
            client, self._client = self._client, None
            await shut(client)
        self._metrics.connection("nats", up=False)

    async def ask(self, subject: str, payload: bytes) -> Any:
        """Send and wait for the answer."""
        client = self._live()
        client.noted = None
        try:
            return await client.request(subject, payload, timeout=ANSWER_SECONDS)
        except Foreign as error:
            _honour_cancellation()
            raise ours(client.noted or error, self._where) from error

    async def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Send without waiting."""
        try:
            await self._live().publish(subject, payload, reply)
        except Foreign as error:
            raise ours(error, self._where) from error

    async def bury(self, message: NatsMessage, reason: str) -> None:
        """Store a message's head as a dead letter, once per key."""
        kept = message.data[:DEAD_LETTER_BYTES]
        headers = {
            api.Header.MSG_ID.value: f"dead:{message.key}",
            "Backstay-Reason": _header(reason),
            "Backstay-Subject": _header(message.subject),
            "Backstay-Key": _header(message.key),
            "Backstay-Bytes": str(len(message.data)),
        }
        await self._store(self.subjects.dead(message.subject), kept, headers)
        log.warning("message refused", extra={"subject": message.subject, "key": message.key, "reason": reason})

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        client = self._live()
        client.noted = None
        try:
            await client.jetstream(timeout=ANSWER_SECONDS).publish(subject, data, headers=headers)
        except (NoStreamResponseError, NoRespondersError) as error:
            raise Unreachable("no stream takes this subject now", where=subject) from error
        except Foreign as error:
            _honour_cancellation()
            raise ours(client.noted or error, self._where) from error

    def _live(self) -> GuardedClient:
        if self._client is None or not self._client.is_connected:
            raise Unreachable("not connected to NATS", where=self._where)
        return self._client

    async def _pull(self) -> AsyncGenerator[NatsMessage, None]:
        """Until the connection breaks. Not nats-py's fetch, which takes a stranger's Status header for the server's."""
        client = self._live()
        inbox = client.new_inbox()
        request = json.dumps({"batch": BATCH, "expires": int(PULL_SECONDS * 1e9)}).encode()
        subscription = None
        try:
            subscription = await client.subscribe(inbox)
            while True:
                await self.send(f"$JS.API.CONSUMER.MSG.NEXT.{self.streams.work}.{CONSUMER}", request, inbox)
                awaited = BATCH
                while awaited:
                    try:
                        raw = await subscription.next_msg(timeout=PULL_SECONDS + ANSWER_SECONDS)
                    except NatsTimeout:
                        raise Unreachable("JetStream does not answer a pull", where=self._where) from None
                    self._metrics.event_source_alive("nats")
                    if not raw.reply.startswith("$JS.ACK."):
                        _judge_status(raw.headers or {}, self._where)
                        break
                    try:
                        message = NatsMessage(self, raw)
                    except (NotJSMessageError, ValueError, OverflowError, OSError):
                        log.warning("not a delivery of JetStream", extra={"where": self._where})
                        continue
                    awaited -= 1
                    if message.deliveries > self._settings.max_deliver:
                        self._metrics.message_refused("given_up")
                        await message.refuse(f"given up after {message.deliveries - 1} deliveries that nobody finished")
                    else:
                        yield message
        except ConnectionClosedError as error:
            _honour_cancellation()
            raise Unreachable("the connection to NATS broke", where=self._where) from error
        except Foreign as error:
            raise ours(error, self._where) from error
        finally:
            if subscription is not None and client.is_connected:
                await subscription.unsubscribe()

    async def _provide(self) -> None:
        """Make or mend the streams and the consumer; where that is not permitted, what is there must do."""
        work = api.StreamConfig(
            name=self.streams.work,
            subjects=list(self.subjects.work),
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            max_bytes=256 << 20,
            max_msg_size=MAX_STORED_MESSAGE_BYTES,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
            num_replicas=self._settings.replicas,
        )
        runs = api.StreamConfig(
            name=self.streams.runs,
            subjects=[self.subjects.runs],
            max_bytes=256 << 20,
            max_age=RUNS_KEPT_SECONDS,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
            num_replicas=self._settings.replicas,
        )
        dead = api.StreamConfig(
            name=self.streams.dead,
            subjects=[self.subjects.dead_letters],
            max_bytes=64 << 20,
            max_age=DEAD_LETTERS_KEPT_SECONDS,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
            num_replicas=self._settings.replicas,
        )
        client = self._live()
        manager = client.jsm(timeout=ANSWER_SECONDS)
        try:
            for wanted in (work, runs, dead):
                await _provide_stream(manager, wanted)
            await manager.add_consumer(
                self.streams.work,
                api.ConsumerConfig(
                    name=CONSUMER,
                    durable_name=CONSUMER,
                    ack_policy=api.AckPolicy.EXPLICIT,
                    ack_wait=self._settings.ack_wait_seconds,
                    # Without a limit on the server: the bus counts, and makes dead letters instead of losing track.
                    max_deliver=-1,
                    max_ack_pending=8 * BATCH,
                ),
            )
        except Foreign as error:
            _honour_cancellation()
            raise ours(client.noted or error, self._where) from error


async def open_bus(settings: BusSettings, metrics: Metrics) -> NatsBus:
    """Connect to NATS and make what is missing there. Raises ConnectorError; Unreachable may be tried again."""
    bus = NatsBus(settings, metrics)
    await bus.start()
    return bus


async def durability(monitor_url: str) -> Durability:
    """Whether the server writes to disk before it acknowledges, as its monitor tells; UNKNOWN on any doubt."""
    if not monitor_url:
        return Durability.UNKNOWN
    try:
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as client:
            answer = await client.get(f"{monitor_url.rstrip('/')}/jsz")
            config = answer.raise_for_status().json()["config"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return Durability.UNKNOWN
    if not isinstance(config, dict):
        return Durability.UNKNOWN
    return Durability.DURABLE if config.get("sync_always") is True else Durability.NOT_DURABLE


async def _provide_stream(manager: Any, wanted: Any) -> None:
    try:
        found = (await manager.stream_info(wanted.name)).config
    except NotFoundError:
        await manager.add_stream(wanted)
        return
    if (found.retention or api.RetentionPolicy.LIMITS) != (wanted.retention or api.RetentionPolicy.LIMITS):
        raise ConnectorError(
            f"stream {wanted.name} is there with {found.retention} retention",
            hint="remove it, or choose another site name",
        )
    if sorted(found.subjects or ()) != sorted(wanted.subjects):
        raise ConnectorError(
            f"stream {wanted.name} takes other subjects: {', '.join(found.subjects or ())}",
            hint=f"it should take {', '.join(wanted.subjects)}",
        )


def _judge_status(headers: dict[str, str], where: str) -> None:
    """404, 408 and batch ends are the ordinary end of a pull; the consumer's end is not."""
    code, text = headers.get("Status", ""), headers.get("Description", "")
    if code == "409" and ("deleted" in text.lower() or "leadership" in text.lower()):
        raise Unreachable(f"JetStream: {text}", where=where)
    if code == "503":
        raise Unreachable("JetStream does not answer", where=where)


def _header(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "?" for character in text)[:512]


def _honour_cancellation() -> None:
    """nats-py may turn a cancellation into an error of its own when the connection closes at the same moment."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
