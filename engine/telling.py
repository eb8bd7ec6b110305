"""What is told to whom, and when: values from what is wrong now and what was told before. Pure.

Each trouble is told once, and once more when it is over. News is collected for a while, so that what comes together
is one letter, and what passes by is none. A trouble that comes and goes is told later each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from engine.plain import show_time

LONGER = 5
"""So often the wait for a trouble that comes back doubles: 3 minutes become an hour and a half."""

RESTS = timedelta(hours=4)
"""How long a trouble that was told to be over is remembered, to know it when it comes back."""

MOST_LINES = 20
"""News of one topic that a letter tells one by one; it counts the others."""

MOST_VALUES = 200
"""News that a letter has as values for programs."""


class Topic(StrEnum):
    """What news is about, in the order of a letter."""

    DAMAGE = "damage"
    RUN_FAILED = "run_failed"
    RPO_MISSED = "rpo_missed"
    OVERLOAD = "overload"
    VCENTER_AWAY = "vcenter_away"
    REPOSITORY_AWAY = "repository_away"
    DATASTORE_FULL = "datastore_full"
    CONSOLIDATION = "consolidation"
    RETENTION_REFUSED = "retention_refused"
    POLICY_CHANGE = "policy_change"
    POLICY_FILES = "policy_files"
    VERIFY_OVERDUE = "verify_overdue"
    REHEARSAL_FAILED = "rehearsal_failed"
    REHEARSAL_OVERDUE = "rehearsal_overdue"


_WORDS = {
    Topic.DAMAGE: "damage",
    Topic.RUN_FAILED: "failed run",
    Topic.RPO_MISSED: "missed RPO",
    Topic.OVERLOAD: "overload",
    Topic.VCENTER_AWAY: "vCenter away",
    Topic.REPOSITORY_AWAY: "repository away",
    Topic.DATASTORE_FULL: "full datastore",
    Topic.CONSOLIDATION: "needed consolidation",
    Topic.RETENTION_REFUSED: "refused retention",
    Topic.POLICY_CHANGE: "policy change waiting",
    Topic.POLICY_FILES: "broken policy files",
    Topic.VERIFY_OVERDUE: "overdue verification",
    Topic.REHEARSAL_FAILED: "failed rehearsal",
    Topic.REHEARSAL_OVERDUE: "overdue rehearsal",
}

OF_A_VM = frozenset({Topic.DAMAGE, Topic.RUN_FAILED, Topic.RPO_MISSED, Topic.REHEARSAL_FAILED})


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong now. `key` is the same as long as it is the same trouble; `good` is told when it ends."""

    key: str
    topic: Topic
    sentence: str
    good: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A trouble that is remembered: who was told of it, how often, and since when it is over."""

    topic: Topic
    good: str
    since: datetime
    told: frozenset[str] = frozenset()
    over_since: datetime | None = None
    times: int = 0

    def ripe(self, now: datetime, wait: timedelta) -> bool:
        """Whether what is to be told of it has waited long enough."""
        if self.over_since is not None:
            return self.over_since + wait * (1 << min(max(self.times - 1, 0), LONGER)) <= now
        return self.since + wait * (1 << min(self.times, LONGER)) <= now


@dataclass(frozen=True, slots=True)
class News:
    """One trouble that began, or is over."""

    key: str
    topic: Topic
    sentence: str
    good: str
    since: datetime
    over: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is remembered from now on, and the news that each target is told now."""

    known: Mapping[str, Known]
    letters: Mapping[str, tuple[News, ...]]


def compare(
    known: Mapping[str, Known],
    troubles: Iterable[Trouble],
    now: datetime,
    *,
    wait: timedelta,
    unsure: Callable[[Known], bool] = lambda one: False,
    busy: Collection[str] = (),
) -> Comparison:
    """Hold what is wrong now against what is remembered.

    A target is told all its news when the oldest of it has waited long enough; a busy one later. `unsure` says of a
    trouble that is not seen now that nobody can tell whether it is over.
    """
    current = {trouble.key: trouble for trouble in troubles}
    after: dict[str, Known] = {}
    for key, trouble in current.items():
        before = known.get(key, Known(trouble.topic, trouble.good, now))
        back = before.over_since is not None and not before.told
        since = now if back else before.since
        after[key] = replace(before, good=trouble.good, since=since, over_since=None)
    for key, before in known.items():
        if key not in current and unsure(before):
            after[key] = before
        elif key not in current and (before.told or before.times):
            after[key] = replace(before, over_since=before.over_since or now)
    letters = _letters(after, current, now, wait, busy)
    for target, letter in letters.items():
        for one in letter:
            remembered = after[one.key]
            if one.over:
                after[one.key] = replace(remembered, told=remembered.told - {target})
            else:
                times = remembered.times + (not remembered.told)
                after[one.key] = replace(remembered, told=remembered.told | {target}, times=times)
    kept = {
        key: one for key, one in after.items() if one.told or one.over_since is None or one.over_since + RESTS > now
    }
    return Comparison(kept, letters)


def _letters(
    known: Mapping[str, Known], current: Mapping[str, Trouble], now: datetime, wait: timedelta, busy: Collection[str]
) -> dict[str, tuple[News, ...]]:
    """The news of each target of which some has waited long enough."""
    waiting: dict[str, list[News]] = {}
    ripe: set[str] = set()
    for key, one in known.items():
        trouble = current.get(key)
        over = one.over_since is not None
        if trouble is None and not over:
            continue
        sentence = trouble.sentence if trouble is not None else one.good
        targets = one.told if trouble is None else (name for name in trouble.targets if name not in one.told)
        for target in targets:
            waiting.setdefault(target, []).append(News(key, one.topic, sentence, one.good, one.since, over))
            if one.ripe(now, wait) or (one.told and not over):
                ripe.add(target)
    order = list(Topic)
    return {
        target: tuple(sorted(news, key=lambda one: (one.over, order.index(one.topic), one.since, one.sentence)))
        for target, news in waiting.items()
        if target in ripe and target not in busy
    }


@dataclass(frozen=True, slots=True)
class Letter:
    """News as it is sent: a line, a text, and values for programs."""

    at: datetime
    subject: str
    text: str
    data: Mapping[str, Any]
    news: tuple[News, ...] = ()


def letter(engine: str, news: Sequence[News], now: datetime) -> Letter:
    """One letter for all this news. Its length has a bound, whatever happened."""
    lines: list[str] = []
    for over in (False, True):
        some = [one for one in news if one.over is over]
        if some and over:
            lines += [*([""] if lines else []), "Over:"]
        for topic in Topic:
            told = [one for one in some if one.topic is topic]
            lines += [f"- {one.sentence}" for one in told[:MOST_LINES]]
            if len(told) > MOST_LINES:
                lines.append(f"- and {len(told) - MOST_LINES} more: {_WORDS[topic]}")
    lines += ["", f"Engine {engine}, {show_time(now)}. All of it: backstay status"]
    shown = [_values(one) for one in news[:MOST_VALUES]]
    data = {
        "format": 1,
        "engine": engine,
        "counts": _counts(one for one in news if not one.over),
        "over": _counts(one for one in news if one.over),
        "news": shown,
        "more": len(news) - len(shown),
    }
    return Letter(now, f"Backstay {engine}: {_subject(news)}", "\n".join(lines), data, tuple(news))


def _subject(news: Sequence[News]) -> str:
    if len(news) == 1:
        return news[0].sentence
    began = Counter(one.topic for one in news if not one.over)
    parts = [f"{began[topic]} × {_WORDS[topic]}" for topic in Topic if began[topic]]
    over = len(news) - began.total()
    return ", ".join([*parts, *([f"{over} over"] if over else [])])


def _counts(news: Iterable[News]) -> dict[str, int]:
    return {topic.value: number for topic, number in sorted(Counter(one.topic for one in news).items())}


def _values(one: News) -> dict[str, Any]:
    return {
        "key": one.key,
        "topic": one.topic.value,
        "state": "over" if one.over else "began",
        "sentence": one.sentence,
        "since": show_time(one.since),
    }


def trial(engine: str, target: str, now: datetime) -> Letter:
    """What `backstay notify test` sends."""
    sentence = f"this is a trial: notices of engine {engine} to {target} arrive"
    data = {"format": 1, "engine": engine, "counts": {}, "over": {}, "news": [], "more": 0, "trial": True}
    return Letter(now, f"Backstay {engine}: a trial", sentence, data)
