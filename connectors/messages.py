"""What a message may say: that something happened to a VM, that a VM be backed up, that its restore points be held.

Messages are CloudEvents 1.0 in structured JSON and come from strangers: `parse` takes any bytes and gives an Event,
an Unrelated, or raises BadMessage. What may be said depends on the subject, because that is what NATS grants
permissions on: an announcement can never be a command.

    backstay.v1.<site>.event.>       io.backstay.event.v1, and vCenter events as VEBA and Knative wrap them
    backstay.v1.<site>.cmd.backup    io.backstay.command.backup.v1
    backstay.v1.<site>.cmd.hold      io.backstay.command.hold.v1
    backstay.v1.<site>.run.<id>.<state>, backstay.v1.<site>.dlq.>     published by Backstay
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import (
    BaseModel,
    ValidationError,
)

from connectors.errors import BadMessage
from connectors.message_shapes import CommandData, Envelope, EventData, Identity, VimEvent
from connectors.vcenter_messages import TAG_EVENTS, VIM_EVENTS, class_of, told, vcenter_of
from policies.facts import Event, EventType, instant_text

MAX_MESSAGE_BYTES = 256 * 1024
"""The largest message that is looked at; vCenter's own events are a few KiB."""

MAX_KEY_LENGTH = 256
SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
TOKEN = re.compile(r"[a-z0-9_-]{1,128}")

EVENT_MESSAGE = "io.backstay.event.v1"
BACKUP_COMMAND = "io.backstay.command.backup.v1"
HOLD_COMMAND = "io.backstay.command.hold.v1"
RUN_MESSAGE = "io.backstay.run.v1"

_SHOWN = "docs/messages.md shows every message"

Shape = TypeVar("Shape", bound=BaseModel)
Kind = Literal["not_ours", "malformed", "too_large", "not_allowed", "given_up"]


class RefusedMessage(BadMessage):
    """A message that is put aside; `kind` is why, as a metric counts it."""

    def __init__(self, kind: Kind, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A well-formed announcement of something that no policy can ask about: acknowledge it and go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Subjects:
    """The subjects of one site."""

    site: str

    def __post_init__(self) -> None:
        if not SITE_NAME.fullmatch(self.site):
            raise RefusedMessage(
                "not_ours", f"{self.site!r} is no site name", hint="use a to z, 0 to 9, - and _, up to 63 characters"
            )

    @property
    def prefix(self) -> str:
        """What every subject of the site starts with."""
        return f"backstay.v1.{self.site}."

    @property
    def work(self) -> tuple[str, ...]:
        """What the engine consumes."""
        return (f"{self.prefix}event.>", f"{self.prefix}cmd.>")

    @property
    def runs(self) -> str:
        """All that the engine tells of its runs."""
        return f"{self.prefix}run.>"

    @property
    def dead_letters(self) -> str:
        """All dead letters."""
        return f"{self.prefix}dlq.>"

    def run(self, run_id: str, state: str) -> str:
        """Where one state of one run is told."""
        if not (TOKEN.fullmatch(run_id) and TOKEN.fullmatch(state)):
            raise ValueError(f"{run_id!r} and {state!r} must be subject tokens")
        return f"{self.prefix}run.{run_id}.{state}"

    def dead(self, subject: str) -> str:
        """Where a refused message of this subject goes."""
        return f"{self.prefix}dlq.{subject.removeprefix(self.prefix)}"


def parse(
    subject: str, data: bytes, *, key: str, received_at: datetime, vcenters: Mapping[str, str] | None = None
) -> Event | Unrelated:
    """What the message says, as an event with this key and without a VmId. Raises BadMessage for anything else.

    A time after `received_at`, which must be aware, is taken as `received_at`: a message cannot come from the future.
    `vcenters` are the instance UUIDs of those that are followed by their hosts, empty for one that is not reached yet:
    an event from there is Busy, one of another vCenter is refused, and any other has the key of vCenter's own in its.
    """
    area = _area(subject)
    envelope = _envelope(data, subject)
    at = _moment(envelope.time, received_at, subject)
    match area, envelope.type:
        case ("event", name) if name == EVENT_MESSAGE:
            return _announced(_told(EventData, envelope, subject), key, at)
        case ("event", name) if name.startswith("com.vmware."):
            return _from_vcenter(envelope, key, at, subject, vcenters)
        case ("cmd.backup", name) if name == BACKUP_COMMAND:
            return _asked(EventType.BACKUP_REQUESTED, _told(CommandData, envelope, subject), envelope, key, at)
        case ("cmd.hold", name) if name == HOLD_COMMAND:
            return _asked(EventType.HOLD_REQUESTED, _told(CommandData, envelope, subject), envelope, key, at)
        case ("event" | "cmd.backup" | "cmd.hold", name):
            raise RefusedMessage(
                "not_allowed",
                f"type {_short(name)} does not belong on this subject",
                where=subject,
                hint=f"event.> takes {EVENT_MESSAGE}, cmd.backup {BACKUP_COMMAND}, cmd.hold {HOLD_COMMAND}",
            )
        case _:
            raise RefusedMessage(
                "not_allowed",
                "a message can announce an event, or ask for a backup or a hold, and nothing else",
                where=subject,
                hint="publish on event.>, cmd.backup or cmd.hold",
            )


def key_of(message_id: str | None, data: bytes, *, position: str) -> str:
    """The same on every delivery: from Nats-Msg-Id, else from the CloudEvent's source and id, else from the position.

    The prefix keeps keys that strangers choose apart from vCenter's own and from each other's kinds.
    """
    if message_id:
        return _bounded("nats-id:", message_id)
    if len(data) <= MAX_MESSAGE_BYTES:
        try:
            named = Identity.model_validate_json(data)
        except ValidationError:
            pass
        else:
            return _bounded("nats-event:", f"{named.source} {named.id}")
    return _bounded("nats-position:", position)


def run_message(*, key: str, source: str, at: datetime, run: Mapping[str, object]) -> bytes:
    """The payload that tells a state of a run, as a CloudEvent; the values of `run` must fit into JSON."""
    return json.dumps(
        {
            "specversion": "1.0",
            "id": key,
            "source": source,
            "type": RUN_MESSAGE,
            "time": instant_text(at),
            "datacontenttype": "application/json",
            "data": dict(run),
        },
        separators=(",", ":"),
    ).encode()


def _area(subject: str) -> str:
    tokens = subject.split(".")
    if len(tokens) < 5 or tokens[:2] != ["backstay", "v1"]:
        raise RefusedMessage("not_ours", "not one of our subjects", where=_short(subject))
    return tokens[3] if tokens[3] != "cmd" else ".".join(tokens[3:])


def _envelope(data: bytes, subject: str) -> Envelope:
    if len(data) > MAX_MESSAGE_BYTES:
        raise RefusedMessage(
            "too_large", f"{len(data)} bytes are more than the {MAX_MESSAGE_BYTES} that are read", where=subject
        )
    try:
        return Envelope.model_validate_json(data)
    except ValidationError as error:
        raise _malformed(error, subject, "") from None


def _told(shape: type[Shape], envelope: Envelope, subject: str) -> Shape:
    try:
        return shape.model_validate(envelope.data)
    except ValidationError as error:
        raise _malformed(error, subject, "data") from None


def _moment(time: datetime | None, received_at: datetime, subject: str) -> datetime:
    if time is None:
        return received_at
    if not 2000 <= time.year < 2200:
        raise RefusedMessage("malformed", f"time {time.isoformat()} is not of our days", where=subject)
    return min(time.astimezone(UTC), received_at)


def _announced(data: EventData, key: str, at: datetime) -> Event:
    return Event(
        key=key,
        type=EventType(data.event),
        at=at,
        source="nats",
        vm_name=data.vm.name,
        address=data.vm.address,
        cause=data.cause,
        from_host=data.from_host,
        to_host=data.to_host,
        user=data.user,
    )


def _asked(type: EventType, data: CommandData, envelope: Envelope, key: str, at: datetime) -> Event:
    return Event(
        key=key,
        type=type,
        at=at,
        source="nats",
        vm_name=data.vm.name,
        address=data.vm.address,
        user=data.user,
        detail={"reason": data.reason, "sender": envelope.source},
    )


def _from_vcenter(
    envelope: Envelope, key: str, at: datetime, subject: str, vcenters: Mapping[str, str] | None
) -> Event | Unrelated:
    name = class_of(envelope.type, envelope.subject)
    if name not in VIM_EVENTS and name not in TAG_EVENTS:
        return Unrelated(f"vCenter event {_short(name) or 'without a name'} is none that a policy can ask about")
    data = _told(VimEvent, envelope, subject)
    vcenter = vcenter_of(envelope.source, vcenters)
    if vcenter is None:
        raise RefusedMessage(
            "not_ours",
            f"{_short(envelope.source)} is no vCenter that this engine follows",
            where=subject,
            hint="if it is, add the host in this address to known_as of its [vcenter.NAME]",
        )
    if name in VIM_EVENTS and data.vm is None:
        raise RefusedMessage("malformed", "data.Vm: Field required", where=subject, hint=_SHOWN)
    if name in TAG_EVENTS and not data.argument("Object"):
        raise RefusedMessage("malformed", "data.Arguments: names no object", where=subject, hint=_SHOWN)
    return told(data, name, vcenter=vcenter, source=envelope.source, key=key, at=at)


def _malformed(error: ValidationError, subject: str, inside: str) -> RefusedMessage:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(part for part in (inside, *(str(part) for part in first["loc"])) if part)
    others = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return RefusedMessage(
        "malformed",
        f"{_short(place) or 'the message'}: {_short(first['msg'])}{others}",
        where=subject,
        hint=_SHOWN,
    )


def _short(text: str) -> str:
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= 160 else f"{clean[:157]}..."


def _bounded(prefix: str, text: str) -> str:
    if len(text) <= MAX_KEY_LENGTH and text.isprintable():
        return prefix + text
    return f"{prefix}blake2b-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"
