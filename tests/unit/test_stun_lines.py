"""Which lines of a VM's log tell how long its guest stood still, and what a server may answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import httpx
import pytest

from connectors.errors import Rejected, Unreachable
from connectors.vsphere import folder_files
from connectors.vsphere.folder_files import FolderFile, Part, ServerFailed, read_part
from connectors.vsphere.session import Session, SessionSettings
from connectors.vsphere.stun import parse

LOG = FolderFile("[ssd-1] web/vmware.log", "DC0")
UNSTUN = "Checkpoint_Unstun: vm stopped for 188405 us"


@pytest.mark.parametrize(
    "line",
    [
        f"2012-03-23T16:22:51.876Z| vcpu-0| {UNSTUN}",
        f"2015-10-27T22:01:42.149Z| vcpu-0| I120: {UNSTUN}",
        f"2021-06-01T08:00:00.123Z| vcpu-0| I005: {UNSTUN}",
        f"2021-06-01T08:00:00.123+02:00| vmx| I125: {UNSTUN}",
        f"2023-05-01T10:00:00.536Z In(05) vcpu-0 - {UNSTUN}",
        f"2023-05-01T10:00:00.536Z In(05) vcpu-0 - {UNSTUN}\r",
    ],
    ids=["esxi-5.0", "esxi-6", "esxi-7", "with-a-zone", "esxi-8", "with-a-return"],
)
def test_a_line_of_each_version_is_read(line: str) -> None:
    assert parse(f"{line}\n".encode()) == ((0.188405,), len(line) + 1)


@pytest.mark.parametrize(
    "line",
    [
        UNSTUN,
        f"2023-05-01T10:00:00.536Z In(05) vmx - Guest: {UNSTUN}",
        f"2015-10-27T22:01:42.149Z| vmx| I120: GuestRpc: 2015-10-27T22:01:42.149Z| vcpu-0| I120: {UNSTUN}",
        f"2015-10-27T22:01:42.149Z| vcpu-0| I120: {UNSTUN} or so",
        "2015-10-27T22:01:42.149Z| vcpu-0| I120: Checkpoint_Unstun: vm stopped for -5 us",
        f"2015-10-27T22:01:42.149Z| vcpu-0| I120: Checkpoint_Unstun: vm stopped for {'9' * 400} us",
        "2015-10-27T22:01:42.149Z| vcpu-0| I120: Checkpoint_Unstun: vm stopped for ١٢ us",
        "2015-10-27T22:01:41.961Z| vcpu-0| I120: Destroying virtual dev for scsi0:0 vscsi=8198",
    ],
    ids=["bare", "guest", "guest-in-full", "more", "negative", "huge", "other-digits", "another"],
)
def test_what_only_looks_like_one_is_none(line: str) -> None:
    assert parse(f"{line}\n".encode())[0] == ()


# What a server answers


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have /folder answer so."""

    def answer(status: int, headers: Mapping[str, str], body: bytes) -> None:
        def respond(request: httpx.Request) -> httpx.Response:
            assert request.headers["range"] == "bytes=10-19"
            return httpx.Response(status, headers=headers, content=body)

        async def answered(
            session: Session, file: FolderFile, ask: Callable[[httpx.AsyncClient], Awaitable[Part]]
        ) -> Part:
            async with httpx.AsyncClient(transport=httpx.MockTransport(respond), base_url="https://vc") as client:
                return await ask(client)

        monkeypatch.setattr(folder_files, "_answered", answered)

    return answer


def session() -> Session:
    return Session(SessionSettings(host="vc", user="u", password=lambda: "p", engine_id="e"))


@pytest.mark.parametrize(
    ("status", "headers", "body", "part"),
    [
        (206, {"Content-Range": "bytes 10-19/40"}, b"0123456789", Part(b"0123456789", 40)),
        (206, {"Content-Range": "bytes 10-12/13"}, b"012", Part(b"012", 13)),
        (416, {"Content-Range": "bytes */7"}, b"no", Part(b"", 7)),
        (416, {}, b"", Part(b"", 10)),
        (200, {"Content-Length": "0"}, b"", Part(b"", 0)),
    ],
    ids=["in-full", "up-to-the-end", "past-the-end", "past-the-end-untold", "empty"],
)
async def test_a_part_is_what_was_asked_for_or_what_there_is_of_it(
    answers: Callable[..., None], status: int, headers: Mapping[str, str], body: bytes, part: Part
) -> None:
    answers(status, headers, body)
    assert await read_part(session(), LOG, 10, 10) == part


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (200, {}, b"the whole file", Rejected),
        (206, {}, b"0123456789", Rejected),
        (206, {"Content-Range": "bytes 9-18/40"}, b"0123456789", Rejected),
        (206, {"Content-Range": "bytes 10-39/40"}, b"0" * 30, Rejected),
        (206, {"Content-Range": "bytes 10-9/40"}, b"", Rejected),
        (206, {"Content-Range": f"bytes 10-19/{'9' * 5000}"}, b"0123456789", Rejected),
        (206, {"Content-Range": "bytes 10-19/40"}, b"0" * 5000, Unreachable),
        (206, {"Content-Range": "bytes 10-19/40"}, b"012", Unreachable),
        (500, {}, b"", ServerFailed),
        (503, {}, b"", ServerFailed),
    ],
    ids=["whole", "untold", "another", "more", "backwards", "huge", "too-much", "cut-off", "locked", "busy"],
)
async def test_any_other_answer_is_an_error_of_ours(
    answers: Callable[..., None], status: int, headers: Mapping[str, str], body: bytes, error: type[Exception]
) -> None:
    answers(status, headers, body)
    with pytest.raises(error):
        await read_part(session(), LOG, 10, 10)
