"""A thread's work is waited for, however often its caller is cancelled; work that can stop is told to."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.copying import CopyStopped, stop_if
from engine.threads import interruptible, settled


async def test_the_result_or_the_error_comes_as_it_is() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert await settled(pool, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await settled(pool, divmod, 7, 0)


async def test_a_cancelled_caller_leaves_only_after_its_thread() -> None:
    started, go, log = threading.Event(), threading.Event(), []

    def work() -> None:
        started.set()
        go.wait(10)
        log.append("thread ended")

    async def caller() -> None:
        try:
            await settled(pool, work)
        finally:
            log.append("caller left")

    with ThreadPoolExecutor(1) as pool:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(caller())
            await asyncio.to_thread(started.wait, 10)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
            assert log == []
            go.set()
        assert task.cancelled()
    assert log == ["thread ended", "caller left"]


async def test_work_that_can_stop_is_told_to_by_a_cancellation() -> None:
    started, stop = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        while True:
            stop.wait(10)
            stop_if(stop)

    with ThreadPoolExecutor(1) as pool:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(interruptible(pool, stop, work))
            await asyncio.to_thread(started.wait, 10)
            task.cancel()
        assert task.cancelled()
    with pytest.raises(CopyStopped):
        stop_if(stop)
