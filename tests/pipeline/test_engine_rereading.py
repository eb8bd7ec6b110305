"""What a policy wants read back is read back in time by the engine's verification, and told where it is not."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine import overview, rereading, upkeep
from engine.parts import Parts
from engine.startup import assemble, recover
from engine.state import State
from engine.threads import Threads
from metrics.registry import Metrics
from policies.facts import PointId, VmId
from policies.verification import DueVerification
from storage.repository import create, open_repository
from tests.pipeline.running import configure
from tests.storage_kit import NOW, back_up, files, image, later, opened

DAY = timedelta(days=1)

POLICIES = """
schema = 1
[policy.gold]
rpo = "24h"
select.all = ["tag:backup=gold"]
verify.every = "7d"
[policy.rest]
rpo = "24h"
select.all = ["*"]
"""


@dataclass
class Clock:
    at: datetime

    def now(self) -> datetime:
        return self.at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of restore points of two policies; their VMs are gone, so that each point's own policy counts."""
    create(tmp_path / "repo", now=NOW, block_bytes=4096)
    with opened(tmp_path / "repo") as repo:
        back_up(repo, image(1, 20), vm="vm-1")
        back_up(repo, image(2, 20), vm="vm-2", policy="rest")
    for pack in files(tmp_path / "repo", "packs"):
        os.utime(pack, (NOW.timestamp(),) * 2)
    return tmp_path


@asynccontextmanager
async def engine(root: Path, clock: Clock, more: str = "") -> AsyncIterator[Parts]:
    config = configure(root, POLICIES, more=more)
    with ExitStack() as held:
        state = State(config.state_dir, now=clock.now())
        held.callback(state.close)
        repository = held.enter_context(open_repository(config.place, now=clock.now, owner="test"))
        threads = Threads()
        held.callback(threads.close)
        metrics = Metrics(version="test", now=clock.now)
        parts = assemble(
            config,
            state=state,
            repository=repository,
            threads=threads,
            metrics=metrics,
            now=clock.now,
            version="test",
        )
        await recover(parts)
        await confirm(parts)
        yield parts


async def confirm(parts: Parts) -> None:
    """Put the files in force: as long as no inventory is known, every change of them waits."""
    if parts.rulebook.plan is not None:
        await parts.rulebook.apply(parts.rulebook.plan.id, "test", override_guard=True)


def value(parts: Parts, name: str, policy: str = "gold") -> float | None:
    return parts.metrics.registry.get_sample_value(f"backstay_{name}", {"policy": policy})


async def test_what_a_policy_wants_is_read_before_its_time_is_over_and_the_rest_is_not(root: Path) -> None:
    clock = Clock(later(hours=6))
    async with engine(root, clock) as parts:
        read: dict[int, bool] = {}
        for day in range(1, 22):
            clock.at = later(days=day, hours=6)
            read[day] = " 0 bytes read" not in await _verified(parts)
            assert value(parts, "verify_overdue_points") == 0
            oldest = value(parts, "verify_oldest_reading_timestamp_seconds")
            assert oldest is not None
            assert clock.at - datetime.fromtimestamp(oldest, UTC) <= 7 * DAY
        assert [day for day, some in read.items() if some] == [1, 6, 11, 16, 21]
        sizes = [path.stat().st_size for path in files(root / "repo", "packs")]
        clock.at = later(days=26, hours=6)
        said = await _verified(parts)
        assert 0 < int(said.split(" bytes read")[0].split()[-1]) < sum(sizes), "the other policy wants nothing"


async def _verified(parts: Parts) -> str:
    await upkeep.once(parts, "verify", upkeep.verify)
    return parts.upkeep["verify"]


async def test_a_wish_that_is_not_met_is_told(root: Path) -> None:
    clock = Clock(later(days=9))
    async with engine(root, clock) as parts:
        await upkeep.publish(parts)
        assert value(parts, "verify_overdue_points") == 1
        assert value(parts, "verify_every_seconds") == 7 * 86400
        assert value(parts, "verify_overdue_points", "rest") is None
        [row] = (await overview.status(parts))["verification"]
        assert (row["policy"], row["points"], row["overdue"], row["oldest_reading"]) == ("gold", 1, 1, NOW)
        clock.at += timedelta(minutes=1)
        await _verified(parts)
        assert value(parts, "verify_overdue_points") == 0
        (root / "policies" / "all.toml").write_text(POLICIES.replace('verify.every = "7d"', ""))
        await parts.rulebook.look()
        await confirm(parts)
        await upkeep.publish(parts)
        assert value(parts, "verify_overdue_points") is None, "nobody wants it any more"


async def test_windows_that_open_seldom_are_looked_ahead_of(root: Path) -> None:
    sunday = datetime(2026, 3, 8, 10, 0, tzinfo=UTC)
    assert sunday.weekday() == 6
    clock = Clock(sunday)
    async with engine(root, clock, '[maintenance]\nverify_window = ["sun 08:00-16:00"]\n') as parts:
        closes = sunday.replace(hour=16)
        assert rereading.next_ended(parts, closes, sunday) == closes + 7 * DAY
        [group] = await rereading.to_begin_with(parts, closes)
        assert len(group.points) == 1


def test_groups_keep_the_order_of_urgency_and_are_few() -> None:
    now = later(days=100)

    def due(number: int, every: int) -> DueVerification:
        wish = every * DAY
        return DueVerification(PointId(f"{every}-{number}"), VmId("v"), "p", wish, later(days=number), "")

    wishes = [due(number, every) for number in range(40) for every in (7, 30)]
    groups = rereading.groups_of(wishes, by=now + 2 * DAY, now=now)
    assert len(groups) <= rereading.MOST_GROUPS
    assert sorted(point for group in groups for point in group.points) == sorted(one.point for one in wishes)
    first = [int(group.points[0].partition("-")[2]) for group in groups]
    assert first == sorted(first)
    assert {group.after for group in groups} == {now + 2 * DAY - 0.75 * 7 * DAY, now + 2 * DAY - 0.75 * 30 * DAY}
    assert all(group.after < now for group in rereading.groups_of([due(1, 1)], by=now + 2 * DAY, now=now))
    assert rereading.groups_of([], by=now, now=now) == ()


async def test_a_start_begins_no_new_interval(root: Path) -> None:
    clock = Clock(later(hours=6))
    waits: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise Enough

    async def first_wait() -> timedelta:
        async with engine(root, clock) as parts:
            with pytest.raises(Enough):
                await upkeep.verifying(parts, DAY, sleep=sleep)
        return timedelta(seconds=waits[-1])

    assert await first_wait() == DAY, "there is nothing to read yet"
    async with engine(root, clock) as parts:
        await _verified(parts)
    clock.at += timedelta(hours=20)
    assert await first_wait() == timedelta(hours=4)
    clock.at += timedelta(days=9)
    assert await first_wait() == upkeep.FIRST_VERIFY
    clock.at = later()
    assert await first_wait() == DAY, "a clock that was set back stops nothing for longer"
