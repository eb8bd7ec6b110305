"""What is told: once when it begins, once when it is over, together with what comes at the same time, never a storm."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.telling import LONGER, MOST_LINES, MOST_VALUES, RESTS, Known, News, Topic, Trouble, compare, letter, trial

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WAIT = timedelta(minutes=3)
MINUTE = timedelta(minutes=1)


def missed(vm: str, *targets: str) -> Trouble:
    return Trouble(f"rpo:{vm}", Topic.RPO_MISSED, f"{vm} missed its RPO", f"{vm} meets its RPO", targets or ("ops",))


class Teller:
    """The comparison over time."""

    def __init__(self) -> None:
        self.known: Mapping[str, Known] = {}
        self.at = NOW

    def see(
        self, *troubles: Trouble, after: timedelta = MINUTE, unsure: bool = False, busy: tuple[str, ...] = ()
    ) -> dict[str, list[str]]:
        self.at += after
        found = compare(self.known, troubles, self.at, wait=WAIT, unsure=lambda one: unsure, busy=busy)
        self.known = found.known
        return {
            target: [f"{'over' if one.over else 'began'} {one.key}" for one in news]
            for target, news in found.letters.items()
        }


def test_a_trouble_is_told_once_and_once_more_when_it_is_over() -> None:
    teller = Teller()
    assert [teller.see(missed("db")) for _ in range(10)] == [{}, {}, {}, {"ops": ["began rpo:db"]}, *[{}] * 6]
    assert [teller.see() for _ in range(10)] == [{}, {}, {}, {"ops": ["over rpo:db"]}, *[{}] * 6]
    teller.see(after=RESTS)
    assert teller.known == {}


def test_what_passes_by_is_not_told() -> None:
    teller = Teller()
    for _ in range(20):
        assert teller.see(missed("db"), missed("web")) == {}
        assert teller.see() == {}
    assert teller.known == {}


def test_a_trouble_that_is_over_for_a_moment_goes_on() -> None:
    teller = Teller()
    teller.see(missed("db"))
    assert teller.see(missed("db"), after=WAIT) == {"ops": ["began rpo:db"]}
    for _ in range(20):
        assert teller.see() == {}
        assert teller.see(missed("db")) == {}


def test_a_trouble_that_comes_and_goes_is_told_later_each_time() -> None:
    teller = Teller()
    told: list[float] = []
    for step in range(3 * 24 * 60):
        troubles = [missed("db")] if step // 10 % 2 == 0 else []
        if teller.see(*troubles):
            told.append((teller.at - NOW) / timedelta(hours=1))
    assert 2 <= len(told) <= 4, "ten minutes each: 216 times in three days"
    assert max(told) < 1


def test_one_that_comes_back_for_good_is_told_all_the_same() -> None:
    teller = Teller()
    for _ in range(6):
        while not teller.see(missed("db")):
            pass
        while not teller.see():
            pass
    begun = teller.at
    while not teller.see(missed("db")):
        pass
    assert teller.at - begun <= WAIT * 2**LONGER + MINUTE
    while not teller.see():
        pass
    teller.see(after=RESTS)
    begun = teller.at
    while not teller.see(missed("db")):
        pass
    assert teller.at - begun == WAIT + MINUTE, "what was well for hours is new"


def test_what_comes_together_is_told_together() -> None:
    teller = Teller()
    vms = [missed(f"vm-{number:04}") for number in range(1000)]
    teller.see(*vms[:1])
    teller.see(*vms[:500])
    teller.see(*vms)
    said = teller.see(*vms)
    assert list(said) == ["ops"]
    assert len(said["ops"]) == 1000
    assert [teller.see(*vms) for _ in range(20)] == [{}] * 20


def test_each_target_is_told_what_is_for_it() -> None:
    teller = Teller()
    troubles = missed("db", "ops", "dba"), missed("web", "ops"), missed("own", "none")
    teller.see(*troubles)
    assert teller.see(*troubles, after=WAIT) == {
        "ops": ["began rpo:db", "began rpo:web"],
        "dba": ["began rpo:db"],
        "none": ["began rpo:own"],
    }


def test_a_target_that_is_named_later_is_told_what_still_is() -> None:
    teller = Teller()
    teller.see(missed("db"))
    teller.see(missed("db"), after=WAIT)
    assert teller.see(missed("db", "ops", "dba")) == {"dba": ["began rpo:db"]}
    teller.see(missed("db", "dba"))
    assert teller.see() == {}
    assert teller.see(after=WAIT) == {"ops": ["over rpo:db"], "dba": ["over rpo:db"]}, "whoever was told"


def test_nothing_is_over_as_long_as_nobody_can_tell() -> None:
    teller = Teller()
    teller.see(missed("db"))
    teller.see(missed("db"), after=WAIT)
    assert [teller.see(unsure=True) for _ in range(10)] == [{}] * 10
    assert teller.see(missed("db")) == {}
    teller.see()
    assert teller.see(after=WAIT) == {"ops": ["over rpo:db"]}


def test_news_for_a_busy_target_waits_and_is_told_together() -> None:
    teller = Teller()
    teller.see(missed("db", "ops", "dba"))
    assert teller.see(missed("db", "ops", "dba"), after=WAIT, busy=("ops",)) == {"dba": ["began rpo:db"]}
    teller.see(missed("db", "ops", "dba"), missed("web"), after=10 * WAIT, busy=("ops",))
    assert teller.see(missed("db", "ops", "dba"), missed("web")) == {"ops": ["began rpo:db", "began rpo:web"]}


def test_what_ends_before_a_busy_target_could_be_told_is_not_told() -> None:
    teller = Teller()
    teller.see(missed("db"))
    teller.see(missed("db"), after=WAIT, busy=("ops",))
    assert teller.see(after=WAIT) == {}


VMS = ("a", "b", "c")


@given(st.lists(st.tuples(st.sets(st.sampled_from(VMS)), st.integers(0, 400), st.booleans()), max_size=40))
def test_a_target_hears_began_and_over_by_turns_and_at_most_one_letter_in_each_while(
    steps: list[tuple[set[str], int, bool]],
) -> None:
    teller = Teller()
    heard: dict[str, list[str]] = {}
    times: list[datetime] = []
    for vms, seconds, busy in steps:
        said = teller.see(*map(missed, sorted(vms)), after=timedelta(seconds=seconds), busy=("ops",) if busy else ())
        if said:
            times.append(teller.at)
        for line in said.get("ops", ()):
            state, _, key = line.partition(" ")
            heard.setdefault(key, []).append(state)
    assert all(second - first >= WAIT for first, second in pairwise(times))
    for states in heard.values():
        assert states == (["began", "over"] * len(states))[: len(states)]
    for _ in range(2):
        teller.see(after=RESTS)
    assert teller.known == {}, "nothing is remembered for ever"


def news(number: int, topic: Topic = Topic.RPO_MISSED, *, over: bool = False) -> list[News]:
    return [News(f"{topic}:{n}", topic, f"vm-{n} {topic}", f"vm-{n} is well", NOW, over) for n in range(number)]


def test_one_news_is_its_own_subject() -> None:
    said = letter("site-a", news(1), NOW)
    assert said.subject == "Backstay site-a: vm-0 rpo_missed"
    assert said.text == "- vm-0 rpo_missed\n\nEngine site-a, 2026-03-01T12:00:00Z. All of it: backstay status"
    assert said.data["counts"] == {"rpo_missed": 1}
    assert said.data["news"] == [
        {
            "key": "rpo_missed:0",
            "topic": "rpo_missed",
            "state": "began",
            "sentence": "vm-0 rpo_missed",
            "since": "2026-03-01T12:00:00Z",
        }
    ]


def test_a_letter_about_many_has_a_bound() -> None:
    said = letter("site-a", [*news(5000), *news(2, Topic.DAMAGE), *news(3, over=True)], NOW)
    assert said.subject == "Backstay site-a: 2 × damage, 5000 × missed RPO, 3 over"
    lines = said.text.splitlines()
    assert lines[0] == "- vm-0 damage", "what is worst stands first"
    assert f"- and {5000 - MOST_LINES} more: missed RPO" in lines
    assert lines[lines.index("Over:") :][1:4] == ["- vm-0 rpo_missed", "- vm-1 rpo_missed", "- vm-2 rpo_missed"]
    assert len(lines) < 60
    assert len(said.data["news"]) == MOST_VALUES
    assert said.data["more"] == 5005 - MOST_VALUES
    assert said.data["counts"] == {"damage": 2, "rpo_missed": 5000}
    assert said.data["over"] == {"rpo_missed": 3}


def test_a_trial_says_that_it_is_one() -> None:
    said = trial("site-a", "ops", NOW)
    assert said.data["trial"] is True
    assert "trial" in said.subject
