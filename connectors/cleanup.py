"""Work that a cancellation may delay but not abandon, and resources that are given back on every way out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
"""How long work that overran its deadline may take to answer its own cancellation."""


def _nothing() -> None:
    """Work that cannot be hurried."""


async def finish(work: Awaitable[T], *, within: float, hurry: Callable[[], None] = _nothing) -> T:
    """Wait for work to its end even when the caller is cancelled meanwhile; the cancellation goes on afterwards.

    Work that is not done after `within` seconds is cancelled itself and TimeoutError raised, so that a shutdown
    is late but never stuck. What a cancelled caller can not be told (the work's own error) is noted on the
    CancelledError that it gets. `hurry` is called when the caller is cancelled: it may have the work end early.
    """
    task = asyncio.ensure_future(work)  # noqa: TID251 - it must outlive the caller's cancellation; no TaskGroup can
    cancelled, failure = await _settle(task, within, hurry)
    if cancelled is not None:
        if failure is not None:
            cancelled.add_note(f"what was waited for failed as well: {failure!r}")
        raise cancelled
    if failure is not None:
        raise failure
    return task.result()


@asynccontextmanager
async def acquired(
    create: Callable[[], Awaitable[T]],
    release: Callable[[T], Awaitable[None]],
    *,
    within: float,
    hurry: Callable[[], None] = _nothing,
) -> AsyncIterator[T]:
    """Hold what create() makes and release() it on every way out, a cancellation during create() included.

    `within` bounds each of the two, in seconds. `hurry` is called when a cancellation waits for create(), which may
    fail then, with nothing made. When the block fails and release() too, the block's error goes
    out with a note, so that a failed clean-up never hides why there was something to clean up.
    """
    making = asyncio.ensure_future(create())  # noqa: TID251 - its result must be released even if nobody waits for it
    try:
        resource = await finish(making, within=within, hurry=hurry)
    except asyncio.CancelledError as cancelled:
        if making.done() and not making.cancelled() and making.exception() is None:
            await _release_after(cancelled, release(making.result()), within)
        raise
    try:
        yield resource
    except BaseException as failure:
        await _release_after(failure, release(resource), within)
        raise
    await finish(release(resource), within=within)


async def _settle(
    task: asyncio.Future[T], within: float, hurry: Callable[[], None] = _nothing
) -> tuple[asyncio.CancelledError | None, BaseException | None]:
    """Wait for the task's end, or make an end of it; tell the last cancellation that came, and how the task failed."""
    cancelled = await _wait(task, within, hurry)
    overran = not task.done()
    if overran:
        task.cancel("it overran its deadline")
        cancelled = await _wait(task, GRACE_SECONDS) or cancelled
    if overran and (not task.done() or task.cancelled()):
        return cancelled, TimeoutError(f"not done within {within:g} s")
    if task.cancelled():
        return cancelled, asyncio.CancelledError("what was waited for was cancelled")
    return cancelled, task.exception()


async def _wait(
    task: asyncio.Future[T], seconds: float, hurry: Callable[[], None] = _nothing
) -> asyncio.CancelledError | None:
    """Wait until the task is done or the time is up; return the last cancellation that came meanwhile."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    cancelled: asyncio.CancelledError | None = None
    while not task.done() and (left := deadline - clock()) > 0:
        try:
            await asyncio.wait({task}, timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    return cancelled


async def _release_after(failure: BaseException, releasing: Awaitable[None], within: float) -> None:
    task = asyncio.ensure_future(releasing)  # noqa: TID251 - see finish
    cancelled, error = await _settle(task, within)
    if error is not None:
        log.error("clean-up failed", extra={"error": repr(error)})
        failure.add_note(f"clean-up failed as well: {error!r}")
    if cancelled is not None and not isinstance(failure, asyncio.CancelledError):
        raise cancelled from failure
