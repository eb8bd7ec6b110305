"""What a message may say, and that anything else is a BadMessage and nothing worse."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.errors import BadMessage, Busy
from connectors.message_shapes import AnnouncedType
from connectors.messages import (
    MAX_MESSAGE_BYTES,
    RefusedMessage,
    Subjects,
    Unrelated,
    key_of,
    parse,
    run_message,
)
from connectors.vcenter_messages import VIM_EVENTS, echo_key, echoed, structured, vcenter_key
from policies.facts import VM_EVENT_TYPES, Address, Event, EventType

CREATED = {"event": "vm.created", "vm": {"name": "a"}}
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ANNOUNCED = "io.backstay.event.v1"
EVENT = "backstay.v1.main.event.guest"
BACKUP = "backstay.v1.main.cmd.backup"
HOLD = "backstay.v1.main.cmd.hold"


def cloud_event(type: str, data: object, **more: object) -> bytes:
    return json.dumps(
        {"specversion": "1.0", "id": "1", "source": "/tests", "type": type, "data": data, **more}
    ).encode()


def read(subject: str, data: bytes) -> Event | Unrelated:
    return parse(subject, data, key="k", received_at=NOW)


def said(subject: str, data: bytes) -> Event:
    event = read(subject, data)
    assert isinstance(event, Event)
    return event


def refused(subject: str, data: bytes) -> RefusedMessage:
    with pytest.raises(RefusedMessage) as caught:
        read(subject, data)
    return caught.value


@pytest.mark.parametrize("type", sorted(VM_EVENT_TYPES))
def test_every_event_of_a_vm_can_be_announced(type: EventType) -> None:
    event = said(EVENT, cloud_event(ANNOUNCED, {"event": type.value, "vm": {"name": "web-1"}}))
    assert (event.key, event.type, event.source, event.vm_name, event.vm) == ("k", type, "nats", "web-1", None)


def test_what_can_be_announced_is_what_a_trigger_can_name() -> None:
    assert set(AnnouncedType.__args__) == {type.value for type in VM_EVENT_TYPES}  # type: ignore[attr-defined]


def test_an_announcement_may_name_the_address_the_hosts_and_the_cause() -> None:
    data = {
        "event": "vm.migrated",
        "vm": {"vcenter": "5f2a", "moref": "vm-12"},
        "cause": "drs",
        "from_host": "esx1",
        "to_host": "esx2",
        "user": "root",
    }
    event = said(EVENT, cloud_event(ANNOUNCED, data))
    assert event.address == Address("5f2a", "vm-12")
    assert (event.cause, event.from_host, event.to_host, event.user) == ("drs", "esx1", "esx2", "root")


@pytest.mark.parametrize(
    ("subject", "type", "expected"),
    [
        (BACKUP, "io.backstay.command.backup.v1", EventType.BACKUP_REQUESTED),
        (HOLD, "io.backstay.command.hold.v1", EventType.HOLD_REQUESTED),
    ],
)
def test_a_command_asks_with_a_reason_and_says_who_sent_it(subject: str, type: str, expected: EventType) -> None:
    event = said(subject, cloud_event(type, {"vm": {"name": "db-1"}, "reason": "before the upgrade"}))
    assert event.type is expected
    assert event.detail == {"reason": "before the upgrade", "sender": "/tests"}


@pytest.mark.parametrize(
    "tail", ["expire", "reclaim", "release", "policy.apply", "backup.now", "hold.off", "", "Backup"]
)
def test_no_other_command_exists(tail: str) -> None:
    data = cloud_event("io.backstay.command.backup.v1", {"vm": {"name": "db-1"}, "reason": "x"})
    assert refused(f"backstay.v1.main.cmd.{tail}", data).kind == "not_allowed"


@pytest.mark.parametrize(
    ("subject", "type"),
    [
        (EVENT, "io.backstay.command.backup.v1"),
        (EVENT, "io.backstay.command.hold.v1"),
        (BACKUP, "io.backstay.command.hold.v1"),
        (HOLD, "io.backstay.command.backup.v1"),
        (BACKUP, "io.backstay.event.v1"),
        (EVENT, "io.backstay.command.expire.v1"),
        (BACKUP, "com.vmware.event.router/event"),
    ],
)
def test_the_subject_decides_what_may_be_said_because_permissions_hang_on_it(subject: str, type: str) -> None:
    data = {"event": "vm.created", "vm": {"name": "db-1"}, "reason": "x"}
    assert refused(subject, cloud_event(type, data)).kind == "not_allowed"


@pytest.mark.parametrize("subject", ["backstay.v1.main", "backstay.v2.default.event.x", "other.v1.default.event.x", ""])
def test_other_subjects_are_not_ours(subject: str) -> None:
    assert refused(subject, b"{}").kind == "not_ours"


VEBA = {
    "Key": 9910,
    "CreatedTime": "2026-11-22T11:59:00Z",
    "UserName": "VSPHERE.LOCAL\\Administrator",
    "Host": {"Name": "esx2", "Host": {"Type": "HostSystem", "Value": "host-2"}},
    "Vm": {"Name": "web-1", "Vm": {"Type": "VirtualMachine", "Value": "vm-57"}},
    "SourceHost": {"Name": "esx1", "Host": {"Type": "HostSystem", "Value": "host-1"}},
}


def test_a_vcenter_event_in_vebas_envelope_is_understood() -> None:
    data = cloud_event(
        "com.vmware.event.router/event", VEBA, subject="DrsVmMigratedEvent", source="https://vc.example.com/sdk"
    )
    event = said(EVENT, data)
    assert (event.type, event.cause, event.vm_name) == (EventType.MIGRATED, "drs", "web-1")
    assert (event.from_host, event.to_host) == ("esx1", "esx2")
    assert event.address is None
    assert event.detail == {"moref": "vm-57", "vcenter": "vc.example.com", "vim_event": "DrsVmMigratedEvent"}


def test_a_vcenter_event_in_knatives_envelope_is_understood() -> None:
    lower = {"vm": {"name": "web-1", "vm": {"value": "vm-57"}}, "userName": "root"}
    event = said(EVENT, cloud_event("com.vmware.vsphere.VmPoweredOffEvent.v0", lower))
    assert (event.type, event.vm_name, event.user) == (EventType.POWERED_OFF, "web-1", "root")


@pytest.mark.parametrize("name", ["UserLoginSessionEvent", "", "VmPoweredOffEventX"])
def test_a_vcenter_event_that_no_policy_can_name_is_unrelated(name: str) -> None:
    event = read(EVENT, cloud_event("com.vmware.event.router/event", {"Key": 1}, subject=name))
    assert isinstance(event, Unrelated)


HERE = {"vc.example.com": "5f2a", "new.example.com": ""}
TAG = {
    "Key": 326221,
    "CreatedTime": "2026-11-22T11:59:00.5Z",
    "Vm": None,
    "Arguments": [
        {"Key": "Tag", "Value": "gold"},
        {"Key": "Object", "Value": "web-1\n"},
        {"Key": "User", "Value": "alice"},
    ],
}


def from_vcenter(name: str, data: object, *, host: str = "VC.example.com") -> Event:
    sent = cloud_event("com.vmware.event.router/event", data, subject=name, source=f"https://{host}/sdk")
    event = parse(EVENT, sent, key="k", received_at=NOW, vcenters=HERE)
    assert isinstance(event, Event)
    return event


def test_an_event_of_a_vcenter_that_is_followed_has_the_key_of_the_follower_in_its() -> None:
    event = from_vcenter("DrsVmMigratedEvent", {**VEBA, "Key": 9902})
    vcenters_own = vcenter_key("5f2a", datetime(2026, 11, 22, 11, 59, tzinfo=UTC), 9902)
    assert event.key == echo_key(vcenters_own, "DrsVmMigratedEvent", "vm-57")
    assert echoed(event.key) == vcenters_own
    assert event.address == Address("5f2a", "vm-57")
    assert from_vcenter("VmPoweredOffEvent", {**VEBA, "Key": 9902}).key != event.key
    assert from_vcenter("DrsVmMigratedEvent", {**VEBA, "Key": -7}).key == "k"
    assert from_vcenter("DrsVmMigratedEvent", {**VEBA, "Key": 9902, "CreatedTime": None}).key == "k"


def test_an_event_of_a_vcenter_that_nobody_follows_is_refused_and_one_of_a_later_one_comes_again() -> None:
    with pytest.raises(RefusedMessage, match="known_as") as refused:
        from_vcenter("DrsVmMigratedEvent", VEBA, host="elsewhere.example.com")
    assert refused.value.kind == "not_ours"
    with pytest.raises(Busy):
        from_vcenter("DrsVmMigratedEvent", VEBA, host="new.example.com")


def test_a_tag_that_was_attached_names_its_object_in_an_argument() -> None:
    event = from_vcenter("com.vmware.cis.tagging.attach", TAG)
    assert (event.type, event.vm_name, event.address) == (EventType.RETAGGED, "web-1", None)
    assert event.detail["tags"] == "added gold"
    assert echoed(event.key) == "vc:5f2a:1795348740:326221"
    with pytest.raises(BadMessage, match="names no object"):
        from_vcenter("com.vmware.cis.tagging.attach", {**TAG, "Arguments": []})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({**VEBA, "CreatedTime": "yesterday"}, "CreatedTime"),
        ({**VEBA, "CreatedTime": "0001-01-01T00:00:00Z"}, "not of our days"),
        ({**VEBA, "Key": "9902"}, "Key"),
        ({**VEBA, "Key": 1 << 70}, "Key"),
        ({**VEBA, "Arguments": [{"Key": "a"}] * 101}, "Arguments"),
        ({**VEBA, "Vm": None}, "Vm"),
        ({**VEBA, "Vm": {"Name": "a\x00b", "Vm": {"Value": "vm-57"}}}, "control characters"),
    ],
)
def test_a_hostile_event_is_refused_with_the_place(data: object, words: str) -> None:
    with pytest.raises(BadMessage, match=words):
        from_vcenter("DrsVmMigratedEvent", data)


def test_a_message_in_binary_mode_says_the_same_as_one_in_structured_mode() -> None:
    headers = {
        "ce-specversion": "1.0",
        "Ce-Id": "08179137",
        "ce-source": "https://vc.example.com/sdk",
        "ce-type": "com.vmware.event.router/event",
        "ce-subject": "DrsVmMigratedEvent",
        "ce-time": "2026-11-22T11%3A59%3A00Z",
        "Content-Type": "application/json",
        "Backstay-Other": "x",
    }
    body = json.dumps({**VEBA, "Key": 9902}).encode()
    made = structured(headers, body, most=MAX_MESSAGE_BYTES)
    event = parse(EVENT, made, key="k", received_at=NOW, vcenters=HERE)
    assert isinstance(event, Event)
    assert (event.key, event.at) == (from_vcenter("DrsVmMigratedEvent", {**VEBA, "Key": 9902}).key, event.at)
    assert key_of(None, made, position="p") == key_of(None, made, position="q")
    assert structured({}, body, most=MAX_MESSAGE_BYTES) == body
    assert structured(headers, b"x" * 99, most=98) == b"x" * 99
    for wrong in (b"", b"{", b"[" * 100_000, b"\xff", b"NaN", b'"text"'):
        with pytest.raises(BadMessage):
            parse(EVENT, structured(headers, wrong, most=MAX_MESSAGE_BYTES), key="k", received_at=NOW)


def test_every_vim_event_leads_to_a_type_that_a_trigger_can_name() -> None:
    assert {type for type, _ in VIM_EVENTS.values()} <= VM_EVENT_TYPES


def test_the_time_is_the_senders_but_never_in_the_future() -> None:
    data = {"event": "vm.created", "vm": {"name": "a"}}
    earlier = said(EVENT, cloud_event(ANNOUNCED, data, time="2026-11-22T12:30:00+01:00"))
    later = said(EVENT, cloud_event(ANNOUNCED, data, time="2027-01-01T00:00:00Z"))
    without = said(EVENT, cloud_event(ANNOUNCED, data))
    assert earlier.at == NOW - timedelta(minutes=30)
    assert later.at == without.at == NOW


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "Invalid JSON"),
        (b"hello", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[]", "the message"),
        (b"null", "the message"),
        (b"[" * 200_000, "Invalid JSON"),
        (b'{"a":' * 40_000, "Invalid JSON"),
        (b"9" * 100_000, ""),
        (cloud_event(ANNOUNCED, {"event": "vm.exploded", "vm": {"name": "a"}}), "data.event"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {"name": 7}}), "data.vm.name"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {}}), "name"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {"moref": "vm-1"}}), "come together"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {"name": "a"}, "expire": True}), "data.expire"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {"name": "a\nb"}}), "control characters"),
        (cloud_event(ANNOUNCED, {"event": "vm.created", "vm": {"name": "a" * 513}}), "data.vm.name"),
        (cloud_event(ANNOUNCED, CREATED, time="soon"), "time"),
        (cloud_event(ANNOUNCED, CREATED, time="0001-01-01T00:00:00+23:59"), ""),
        (cloud_event(ANNOUNCED, CREATED, time="2026-11-22T10:00:00"), "time"),
        (cloud_event(ANNOUNCED, {}, specversion="0.3"), "specversion"),
        (cloud_event(ANNOUNCED, {}, id=""), "id"),
        (cloud_event(ANNOUNCED, "x"), "data"),
        (cloud_event("com.vmware.event.router/event", {"Key": 1}, subject="VmCreatedEvent"), "data.Vm"),
    ],
)  # fmt: skip
def test_a_message_that_is_not_as_it_should_be_is_refused_with_the_place(data: bytes, words: str) -> None:
    error = refused(EVENT, data)
    assert error.kind == "malformed"
    assert words in str(error)
    assert len(str(error)) < 700
    assert str(error).isprintable()


def test_a_command_without_a_reason_is_refused() -> None:
    data = cloud_event("io.backstay.command.hold.v1", {"vm": {"name": "a"}})
    assert "data.reason" in str(refused(HOLD, data))


def test_a_message_of_a_megabyte_is_not_even_read() -> None:
    assert refused(EVENT, b" " * 1_000_000).kind == "too_large"
    assert refused(EVENT, b" " * (MAX_MESSAGE_BYTES + 1)).kind == "too_large"


def test_a_lone_surrogate_cannot_get_into_the_journal() -> None:
    data = b'{"specversion":"1.0","id":"1","source":"s","type":"io.backstay.event.v1","data":'
    data += b'{"event":"vm.created","vm":{"name":"\\ud800"}}}'
    assert refused(EVENT, data).kind == "malformed"


def test_the_key_is_the_message_id_else_source_and_id_else_the_position() -> None:
    data = cloud_event(ANNOUNCED, {})
    assert key_of("abc", data, position="p") == "nats-id:abc"
    assert key_of(None, data, position="p") == "nats-event:/tests 1"
    assert key_of(None, b"?", position="p") == "nats-position:p"
    assert key_of("x" * 100_000, b"", position="p") == key_of("x" * 100_000, b"other", position="q")
    assert len(key_of("x" * 100_000, b"", position="p")) < 100


def test_a_message_id_cannot_take_the_key_of_a_vcenter_event() -> None:
    assert key_of("vcenter:5f2a:9910", b"", position="p").startswith("nats-id:")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "specversion": st.just("1.0") | JSON,
    "id": st.text(min_size=1, max_size=5) | JSON,
    "source": st.text(min_size=1, max_size=5) | JSON,
    "type": st.sampled_from(
        ["io.backstay.event.v1", "io.backstay.command.backup.v1", "com.vmware.event.router/event"]
    ) | JSON,
    "subject": st.sampled_from([*VIM_EVENTS]) | JSON,
    "time": st.datetimes().map(lambda at: at.isoformat() + "Z") | JSON,
    "data": st.fixed_dictionaries(
        {}, optional={"event": st.just("vm.created") | JSON, "vm": st.fixed_dictionaries({"name": JSON}) | JSON,
                      "Vm": st.fixed_dictionaries({"Name": st.text() | JSON, "Vm": JSON}), "Host": JSON,
                      "reason": JSON},
    ) | JSON,
}  # fmt: skip
SUBJECTS = st.sampled_from([EVENT, BACKUP, HOLD, "backstay.v1.main.cmd.expire"]) | st.text(max_size=40)
ALMOST = st.fixed_dictionaries({}, optional=FIELDS).map(lambda fields: json.dumps(fields).encode())


@given(SUBJECTS, st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()) | ALMOST)
@example(EVENT, b'{"specversion":"1.0","id":"1","source":"http://[","type":"com.vmware.event.router/event",'
                b'"subject":"VmCreatedEvent","data":{"Vm":{"Name":"a"}}}')  # fmt: skip
def test_any_bytes_are_an_event_or_unrelated_or_a_bad_message_and_nothing_else(subject: str, data: bytes) -> None:
    key = key_of(None, data, position="p")
    try:
        event = parse(subject, data, key=key, received_at=NOW)
    except BadMessage as error:
        str(error).encode()
    else:
        if isinstance(event, Event):
            assert event.type in VM_EVENT_TYPES | {EventType.BACKUP_REQUESTED, EventType.HOLD_REQUESTED}
            assert event.at <= NOW
            repr(event).encode()


@given(st.text(max_size=300), st.binary(max_size=50))
def test_any_key_is_short_printable_text(message_id: str, data: bytes) -> None:
    key = key_of(message_id, data, position="p")
    assert len(key) < 600
    assert key.isprintable()


def test_subjects_of_a_site() -> None:
    subjects = Subjects("lab-1")
    assert subjects.run("r1", "done") == "backstay.v1.lab-1.run.r1.done"
    assert subjects.dead("backstay.v1.lab-1.event.x") == "backstay.v1.lab-1.dlq.event.x"


@pytest.mark.parametrize("site", ["", "Lab", "a.b", "*", ">", "a b", "x" * 64])
def test_a_site_is_one_subject_token(site: str) -> None:
    with pytest.raises(BadMessage, match="no site name"):
        Subjects(site)


def test_a_run_is_told_as_a_cloud_event() -> None:
    told = json.loads(run_message(key="r1-done", source="/backstay/lab", at=NOW, run={"vm": "a", "read_bytes": 3}))
    assert told["type"] == "io.backstay.run.v1"
    assert told["time"] == "2026-11-22T12:00:00Z"
    assert told["data"] == {"vm": "a", "read_bytes": 3}


EXAMPLES = re.findall(r"```json\n(.*?)```", (Path(__file__).parents[2] / "docs/messages.md").read_text("utf-8"), re.S)
TOLD = [example for example in EXAMPLES if json.loads(example)["type"] == "io.backstay.run.v1"]
TAKEN = [example for example in EXAMPLES if example not in TOLD]


@pytest.mark.parametrize("example", TAKEN, ids=range(len(TAKEN)))
def test_every_message_in_the_documentation_is_understood(example: str) -> None:
    subjects = {"io.backstay.command.backup.v1": BACKUP, "io.backstay.command.hold.v1": HOLD}
    assert said(subjects.get(json.loads(example)["type"], EVENT), example.encode()).vm_name


def test_the_documentation_shows_an_example_of_each() -> None:
    assert len(TAKEN) == 4
    assert len(TOLD) == 1


def test_the_documented_message_of_a_run_has_the_envelope_of_a_real_one() -> None:
    real = json.loads(run_message(key="r1.done", source="/backstay/main", at=NOW, run={}))
    assert json.loads(TOLD[0]).keys() == real.keys()
