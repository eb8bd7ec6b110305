"""Clean-up that survives cancellation, at every moment at which one can come."""

import asyncio

import pytest

from connectors.cleanup import acquired, finish

WITHIN = 5.0


class Stage:
    """A resource whose making and releasing wait for the test, so that a cancellation hits an exact moment."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.entered = asyncio.Event()
        self.may_create = asyncio.Event()
        self.may_release = asyncio.Event()
        self.creating = asyncio.Event()
        self.releasing = asyncio.Event()
        self.creation_fails: Exception | None = None
        self.release_fails: Exception | None = None
        self.body_fails: Exception | None = None

    async def create(self) -> str:
        self.creating.set()
        await self.may_create.wait()
        if self.creation_fails:
            raise self.creation_fails
        self.log.append("created")
        return "snapshot-1"

    async def release(self, resource: str) -> None:
        assert resource == "snapshot-1"
        self.releasing.set()
        await self.may_release.wait()
        if self.release_fails:
            raise self.release_fails
        self.log.append("released")

    async def use(self) -> None:
        async with acquired(self.create, self.release, within=WITHIN):
            self.entered.set()
            if self.body_fails:
                raise self.body_fails
            await asyncio.Event().wait()


async def ended(task: "asyncio.Task[None]") -> BaseException | None:
    await asyncio.wait({task})
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_cancellation_during_creation_waits_for_it_and_releases() -> None:
    stage = Stage()
    task = asyncio.create_task(stage.use())
    await stage.creating.wait()
    task.cancel()
    await settle()
    assert not task.done()
    stage.may_create.set()
    stage.may_release.set()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert stage.log == ["created", "released"]
    assert not stage.entered.is_set()


async def test_a_cancellation_inside_the_block_releases() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.may_release.set()
    task = asyncio.create_task(stage.use())
    await stage.entered.wait()
    task.cancel()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert stage.log == ["created", "released"]


async def test_a_second_cancellation_does_not_interrupt_the_release() -> None:
    stage = Stage()
    stage.may_create.set()
    task = asyncio.create_task(stage.use())
    await stage.entered.wait()
    task.cancel()
    await stage.releasing.wait()
    task.cancel()
    await settle()
    task.cancel()
    await settle()
    assert not task.done()
    stage.may_release.set()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert stage.log == ["created", "released"]


async def test_cancellations_during_creation_and_then_during_release_lose_nothing() -> None:
    stage = Stage()
    task = asyncio.create_task(stage.use())
    await stage.creating.wait()
    task.cancel()
    await settle()
    stage.may_create.set()
    await stage.releasing.wait()
    task.cancel()
    await settle()
    stage.may_release.set()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert stage.log == ["created", "released"]


async def test_a_failing_sibling_in_a_task_group_still_lets_the_release_end() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.may_release.set()

    async def fail() -> None:
        await stage.entered.wait()
        raise ValueError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(stage.use())
            group.create_task(fail())
    assert caught.group_contains(ValueError)
    assert stage.log == ["created", "released"]


async def test_a_timeout_around_the_block_releases_and_stays_a_timeout() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.may_release.set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stage.use()
    assert stage.log == ["created", "released"]


async def test_a_failed_creation_releases_nothing() -> None:
    stage = Stage()
    stage.creation_fails = ValueError("no")
    stage.may_create.set()
    with pytest.raises(ValueError, match="no"):
        await stage.use()
    assert stage.log == []
    assert not stage.releasing.is_set()


async def test_a_creation_that_fails_after_the_cancellation_is_noted_on_it() -> None:
    stage = Stage()
    stage.creation_fails = ValueError("quota")
    task = asyncio.create_task(stage.use())
    await stage.creating.wait()
    task.cancel()
    await settle()
    stage.may_create.set()
    try:
        await task
    except asyncio.CancelledError as cancelled:
        assert "quota" in " ".join(cancelled.__notes__)
    assert stage.log == []


async def test_the_blocks_own_error_is_not_hidden_by_a_failed_release() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.may_release.set()
    stage.body_fails = ValueError("the disk is damaged")
    stage.release_fails = OSError("vCenter is away")
    with pytest.raises(ValueError, match="the disk is damaged") as caught:
        await stage.use()
    assert "vCenter is away" in " ".join(caught.value.__notes__)


async def test_a_failed_release_after_a_good_block_is_an_error() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.may_release.set()
    stage.release_fails = OSError("vCenter is away")
    with pytest.raises(OSError, match="vCenter is away"):
        async with acquired(stage.create, stage.release, within=WITHIN):
            pass


async def test_a_cancellation_during_the_release_after_an_error_lets_the_release_end() -> None:
    stage = Stage()
    stage.may_create.set()
    stage.body_fails = ValueError("first")
    task = asyncio.create_task(stage.use())
    await stage.releasing.wait()
    task.cancel()
    await settle()
    assert not task.done()
    stage.may_release.set()
    assert isinstance(await ended(task), asyncio.CancelledError)
    assert stage.log == ["created", "released"]


async def test_work_that_overruns_its_deadline_is_cancelled_and_reported() -> None:
    stopped = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        await finish(endless(), within=0.01)
    assert stopped.is_set()


async def test_finish_returns_the_result_or_raises_the_error() -> None:
    async def seven() -> int:
        return 7

    async def bad() -> int:
        raise KeyError("gone")

    assert await finish(seven(), within=WITHIN) == 7
    with pytest.raises(KeyError):
        await finish(bad(), within=WITHIN)


async def test_a_creation_that_is_hurried_by_a_cancellation_ends_early_and_leaves_nothing_to_release() -> None:
    unwanted = asyncio.Event()
    released: list[str] = []

    async def create() -> str:
        await unwanted.wait()
        raise OSError("given up")

    async def release(resource: str) -> None:
        released.append(resource)

    async def use() -> None:
        async with acquired(create, release, within=60, hurry=unwanted.set):
            raise AssertionError("nothing was made")

    task = asyncio.create_task(use())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert ["given up" in note for note in caught.value.__notes__] == [True]
    assert released == []
