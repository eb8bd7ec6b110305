"""The engine's HTTP API: everything that the command line asks for, /metrics and /healthz.

Over the Unix socket whoever may open it is trusted; over TCP every request carries the bearer token, which is as good
as the engine's own account: a restore writes where the engine may. Errors are JSON with the exit code of a command.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from engine.commands import (
    BackUpDisk,
    BackUpVm,
    Control,
    QueryLimits,
    Reclaim,
    Rehearse,
    RestoreDisk,
    RestoreInPlace,
    RestoreToFile,
    RestoreToVm,
    Task,
    Verify,
)
from engine.endpoints import Endpoints
from engine.failures import Exit, Kind, Verdict, verdict
from engine.plain import plain
from engine.sections import Api

log = logging.getLogger("engine.api")

LONGEST_WAIT_SECONDS = 55.0
"""How long a request may wait for news of a task: shorter than any proxy's patience."""

LONGEST_NAME = 64
"""So much of a person's name is kept."""

CLOSING_SECONDS = 5
"""How long requests under way may go on when the engine stops."""

_STATUS = {
    Exit.USAGE: 400,
    Exit.DAMAGED: 422,
    Exit.REFUSED: 409,
    Exit.UNREACHABLE: 502,
    Exit.NO_SPACE: 507,
    Exit.LOCKED: 423,
    Exit.TRY_LATER: 503,
}


def build(control: Control, who: str, *, token_digest: bytes | None = None) -> FastAPI:
    """The whole API. `who` is recorded with what is done through it; with token_digest every request is checked."""
    app = FastAPI(title="Backstay", docs_url=None, redoc_url=None)
    _answer_errors(app)
    _route_service(app, control)
    _route_points(app, control, who)
    _route_tasks(app, control, who)
    _route_vms(app, control, who)
    _route_policies(app, control, who)
    _route_sql(app, control)
    _route_notices(app, control)
    if token_digest is not None:
        app.middleware("http")(_guard(token_digest))
    return app


def build_metrics(control: Control) -> FastAPI:
    """Only /metrics and /healthz, for a scraper."""
    app = FastAPI(title="Backstay metrics", docs_url=None, redoc_url=None, openapi_url=None)
    _answer_errors(app)
    _route_service(app, control)
    return app


async def serve(control: Control, endpoints: Endpoints, config: Api) -> None:
    """Answer on all endpoints until cancelled, then let requests under way end. The caller closes the endpoints."""
    async with asyncio.TaskGroup() as servers:
        servers.create_task(_serve(_settings(build(control, "a local user")), endpoints.local))
        if endpoints.tcp is not None and config.token is not None:
            digest = hashlib.sha256(config.token.read().encode()).digest()
            settings = _settings(build(control, "token", token_digest=digest), config.certificate, config.key)
            servers.create_task(_serve(settings, endpoints.tcp))
        if endpoints.metrics is not None:
            servers.create_task(_serve(_settings(build_metrics(control)), endpoints.metrics))


class _Server(uvicorn.Server):
    """Leaves signals to the engine."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _settings(app: FastAPI, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Config:
    # Given here and not set later: the constructor is what installs uvicorn's own logging.
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=CLOSING_SECONDS,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )


async def _serve(settings: uvicorn.Config, listener: Any) -> None:
    server = _Server(settings)
    try:
        await server.serve(sockets=[listener])
    except asyncio.CancelledError:
        if server.started:
            await server.shutdown(sockets=[listener])
        raise


def _guard(token_digest: bytes) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def check(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "")
        scheme, _, token = given.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        # Digests of equal length: neither the time nor the length tells anything of the token.
        if not hmac.compare_digest(digest, token_digest) or scheme.lower() != "bearer":
            refused = Verdict(Kind.FAIL, Exit.UNREACHABLE, "the API's token was not accepted")
            return _problem(refused, 401, {"WWW-Authenticate": "Bearer"})
        return await proceed(request)

    return check


def _answer_errors(app: FastAPI) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        judged = verdict(error)
        if judged.exit_code is Exit.BUG:
            log.error("request failed", extra={"path": request.url.path}, exc_info=error)
            judged = Verdict(judged.kind, judged.exit_code, f"{judged.sentence} in the engine; its log has the details")
        return _problem(judged, _STATUS.get(judged.exit_code, 500))

    async def on_bad_request(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors())
        return _problem(Verdict(Kind.FAIL, Exit.USAGE, f"the request does not fit: {said}"), 400)

    async def on_http(request: Request, error: HTTPException) -> Response:
        said = f"{request.method} {request.url.path}: {error.detail}"
        return _problem(Verdict(Kind.FAIL, Exit.USAGE, said), error.status_code)

    @app.middleware("http")
    async def catch(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await proceed(request)
        except Exception as error:
            return await on_error(request, error)

    app.exception_handler(RequestValidationError)(on_bad_request)
    app.exception_handler(HTTPException)(on_http)


def _problem(judged: Verdict, status: int, headers: dict[str, str] | None = None) -> Response:
    error = {"kind": judged.kind.value, "exit_code": int(judged.exit_code), "sentence": judged.sentence}
    return JSONResponse({"error": error}, status, headers)


def _route_service(app: FastAPI, control: Control) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        found = plain(await control.health())
        return JSONResponse(found, 200 if found.get("ok") else 503)

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        body, content_type = control.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def _route_points(app: FastAPI, control: Control, who: str) -> None:
    @app.get("/v1/status")
    async def status() -> Any:
        return JSONResponse(plain(await control.status()))

    @app.get("/v1/points")
    async def points(vm: str | None = None) -> Any:
        return JSONResponse(plain(list(await control.points(vm))))

    @app.get("/v1/point")
    async def point(reference: str) -> Any:
        return JSONResponse(plain(await control.point(reference)))

    @app.post("/v1/hold")
    async def hold(point: str = Body(), reason: str = Body()) -> Any:
        await control.hold(point, reason, who)
        return {}

    @app.post("/v1/release")
    async def release(point: str = Body(), reason: str | None = Body(default=None)) -> Any:
        await control.release(point, reason, who)
        return {}

    @app.post("/v1/expire")
    async def expire(
        point: str = Body(), reason: str = Body(), last: bool = Body(default=False), lost: bool = Body(default=False)
    ) -> Any:
        await control.expire(point, reason, who, last=last, lost=lost)
        return {}


def _route_tasks(app: FastAPI, control: Control, who: str) -> None:
    async def submit(task: Task) -> Response:
        return JSONResponse({"id": await control.submit(task, who)}, 202)

    @app.post("/v1/tasks/backup")
    async def backup(task: BackUpVm) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/backup-disk")
    async def backup_disk(task: BackUpDisk) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/restore-file")
    async def restore_file(task: RestoreToFile) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/restore-vm")
    async def restore_vm(task: RestoreToVm) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/restore-in-place")
    async def restore_in_place(task: RestoreInPlace) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/restore-disk")
    async def restore_disk(task: RestoreDisk) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/verify")
    async def verify(task: Verify) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/rehearse")
    async def rehearse(task: Rehearse) -> Any:
        return await submit(task)

    @app.post("/v1/tasks/reclaim")
    async def reclaim(task: Reclaim) -> Any:
        return await submit(task)

    @app.get("/v1/tasks/{id}")
    async def task(id: str, wait: float = 0.0) -> Any:
        return JSONResponse(plain(await control.task(id, max(0.0, min(wait, LONGEST_WAIT_SECONDS)))))

    @app.delete("/v1/tasks/{id}")
    async def cancel(id: str) -> Any:
        await control.cancel(id, who)
        return {}


def _route_vms(app: FastAPI, control: Control, who: str) -> None:
    @app.get("/v1/vms/relink")
    async def plan_relink(old: str, new: str) -> Any:
        return JSONResponse(plain(await control.plan_relink(old, new)))

    @app.post("/v1/vms/relink")
    async def relink(old: str = Body(), new: str = Body()) -> Any:
        return JSONResponse(plain(await control.relink(old, new, who)))


def _route_policies(app: FastAPI, control: Control, who: str) -> None:
    @app.get("/v1/policies/explain")
    async def explain(vm: str) -> Any:
        return JSONResponse(plain(await control.explain(vm)))

    @app.get("/v1/policies/explain-point")
    async def explain_point(reference: str) -> Any:
        return JSONResponse(plain(await control.explain_point(reference)))

    @app.get("/v1/policies/pending")
    async def pending() -> Any:
        return JSONResponse(plain(await control.pending_policies()))

    @app.post("/v1/policies/apply")
    async def apply(
        digest: str = Body(), override_guard: bool = Body(default=False), user: str = Body(default="")
    ) -> Any:
        done = await control.apply_policies(digest, _person(user, who), override_guard=override_guard)
        return JSONResponse(plain(done))

    @app.post("/v1/policies/apply-plan")
    async def apply_plan(
        plan: Annotated[dict[str, Any], Body()],
        override_guard: bool = Body(default=False),
        user: str = Body(default=""),
    ) -> Any:
        done = await control.apply_plan(plan, _person(user, who), override_guard=override_guard)
        return JSONResponse(plain(done))

    @app.post("/v1/policies/sole-bytes")
    async def sole_bytes(points: Annotated[list[str], Body(embed=True)]) -> Any:
        return {"bytes": await control.sole_bytes(points)}

    @app.get("/v1/policies/facts")
    async def facts() -> Any:
        return StreamingResponse(await control.policy_facts(), media_type="application/json")

    @app.get("/v1/policies/journal")
    async def journal(since: datetime) -> Any:
        return StreamingResponse(control.journal(since), media_type="application/x-ndjson")


def _person(user: str, who: str) -> str:
    """Who did it, as the audit keeps it: the name that the command tells, and how it reached the engine."""
    name = "".join(c for c in user[:LONGEST_NAME] if c.isprintable())
    return f"{name}, {who}" if name else who


def _route_notices(app: FastAPI, control: Control) -> None:
    @app.post("/v1/notify/test")
    async def test(target: str = Body(embed=True)) -> Any:
        return {"target": target, "said": await control.try_notify(target)}


def _route_sql(app: FastAPI, control: Control) -> None:
    @app.get("/v1/views")
    async def views() -> Any:
        return JSONResponse(plain(await control.views()))

    @app.post("/v1/sql")
    async def sql(query: str = Body(), rows: int = Body(default=10_000), seconds: float = Body(default=30.0)) -> Any:
        most = QueryLimits()
        limits = QueryLimits(rows=min(rows, 1_000_000), seconds=min(seconds, 600.0), memory_bytes=most.memory_bytes)
        return JSONResponse(plain(await control.select(query, limits)))
