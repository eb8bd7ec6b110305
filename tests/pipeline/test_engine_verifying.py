"""The engine's verification over days: begins in a window, stops at its end, goes on in the next, and tells of it."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine import upkeep
from engine.parts import Parts
from engine.startup import assemble, recover
from engine.state import State
from engine.threads import Threads
from metrics.registry import Metrics
from storage.repository import create, open_repository
from tests.pipeline.running import configure
from tests.storage_kit import NOW, back_up, files, image, opened

OPENS, CLOSES = 22, 23
DAY = timedelta(days=1)
TICK = timedelta(minutes=15)
"""What each question of the repository for the time costs: four reads fill a window."""


@dataclass
class Clock:
    """A clock that goes on when somebody sleeps, and by a tick when the repository asks."""

    at: datetime
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> datetime:
        return self.at

    def ticking(self) -> datetime:
        with self._lock:
            self.at += TICK * self.is_open()
            return self.at

    def is_open(self) -> bool:
        return OPENS <= self.at.hour < CLOSES


@dataclass(frozen=True)
class Seen:
    """What the metrics said when a verification had ended."""

    began: datetime
    ended: datetime
    left_bytes: float
    last_success: float
    sentence: str


class Enough(Exception):
    """The test has seen what it wants."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of ten packs, and a configuration with a window of an hour each night."""
    create(tmp_path / "repo", now=NOW, block_bytes=4096)
    with opened(tmp_path / "repo") as repo:
        for vm in range(5):
            back_up(repo, image(vm, 20), vm=f"vm-{vm}")
    for pack in files(tmp_path / "repo", "packs"):
        os.utime(pack, (NOW.timestamp(),) * 2)
    return tmp_path


@asynccontextmanager
async def engine(root: Path, clock: Clock, key: str = "verify_window") -> AsyncIterator[Parts]:
    more = f'[maintenance]\n{key} = ["{OPENS}:00-{CLOSES}:00"]\n'
    config = configure(root, more=more)
    with ExitStack() as held:
        state = State(config.state_dir, now=clock.now())
        held.callback(state.close)
        repository = held.enter_context(open_repository(config.place, now=clock.ticking, owner="test"))
        threads = Threads()
        held.callback(threads.close)
        parts = assemble(
            config,
            state=state,
            repository=repository,
            threads=threads,
            metrics=Metrics(version="test", now=clock.now),
            now=clock.now,
            version="test",
            reconcile_grace=DAY,
        )
        await recover(parts)
        yield parts


async def verified(root: Path, clock: Clock, times: int) -> list[Seen]:
    """Let the loop verify so many times, and tell what was to be seen after each."""
    seen: list[Seen] = []
    began = clock.at

    async with engine(root, clock) as parts:

        def value(name: str) -> float:
            found = parts.metrics.registry.get_sample_value(f"backstay_{name}", {"repository": "repo"})
            assert found is not None
            return found

        async def sleep(seconds: float) -> None:
            nonlocal began
            if sentence := parts.upkeep.pop("verify", ""):
                left, success = value("verify_left_bytes"), value("verify_last_success_timestamp_seconds")
                seen.append(Seen(began, clock.at, left, success, sentence))
                if len(seen) == times:
                    raise Enough
            clock.at += timedelta(seconds=seconds)
            began = clock.at

        with pytest.raises(Enough):
            await upkeep.verifying(parts, DAY, sleep=sleep)
    return seen


def nights(of: datetime) -> Iterator[datetime]:
    """When the window opens, from the first night on after the loop's first day of waiting."""
    night = (of + DAY).replace(hour=OPENS, minute=0)
    while True:
        yield night
        night += DAY


async def test_it_begins_with_the_window_stops_at_its_end_and_goes_on_in_the_next(root: Path) -> None:
    seen = await verified(root, Clock(NOW), 5)
    for one, night in zip(seen, nights(NOW), strict=False):
        assert one.began == night
        assert one.ended <= night + timedelta(hours=CLOSES - OPENS) + TICK
    left = [one.left_bytes for one in seen]
    done = left.index(0)
    assert done >= 2, "it took more than two windows"
    assert left[:done] == sorted(set(left[:done]), reverse=True), "each goes on where the last one ended"
    assert all("left for the next window" in one.sentence for one in seen[:done])
    assert [one.last_success for one in seen[:done]] == [0.0] * done, "not before all was read"
    assert datetime.fromtimestamp(seen[done].last_success, UTC) == seen[done].ended
    assert " 0 bytes read" in seen[done + 1].sentence, "what was read counts for the days of `reread`"


async def test_reclaim_waits_for_the_window_too_and_begins_each_night(root: Path) -> None:
    clock = Clock(NOW)
    began: list[datetime] = []
    async with engine(root, clock, "window") as parts:
        assert not clock.is_open()
        assert await upkeep.reclaim(parts) == "waits for its window"

        async def sleep(seconds: float) -> None:
            if sentence := parts.upkeep.pop("reclaim", ""):
                assert "0 bytes freed" in sentence
                began.append(clock.at.replace(minute=0))
                if len(began) == 3:
                    raise Enough
            clock.at += timedelta(seconds=seconds)

        with pytest.raises(Enough):
            await upkeep.reclaiming(parts, DAY, sleep=sleep)
    night = NOW.replace(hour=OPENS, minute=0)
    assert began == [night, night + DAY, night + 2 * DAY]


async def test_an_engine_that_is_started_again_goes_on_where_the_last_one_ended(root: Path) -> None:
    (first,) = await verified(root, Clock(NOW), 1)
    (second,) = await verified(root, Clock(first.ended), 1)
    assert 0 < second.left_bytes < first.left_bytes
