"""The API over real sockets: who may speak, what errors become, and how a client follows a task."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import stat
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from connectors.errors import Unreachable
from engine.api import serve
from engine.client import Engine
from engine.commands import (
    BackUpDisk,
    BackUpVm,
    Control,
    QueryAnswer,
    QueryLimits,
    Reclaim,
    RestoreToFile,
    RestoreToVm,
    Task,
    TaskReport,
    TaskState,
    Verify,
)
from engine.config import Config, parse
from engine.endpoints import Endpoints, open_endpoints
from engine.failures import BadInput, Declined, NotReachable, RemoteFailure
from policies.facts import PointId, RestorePoint, VmId
from storage.errors import Locked, NoSuchPoint, Refused
from tests.lab.certificates import make_certificates

T = TypeVar("T")
POINT = RestorePoint(PointId("p1"), VmId("vm-1"), "web", datetime(2026, 11, 22, 18, tzinfo=UTC))


@dataclass
class Desk:
    """A Control that remembers what was asked."""

    asked: list[tuple[str, object]] = field(default_factory=list)
    reports: list[TaskReport] = field(default_factory=list)

    async def health(self) -> Mapping[str, Any]:
        return {"ok": True, "problems": []}

    async def status(self) -> Mapping[str, Any]:
        return {"started_at": POINT.taken_at, "where": Path("/x")}

    async def points(self, vm: str | None) -> Sequence[RestorePoint]:
        if vm == "broken":
            raise ValueError("password=hunter2")
        return [POINT] if vm in (None, "web") else []

    async def point(self, reference: str) -> Mapping[str, Any]:
        raise NoSuchPoint(f"no restore point begins with {reference!r}")

    async def hold(self, reference: str, reason: str, who: str) -> None:
        self.asked.append(("hold", (reference, reason, who)))

    async def release(self, reference: str, reason: str | None, who: str) -> None:
        self.asked.append(("release", (reference, reason, who)))

    async def expire(self, reference: str, reason: str, who: str, *, last: bool = False, lost: bool = False) -> None:
        raise Refused(f"{reference} is held", hint="release it first")

    async def submit(self, task: Task, who: str) -> str:
        self.asked.append(("submit", task))
        return "t1"

    async def task(self, id: str, wait_seconds: float) -> TaskReport:
        if not self.reports:
            raise BadInput(f"there is no task {id}")
        return self.reports.pop(0)

    async def cancel(self, id: str, who: str) -> None:
        self.asked.append(("cancel", id))

    async def journal(self, since: datetime) -> AsyncIterator[bytes]:
        yield f"{since.isoformat()}\n".encode()

    async def explain_point(self, reference: str) -> Mapping[str, Any]:
        return {"point": reference}

    async def explain(self, vm: str) -> Mapping[str, Any]:
        raise Unreachable("vCenter does not answer", where="vc")

    async def plan_relink(self, old: str, new: str) -> Mapping[str, Any]:
        raise Declined("both stand in the inventory")

    async def relink(self, old: str, new: str, who: str) -> Mapping[str, Any]:
        self.asked.append(("relink", (old, new, who)))
        return {"moved": []}

    async def try_notify(self, target: str) -> str:
        self.asked.append(("notify", target))
        return "HTTP 204"

    async def pending_policies(self) -> Mapping[str, Any]:
        return {}

    async def apply_policies(self, digest: str, who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        self.asked.append(("apply", (digest, who, override_guard)))
        return {"digest": digest}

    async def apply_plan(self, plan: Mapping[str, Any], who: str, *, override_guard: bool = False) -> Mapping[str, Any]:
        self.asked.append(("apply-plan", (plan, who, override_guard)))
        return {"digest": plan["id"], "done": True}

    async def sole_bytes(self, points: Sequence[str]) -> int:
        return len(points)

    async def policy_facts(self) -> Iterator[bytes]:
        return iter([b'{"format": 1', b"}"])

    async def select(self, query: str, limits: QueryLimits) -> QueryAnswer:
        self.asked.append(("select", limits))
        return QueryAnswer((("n", "BIGINT"),), ((1,),), False)

    async def views(self) -> Mapping[str, Sequence[str]]:
        return {"vms": ("id",)}

    def exposition(self, accept: str) -> tuple[bytes, str]:
        return b"backstay_up 1\n", "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="api") as name:
        yield Path(name)


def configuration(folder: Path, more: str = "") -> Config:
    text = f'schema = 1\nstate_dir = "{folder}/state"\n[repository]\npath = "r"\n{more}'
    return parse(text, folder / "backstay.toml")


@asynccontextmanager
async def served(desk: Control, config: Config) -> AsyncIterator[Endpoints]:
    endpoints = open_endpoints(config)
    try:
        async with asyncio.TaskGroup() as group:
            server = group.create_task(serve(desk, endpoints, config.api))
            yield endpoints
            server.cancel()
    finally:
        endpoints.close()


async def ask(question: Callable[[], T]) -> T:
    return await asyncio.to_thread(question)


async def test_only_we_may_open_the_socket_and_it_is_gone_at_the_end(folder: Path) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        mode = config.socket.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(config.socket.parent.stat().st_mode) == 0o700
    assert not config.socket.exists()


async def test_answers_are_plain_json(folder: Path) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        engine = Engine(config.socket)
        assert await ask(lambda: engine.get("/v1/status")) == {"started_at": "2026-11-22T18:00:00Z", "where": "/x"}
        rows = await ask(lambda: engine.get("/v1/points", {"vm": "web"}))
        assert [(row["id"], row["vm"], row["vm_id"]) for row in rows] == [("p1", "web", "vm-1")]
        assert await ask(lambda: engine.get("/v1/points", {"vm": "other"})) == []


@pytest.mark.parametrize(
    ("question", "code", "said"),
    [
        (lambda e: e.get("/v1/point", {"reference": "x y&z"}), 2, "no restore point begins with 'x y&z'"),
        (lambda e: e.post("/v1/expire", {"point": "p1", "reason": "r"}), 5, "p1 is held (release it first)"),
        (lambda e: e.get("/v1/policies/explain", {"vm": "web"}), 6, "vc: vCenter does not answer"),
        (lambda e: e.get("/v1/vms/relink", {"old": "a", "new": "b"}), 5, "both stand in the inventory"),
        (lambda e: e.get("/v1/tasks/t9"), 2, "there is no task t9"),
        (lambda e: e.get("/v1/nothing"), 2, "GET /v1/nothing"),
        (lambda e: e.post("/v1/hold", {"point": "p1"}), 2, "reason"),
        (lambda e: e.post("/v1/tasks/verify", {"points": 3}), 2, "points"),
    ],
)
async def test_errors_arrive_with_the_exit_code_of_a_command(
    folder: Path, question: Callable[[Engine], object], code: int, said: str
) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        with pytest.raises(RemoteFailure) as caught:
            await ask(lambda: question(Engine(config.socket)))
    assert caught.value.verdict.exit_code == code
    assert said in caught.value.verdict.sentence


async def test_a_restore_point_is_explained_by_any_reference(folder: Path) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        asked = {"reference": "web@latest"}
        said = await ask(lambda: Engine(config.socket).get("/v1/policies/explain-point", asked))
    assert said == {"point": "web@latest"}


async def test_a_bug_is_told_without_its_text(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        with pytest.raises(RemoteFailure) as caught:
            await ask(lambda: Engine(config.socket).get("/v1/points", {"vm": "broken"}))
    assert caught.value.verdict.exit_code == 1
    assert "hunter2" not in caught.value.verdict.sentence and "log" in caught.value.verdict.sentence
    assert any(record.message == "request failed" and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "task",
    [
        BackUpVm("web", "why", full=True),
        BackUpDisk("/dev/sdx", "raw", ((0, 65536), (131072, 4096))),
        BackUpDisk("nbd://host/x", "raw"),
        RestoreToFile("p1", Path("/srv/disk.img"), "Hard disk 1", force=True),
        RestoreToVm("p1", "web-2", folder="/restored", network_map={"VM Network": "Isolated"}),
        Verify(("p1", "p2")),
        Reclaim(plan_only=True),
    ],
)
async def test_every_task_arrives_as_it_was_asked(folder: Path, task: Task) -> None:
    config, desk = configuration(folder), Desk()
    async with served(desk, config):
        assert await ask(lambda: Engine(config.socket).submit(task)) == "t1"
    assert desk.asked == [("submit", task)]


async def test_who_confirms_a_change_and_how_arrives_with_it(folder: Path) -> None:
    desk, config = Desk(), configuration(folder)
    async with served(desk, config):
        engine = Engine(config.socket)
        await ask(lambda: engine.post("/v1/policies/apply", {"digest": "d1"}))
        await ask(
            lambda: engine.post(
                "/v1/policies/apply", {"digest": "d2", "override_guard": True, "user": "an\nna" + " " * 99}
            )
        )
        await ask(lambda: engine.post("/v1/policies/apply-plan", {"plan": {"id": "p1"}, "user": "anna"}))
        assert await ask(lambda: engine.post("/v1/policies/sole-bytes", {"points": ["a", "b"]})) == {"bytes": 2}
    assert desk.asked == [
        ("apply", ("d1", "a local user", False)),
        ("apply", ("d2", "anna" + " " * 59 + ", a local user", True)),
        ("apply-plan", ({"id": "p1"}, "anna, a local user", False)),
    ]


async def test_the_facts_arrive_as_they_were_written(folder: Path) -> None:
    config = configuration(folder)
    async with served(Desk(), config):
        assert await ask(lambda: Engine(config.socket).fetch("/v1/policies/facts")) == b'{"format": 1}'
        with pytest.raises(RemoteFailure):
            await ask(lambda: Engine(config.socket).fetch("/v1/nothing"))


async def test_a_client_follows_a_task_to_its_end(folder: Path) -> None:
    config = configuration(folder)
    seen: list[TaskReport] = []
    running = TaskReport("t1", "verify", TaskState.RUNNING, "reading", 5, 10)
    desk = Desk(reports=[running, TaskReport("t1", "verify", TaskState.DONE, result={"checked_chunks": 3})])
    async with served(desk, config):
        result = await ask(lambda: Engine(config.socket).finish("t1", seen.append))
    assert result == {"checked_chunks": 3}
    assert [(report.state, report.done_bytes) for report in seen] == [(TaskState.RUNNING, 5), (TaskState.DONE, 0)]


async def test_a_task_that_failed_fails_with_its_own_exit_code(folder: Path) -> None:
    config = configuration(folder)
    desk = Desk(reports=[TaskReport("t1", "verify", TaskState.FAILED, exit_code=7, sentence="the disk is full")])
    async with served(desk, config):
        with pytest.raises(RemoteFailure, match="the disk is full") as caught:
            await ask(lambda: Engine(config.socket).finish("t1", lambda report: None))
    assert caught.value.verdict.exit_code == 7


async def test_a_question_in_sql_cannot_ask_for_more_than_the_engine_gives(folder: Path) -> None:
    config, desk = configuration(folder), Desk()
    async with served(desk, config):
        wish = {"query": "SELECT 1", "rows": 10**12, "seconds": 10**9}
        assert (await ask(lambda: Engine(config.socket).post("/v1/sql", wish)))["rows"] == [[1]]
    limits = desk.asked[0][1]
    assert isinstance(limits, QueryLimits)
    assert limits.rows <= 1_000_000 and limits.seconds <= 600 and limits.memory_bytes == QueryLimits().memory_bytes


def fetch(url: str, token: str | None = None, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_over_tcp_nothing_is_told_without_the_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "a-long-token")
    config = configuration(folder, '[api]\ntcp = "127.0.0.1:0"\ntoken = "env:API_TOKEN"\n')
    async with served(Desk(), config) as endpoints:
        base = endpoints.addresses["tcp"]
        for route in ("/v1/status", "/metrics", "/healthz", "/openapi.json", "/v1/nothing"):
            for token in (None, "wrong", "a-long-toke", "a-long-token2"):
                code, said = await ask(lambda route=route, token=token: fetch(base + route, token))  # type: ignore[misc]
                assert code == 401 and "a-long-token" not in said
        code, said = await ask(lambda: fetch(base + "/v1/points", "a-long-token"))
        assert code == 200 and json.loads(said)[0]["id"] == "p1"


async def test_beyond_loopback_the_token_goes_over_tls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "a-long-token")
    files = make_certificates(folder)
    guard = f'token = "env:API_TOKEN"\ncertificate = "{files.certificate}"\nkey = "{files.key}"\n'
    config = configuration(folder, f'[api]\ntcp = "127.0.0.1:0"\n{guard}')
    async with served(Desk(), config) as endpoints:
        base = endpoints.addresses["tcp"]
        assert base.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(files.authority))
        code, said = await ask(lambda: fetch(base + "/v1/points", "a-long-token", trusting))
        assert code == 200 and json.loads(said)[0]["id"] == "p1"
        assert (await ask(lambda: fetch(base + "/v1/points", None, trusting)))[0] == 401


async def test_the_metrics_address_tells_metrics_and_health_alone(folder: Path) -> None:
    config = configuration(folder, '[metrics]\nlisten = "127.0.0.1:0"\n')
    async with served(Desk(), config) as endpoints:
        address = endpoints.addresses["metrics"]
        assert await ask(lambda: fetch(address)) == (200, "backstay_up 1\n")
        base = address.removesuffix("/metrics")
        assert (await ask(lambda: fetch(base + "/healthz")))[0] == 200
        for route in ("/v1/status", "/v1/points", "/openapi.json"):
            assert (await ask(lambda route=route: fetch(base + route)))[0] == 404  # type: ignore[misc]


async def test_what_a_dead_engine_left_is_taken_over_and_a_living_one_is_respected(folder: Path) -> None:
    config = configuration(folder)
    config.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(config.socket))
    async with served(Desk(), config):
        with pytest.raises(Locked, match="another engine listens"):
            open_endpoints(config)
        assert await ask(lambda: Engine(config.socket).get("/healthz")) == {"ok": True, "problems": []}


async def test_a_file_in_the_place_of_the_socket_is_not_removed(folder: Path) -> None:
    config = configuration(folder)
    config.socket.parent.mkdir()
    config.socket.write_text("mine")
    with pytest.raises(BadInput, match="not a socket"):
        open_endpoints(config)
    assert config.socket.read_text() == "mine"


def test_where_nobody_listens_the_client_says_so(folder: Path) -> None:
    engine = Engine(folder / "none.sock")
    assert not engine.listens()
    with pytest.raises(NotReachable, match="does not answer"):
        engine.get("/v1/status")


def test_what_is_no_engine_is_not_taken_for_one(folder: Path) -> None:
    path = folder / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(NotReachable, match="not an engine"):
            Engine(path).get("/v1/status")
        thread.join()
