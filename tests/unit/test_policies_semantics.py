"""The rows of "Semantics" in docs/policies.md, word for word, each with what holds it.

A row is a vector here, or names the test elsewhere. A row of the page that is neither, or one of these that the page
does not have, fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from policies.decision import BackUp, RetentionPlan
from policies.evaluation import evaluate
from policies.facts import Consistency, EventType, Quiescing, RestorePoint, Vm
from policies.linting import lint
from policies.planning import plan_reload
from policies.policyset import PolicySet
from policies.protection import copies_of, left_out, protection
from policies.retention import mass_expiry, plan_retention
from tests.policies.building import NOW, a_disk, a_point, a_vm, an_event, daily_points, facts, policies

ROOT = Path(__file__).parents[2]
DAY = timedelta(days=1)
VM = a_vm("db", tags=frozenset({"env=prod"}), disks=(a_disk(2000), a_disk(2001)))

Vector = Callable[[], None]
VECTORS: dict[str, tuple[str, Vector]] = {}

ELSEWHERE = {
    "triggers": "test_one_event_leads_to_one_run_by_the_highest_priority",
    '`on_cbt_invalid = "verify"`': "test_a_verifying_run_counts_what_change_tracking_forgot_and_stores_it",
    '`on_cbt_invalid = "fail"`': (
        "test_under_fail_a_moved_vm_s_run_fails_once_and_a_full_read_that_is_asked_for_goes_through"
    ),
    "a sample that differs": "test_a_sample_that_differs_has_the_same_run_read_the_disk_in_full",
    "`on_migrate` among several": "test_on_a_tie_blocking_wins_before_finishing_and_settings_tell_it",
    '`on_migrate = "requeue"`': "test_a_run_gives_way_to_moves_leaves_nothing_and_the_third_time_is_the_last",
    '`on_migrate = "block"`': "test_a_vm_is_kept_in_its_place_from_before_its_snapshot_until_that_is_removed",
    "a move to other storage during a run": "test_changes_that_were_asked_around_a_move_of_storage_are_not_committed",
    "restore points of a VM in several repositories": (
        "test_a_vm_that_changes_its_destination_begins_with_a_full_read_there_and_its_old_points_age"
    ),
    "a destination that is away or unknown": "test_an_unknown_destination_is_told_and_backs_nothing_up_elsewhere",
    "a copy that keeps less": "test_what_a_copy_would_not_keep_is_not_copied",
    "`lock` in a copy": "test_a_copy_is_locked_for_as_long_as_its_own_retention_says",
    "a change of what a copy keeps": ("test_what_a_change_would_let_expire_in_a_copy_waits_and_is_told_with_its_name"),
    "`notify`": "test_a_missed_rpo_is_told_once_to_those_whom_policies_name_and_once_when_it_is_met",
    "`verify.every`": "test_the_shortest_time_of_all_policies_that_select_the_vm_counts",
    "`rehearse`": "test_of_several_policies_the_one_that_asks_most_often_counts_with_all_its_keys",
    "when a rehearsal starts": (
        "test_a_rehearsal_starts_inside_its_window_alone_and_in_the_last_one_before_its_time_is_over"
    ),
    "`rpo`": "test_a_goal_asks_for_a_run_when_an_eighth_of_it_is_left",
    "`schedule`": "test_after_an_outage_of_days_only_the_latest_fixed_time_is_caught_up",
    "clocks go forward": "test_a_skipped_local_time_is_the_next_valid_instant_and_a_repeated_one_has_two",
    "clocks go back": "test_a_repeated_hour_runs_a_fixed_time_once",
    "`window`": "test_a_trigger_waits_for_the_window_unless_it_runs_at_any_time",
    "`rpo` that ends while windows are closed or in a blackout": (
        "test_before_a_long_closing_the_run_comes_at_the_end_of_the_last_window"
    ),
    "`blackout`": "test_a_trigger_waits_for_the_end_of_a_blackout_also_where_it_may_run_at_any_time",
    "a fixed time in a blackout or a closed window": (
        "test_a_fixed_time_in_a_blackout_runs_at_its_end_when_a_window_is_open_then"
    ),
    "`start_within`": "test_start_within_gives_a_fixed_time_up_and_says_so",
    "`finish_within`": "test_finish_within_is_the_deadline_when_it_is_sooner",
    "calendars": "test_the_hash_follows_what_a_calendar_says_and_not_how_it_is_written",
    "a recurrence rule that is over": "test_a_rule_ends_with_until",
    "`settle`": "test_a_move_by_drs_leads_to_a_backup_after_settling",
    "what starts first": "test_policies_take_turns_among_equals",
    "an overload": "test_in_an_overload_high_priorities_keep_their_goals_and_the_others_wait_and_say_so",
    "what has been ready the longest": "test_no_backup_waits_for_ever_behind_a_stream_of_more_urgent_ones",
    "`limits`": "test_limits_of_the_policy_the_vcenter_and_the_repository_hold_beside_the_others",
    "after an outage": "test_after_an_outage_of_a_day_each_vm_runs_once_the_most_urgent_first_and_not_all_at_once",
    "`cooldown`": "test_a_trigger_that_fired_lately_cools_down",
    "`when`": "test_a_condition_that_does_not_hold_is_said",
    "a condition that cannot be worked out": "test_a_condition_that_cannot_be_worked_out_counts_as_true_and_says_why",
    "the age of a VM without a restore point, in a condition": (
        "test_a_vm_that_was_never_backed_up_is_older_than_anything"
    ),
    '`action = "hold"`, `"distrust"`': "test_what_distrusts_and_holds_does_so_for_a_vm_that_cannot_be_backed_up",
    "several triggers of one event": "test_a_trigger_may_distrust_and_hold_besides_backing_up",
    "`hold.requested`": "test_a_hold_by_message_may_lead_to_one_more_restore_point",
    "`vm.retagged`": "test_other_tags_are_an_event",
    "`spread` of a trigger": "test_the_spread_of_a_trigger_ends_with_its_window_and_with_the_goal",
    "`spread` of a policy": "test_the_spread_of_a_schedule_keeps_to_the_window_and_ends_before_the_next_time",
    "change tracking": "test_change_tracking_is_distrusted_when_disks_changed_and_not_when_hosts_did",
    "a VM is removed": "test_a_removed_vm_is_retired_and_keeps_its_points",
    "a change that adds protection": "test_more_protection_takes_effect_at_once",
    "a change that makes weaker": "test_what_gets_weaker_is_told_apart",
    "a change that takes away": "test_while_it_is_pending_nothing_that_it_takes_away_is_gone",
    "a lock or a grace that a change outlasts": "test_a_grace_does_not_hide_what_would_expire",
    "the guard": "test_a_change_cannot_loosen_the_guard_that_judges_it",
    "a change of the guard": "test_a_guard_that_becomes_looser_is_refused_by_the_one_in_force",
    "a plan's id": "test_the_id_is_that_of_the_outcome",
    "messages": "test_a_request_backs_up_whatever_the_policies_say",
}
"""The test that holds a row which is not a vector here, by its name."""


def row(what: str, how: str) -> Callable[[Vector], Vector]:
    def add(vector: Vector) -> Vector:
        VECTORS[what] = (how, vector)
        return vector

    return add


def rows_of_the_page() -> dict[str, str]:
    section = (ROOT / "docs" / "policies.md").read_text().partition("\n## Semantics\n")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|", 1) for line in section.splitlines() if line.startswith("| ")]
    return {what.strip(): how.strip() for what, how in cells if what.strip() != "what"}


def test_the_page_and_the_vectors_have_the_same_rows() -> None:
    page = rows_of_the_page()
    assert {what: how for what, (how, _) in VECTORS.items()} == {w: how for w, how in page.items() if w in VECTORS}
    assert page.keys() - VECTORS.keys() == ELSEWHERE.keys(), "add a vector, or the test to ELSEWHERE"


@pytest.mark.parametrize("what", VECTORS)
def test_a_row_holds(what: str) -> None:
    VECTORS[what][1]()


def test_a_row_is_held_by_a_test_that_exists() -> None:
    files = [file for file in (ROOT / "tests").glob("*/test_*.py") if "polic" in file.name or "engine" in file.name]
    tests = "".join(file.read_text() for file in files)
    assert [name for name in ELSEWHERE.values() if f"def {name}(" not in tests] == []


# what the vectors say in a few words


def policy(keys: str, name: str = "gold", select: str = '["*"]') -> str:
    return f"[policy.{name}]\nselect.all = {select}\n{keys}\n"


def plan(
    text: str,
    points: tuple[RestorePoint, ...],
    vm: Vm | None = VM,
    *,
    marked: timedelta = DAY,
    removed: bool = False,
    copy: str = "",
) -> RetentionPlan:
    """With every point marked that long ago."""
    found = policies(text)
    listed = tuple(replace(point, expiring_since=NOW - marked) for point in points)
    return plan_retention(VM.id, listed, found.retaining(vm, listed, removed=removed, copy=copy), NOW)


def kept(found: RetentionPlan, points: tuple[RestorePoint, ...]) -> list[int]:
    """How many days old each kept point is."""
    stays = {one.point for one in found.keep}
    return [(NOW - point.taken_at).days for point in points if point.id in stays][::-1]


def days(count: int, name: str = "gold") -> tuple[RestorePoint, ...]:
    return daily_points(VM, count, policy=name)


# the rows


@row(
    "templates",
    "tables merge key by key, any other value of the policy replaces the template's; a template may have a template",
)
def templates() -> None:
    text = """
    [template.a]
    transports = ["nbd", "hotadd"]
    retention = { keep_daily = 1, keep_weekly = 2 }
    [template.b]
    template = "a"
    retention.keep_weekly = 3
    [policy.gold]
    template = "b"
    transports = ["nbd"]
    retention.keep_monthly = 4
    """
    gold = policies(text).policies[0]
    assert dict(gold.retention.counts) == {"daily": 1, "weekly": 3, "monthly": 4}
    assert gold.transports == ("nbd",)


@row("exclusion", "`none` wins over `all` and `any`; it excludes from its own policy only")
def exclusion() -> None:
    gold = '[policy.gold.select]\nall = ["*"]\nany = ["name:db"]\nnone = ["tag:env=prod"]\n'
    assert policies(gold).matching(VM) == ()
    both = policies(gold + policy("priority = -1", "silver"))
    assert [one.name for one in both.matching(VM)] == ["silver"]


@row(
    "`disks.exclude`",
    "a disk is left out only when every policy that selects the VM leaves it out; a VM without any disk left is not"
    " backed up",
)
def disks() -> None:
    gold, silver = policy('disks.exclude = ["number:2"]'), policy('disks.exclude = ["label:*"]', "silver")
    found = protection(policies(gold + silver), VM)
    assert [bool(left_out(found, disk)) for disk in VM.disks] == [False, True]
    none = evaluate(policies(silver), an_event(EventType.BACKUP_REQUESTED, VM), facts(VM))
    assert not any(isinstance(one, BackUp) for one in none)


@row(
    "several policies select one VM",
    "the highest `priority` that says something about it chooses schedule, consistency, transports,"
    " `on_cbt_invalid`, `tracking_sample` and `on_migrate`, each on its own",
)
def several() -> None:
    low = policy('rpo = "4h"\nconsistency.fallback = "application"\ntransports = ["nbd"]', "low")
    middle = policy('consistency.want = "crash"\npriority = 5', "middle")
    high = policy('transports = ["hotadd"]\npriority = 9', "high")
    found = protection(policies(low + middle + high), VM)
    assert [one.name for one in found.scheduling] == ["low"]
    assert (found.want, found.transports) == (Consistency.CRASH, ("hotadd",))


@row(
    "a tie of priorities",
    "the most protective value: every schedule counts, the strictest consistency, all transports; `lint` reports it",
)
def tie() -> None:
    one = policy('rpo = "1d"\nconsistency.want = "crash"\ntransports = ["nbd"]', "one")
    two = policy('schedule = "0 2 * * *"\nconsistency.want = "application"\ntransports = ["hotadd"]', "two")
    found = protection(policies(one + two), VM)
    assert [each.name for each in found.scheduling] == ["one", "two"]
    assert (found.want, set(found.transports)) == (Consistency.APPLICATION, {"nbd", "hotadd"})
    assert any("priority 0 like policy" in advice.what for advice in lint(policies(one + two)))


@row(
    "`retries`, `retry_wait`, `quiesce_timeout`",
    "a guest that could not be quiesced is asked again at each level, before the next weaker one; on a tie of"
    " priorities the most retries and the longest times; the highest priority that says anything about `consistency`"
    " decides them too",
)
def patience() -> None:
    def come_to(*keys: str) -> Quiescing:
        return protection(policies("".join(policy(key, f"p{at}") for at, key in enumerate(keys))), VM).quiescing

    one, two = "consistency = { retries = 0, retry_wait = '3m' }", "consistency = { quiesce_timeout = '1h' }"
    assert come_to("") == come_to("consistency.want = 'crash'") == Quiescing()
    assert come_to(one) == Quiescing(0, timedelta(minutes=3))
    assert come_to(one, two) == Quiescing(2, timedelta(minutes=3), timedelta(hours=1))
    assert come_to("priority = 9\nconsistency.want = 'crash'", one) == Quiescing()


@row("`on_cbt_invalid` among several", "on a tie of priorities `verify` before `full` before `fail`")
def doubts() -> None:
    def come_to(*values: str) -> str:
        keys = (f'on_cbt_invalid = "{value}"' if value else "" for value in values)
        return protection(policies("".join(policy(key, f"p{at}") for at, key in enumerate(keys))), VM).on_cbt_invalid

    assert [come_to(""), come_to("fail"), come_to("fail", "")] == ["full", "fail", "fail"]
    assert come_to("fail", "full") == "full"
    assert come_to("full", "verify", "fail") == "verify"
    high = policy('on_cbt_invalid = "fail"\npriority = 9', "high")
    assert protection(policies(high + policy('on_cbt_invalid = "verify"')), VM).on_cbt_invalid == "fail"


@row(
    "`tracking_sample`",
    "so many blocks of each disk are read again by an incremental run and compared with the last restore point,"
    " others in each run; on a tie of priorities the most",
)
def samples() -> None:
    def come_to(*keys: str) -> int | None:
        return protection(policies("".join(policy(key, f"p{at}") for at, key in enumerate(keys))), VM).tracking_sample

    assert [come_to(""), come_to("tracking_sample = 0"), come_to("tracking_sample = 0", "")] == [None, 0, 0]
    assert come_to("tracking_sample = 7", "tracking_sample = 9") == 9
    assert come_to("tracking_sample = 7\npriority = 9", "tracking_sample = 9") == 7


@row("rules of retention", "a union: what one rule keeps stays, whatever the others say")
def rules() -> None:
    points = days(40)
    for rules, stay in (
        ("keep_last = 2", [0, 1]),
        ("keep_monthly = 2", [0, 22]),
        ("keep_last = 2, keep_monthly = 2", [0, 1, 22]),
        ("keep_last = 2, keep_monthly = 2, keep_yearly = 9, keep_within = '3d'", [0, 1, 2, 3, 22]),
    ):
        assert kept(plan(policy(f"retention = {{ {rules} }}"), points), points) == stay


@row("retention", "the union over all policies that select the VM")
def retention() -> None:
    points = days(40)
    gold, silver = policy("retention.keep_last = 2"), policy("retention.keep_monthly = 2", "silver")
    assert kept(plan(gold + silver, points), points) == [0, 1, 22]
    assert kept(plan(gold + policy("", "everything"), points), points) == [*range(40)]


@row("`preset`", "stands for its numbers; a rule that the policy or its template writes wins, `0` takes one out")
def preset() -> None:
    text = '[template.t]\nretention = { preset = "few", keep_weekly = 0 }\n[policy.p]\ntemplate = "t"\n'
    assert dict(policies(text).policies[0].retention.counts) == {"daily": 7, "monthly": 3}
    more = policies(text + "retention.keep_daily = 9").policies[0]
    assert dict(more.retention.counts) == {"daily": 9, "monthly": 3}


@row(
    "`lock`",
    "the longest of all policies that select the VM, counted from when a restore point was taken; it is part of the"
    " restore point and can be made longer, never shorter",
)
def lock() -> None:
    two = policies(policy('retention.lock = "7d"') + policy('retention.lock = "14d"', "silver"))
    assert protection(two, VM).lock == 14 * DAY
    points = (a_point(VM, NOW - 9 * DAY, locked_until=NOW + 5 * DAY), *days(2))
    assert kept(plan(policy('retention = { keep_last = 1, lock = "1d" }'), points), points) == [0, 9]


@row(
    "`copies`",
    "the union over all policies that select the VM; a table `copy.NAME` asks for one too; in a second copy the same"
    " retention applies where no policy says otherwise",
)
def copies() -> None:
    found = policies(policy('copies = ["one"]') + policy('copies = ["two", "one"]', "silver"))
    assert copies_of(found, VM, days(1)[0]) == ("one", "two")
    own = policies(policy("copy.three.retention.keep_last = 1"))
    assert copies_of(own, VM, days(1)[0]) == ("three",)
    assert own.retaining(VM, days(1), copy="one") == own.retaining(VM, days(1))


@row(
    "`copy.NAME.retention`",
    "counts in this copy in place of the policy's `retention`; in each copy the union over all policies that select the"
    " VM, and without any rule everything stays there; what expires in the first repository stays in the copy for as"
    " long as this keeps it",
)
def a_copy_s_retention() -> None:
    points = days(10)
    short = policy("retention.keep_daily = 2")
    long = policy("retention.keep_daily = 2\ncopy.far.retention.keep_last = 5")
    everything = policy("retention.keep_last = 1\ncopy.far.retention.min_good = 1")
    both = long + policy("retention.keep_last = 7", "silver")
    for text, ages in ((short, 2), (long, 5), (both, 7), (everything, 10)):
        assert len(kept(plan(text, points, copy="far"), points)) == ages
    assert len(kept(plan(long, points), points)) == 2


@row(
    "`destination`",
    "the highest `priority` that names one, by name among equals; without one the engine's own repository; a VM that"
    " changes it begins with a full read there",
)
def destination() -> None:
    low, high = policy('priority = 1\ndestination = "b"'), policy('priority = 2\ndestination = "c"', "silver")
    for text, name in ((policy(""), ""), (low, "b"), (low + high, "c"), (low + policy("priority = 9", "silver"), "b")):
        assert protection(policies(text), VM).destination == name
    tie = policy('destination = "z"', "a") + policy('destination = "y"', "b")
    assert protection(policies(tie), VM).destination == "z"


@row(
    "a good restore point",
    "complete, not known to be damaged, at least of the consistency in `fallback`; when there is none, the best"
    " complete ones count",
)
def good() -> None:
    crash, better = Consistency.CRASH, Consistency.FILESYSTEM
    text = policy('consistency.fallback = "filesystem"\nretention.keep_last = 1')
    for newest in (
        a_point(VM, NOW, better, complete=False),
        a_point(VM, NOW, better, damaged=True),
        a_point(VM, NOW - DAY / 2, crash),
    ):
        points = (a_point(VM, NOW - 2 * DAY, better), a_point(VM, NOW - DAY, better), newest)
        assert 1 in kept(plan(text, points), points)
        assert 2 not in kept(plan(text, points), points)
    none = (a_point(VM, NOW - 2 * DAY, crash), a_point(VM, NOW - DAY, crash), a_point(VM, NOW, crash, complete=False))
    assert kept(plan(text, none), none) == [1]


@row(
    "`keep_*` counts",
    "periods that have a restore point, in the policy's time zone, weeks as ISO counts them; of each period its newest"
    " point of the best consistency",
)
def periods() -> None:
    gaps = tuple(a_point(VM, NOW - age * DAY) for age in (90, 60, 59, 20, 0))
    assert kept(plan(policy("retention.keep_daily = 3"), gaps), gaps) == [0, 20, 59]
    zone = 'timezone = "Asia/Tokyo"\nretention.keep_daily = 9'  # NOW is 23:00 there
    around = (a_point(VM, NOW - 2 * DAY), a_point(VM, NOW - 2 * DAY + timedelta(hours=2)), a_point(VM, NOW))
    assert len(plan(policy(zone), around).keep) == 3
    assert len(plan(policy("retention.keep_daily = 9"), around).keep) == 2
    weeks = days(9)  # NOW is a Sunday
    assert kept(plan(policy("retention.keep_weekly = 2"), weeks), weeks) == [0, 7]
    mixed = (a_point(VM, NOW - timedelta(hours=3)), a_point(VM, NOW, Consistency.CRASH))
    rule = 'consistency.want = "application"\nretention.keep_daily = 1'
    assert "policy gold: keep_daily 1 of 1" in plan(policy(rule), mixed).keep[1].reasons


@row(
    "restore points that are not good",
    "failed, damaged or crash-consistent ones where more is wanted never take the place of good ones: they fill what"
    " good ones leave free of a count, best first",
)
def weak() -> None:
    text = policy('consistency.fallback = "filesystem"\nretention = { keep_last = 3, keep_daily = 3 }')
    fine = tuple(a_point(VM, NOW - age * DAY) for age in (9, 8, 7, 6))
    for bad in ({"complete": False}, {"damaged": True}, {"consistency": Consistency.CRASH}):
        points = (*fine, *(a_point(VM, NOW - age * DAY, **bad) for age in (2, 1)))
        stay = kept(plan(text, points), points)
        assert [age for age in stay if age >= 6] == [6, 7, 8]
    few = (fine[-1], a_point(VM, NOW - 2 * DAY, Consistency.CRASH), a_point(VM, NOW - DAY, damaged=True))
    two = policy('consistency.fallback = "filesystem"\nretention.keep_daily = 2')
    assert any("keep_daily 2 of 2" in why for why in plan(two, few).keep[1].reasons)


@row("`keep_within`", "counts back from the newest good point, so a VM that is not backed up any more loses nothing")
def within() -> None:
    old = tuple(a_point(VM, NOW - age * DAY) for age in (103, 102, 101, 100))
    assert kept(plan(policy('retention.keep_within = "2d"'), old), old) == [100, 101, 102]


@row("no rule", "everything stays")
def no_rule() -> None:
    points = days(99)
    for keys in ("", "retention.keep_daily = 0", "retention.min_good = 3"):
        assert len(plan(policy(keys), points).keep) == 99


NOBODY = '["name:nobody"]'


@row(
    "a VM that no policy selects any more",
    "`on_unmatched` of the policy that made a restore point: `hold` keeps it, `expire` lets the rules of that policy go"
    " on, `keep_last_good` keeps the newest good one; after a day of grace at least",
)
def unmatched() -> None:
    points = (*days(9), a_point(VM, NOW, damaged=True, policy="gold"))
    rules = 'retention = { keep_daily = 3, grace = "0s" }\non_removed = "keep_last_good"\n'
    for value, stay in (("", 10), ('on_unmatched = "hold"', 10)):
        assert len(plan(policy(rules + value, select=NOBODY), points).keep) == stay
    expire = policy(rules + 'on_unmatched = "expire"', select=NOBODY)
    assert set(kept(plan(expire, points), points)) == {0, 1, 2}
    last = policy(rules + 'on_unmatched = "keep_last_good"', select=NOBODY)
    assert set(kept(plan(last, points[:-1]), points)) == {0}
    for text in (expire, last):
        assert not plan(text, points, marked=timedelta(hours=23)).expire


@row(
    "a VM that left the inventory",
    "`on_removed` in the same way; a VM that is only not known, as its vCenter does not answer or this engine never "
    "saw it, keeps everything",
)
def removed() -> None:
    points = days(9)
    text = policy('retention.keep_daily = 3\non_unmatched = "expire"\non_removed = "keep_last_good"')
    assert kept(plan(text, points, None, removed=True), points) == [0]
    assert len(plan(text, points, None).keep) == 9


@row(
    "a policy that is gone",
    "what it made of VMs that no policy selects stays, and so does what no policy made",
)
def gone() -> None:
    text = policy('retention.keep_daily = 3\non_unmatched = "expire"', select=NOBODY)
    for maker in ("lost", ""):
        points = (*days(5, maker), *days(9))
        points = (*(replace(one, id=type(one.id)(f"{one.id}-{maker}x")) for one in points[:5]), *points[5:])
        found = plan(text, points)
        assert {one.id for one in points[:5]} <= {one.point for one in found.keep}
        assert found.expire
    assert len(plan(policy("", "other", NOBODY), days(9)).keep) == 9
    before = policies(policy("retention.keep_daily = 3"))
    assert plan_reload(before, PolicySet(), facts(VM, points=days(3))).expiring == ()


@row(
    "a VM that leaves several policies behind",
    "each says what becomes of what it made; the rules of all that let it expire are a union, and each keeps the last"
    " good one that it made",
)
def several_behind() -> None:
    gold = policy('retention.keep_monthly = 2\non_unmatched = "expire"', select=NOBODY)
    silver = policy('retention.keep_last = 2\non_unmatched = "expire"', "silver", NOBODY)
    bronze = policy("retention.keep_last = 1", "bronze", NOBODY)
    makers = ("silver",) * 5 + ("gold",) * 30 + ("bronze",) * 5
    points = tuple(replace(one, policy=maker) for one, maker in zip(days(40)[::-1], makers, strict=True))
    assert kept(plan(gold + silver + bronze, points), points)[::-1] == [0, 1, 5, 22, 35, 36, 37, 38, 39]


@row(
    "guards",
    "`min_good`, holds, locks, `grace`, a restore point newer than the newest good one, the newest of the best"
    " consistency, points from the future: they stay whatever the rules say",
)
def guards() -> None:
    points = (
        a_point(VM, NOW - 9 * DAY),
        a_point(VM, NOW - 8 * DAY, Consistency.FILESYSTEM, holds=("audit",)),
        a_point(VM, NOW - 7 * DAY, Consistency.FILESYSTEM, locked_until=NOW + DAY),
        a_point(VM, NOW - 6 * DAY, Consistency.FILESYSTEM),
        *(a_point(VM, NOW - age * DAY, Consistency.FILESYSTEM) for age in (3, 2)),
        a_point(VM, NOW - DAY, Consistency.CRASH),
        a_point(VM, NOW + DAY),
    )
    keys = (
        'consistency = { want = "application", fallback = "filesystem" }\nretention = { keep_yearly = 1, min_good = 2 }'
    )
    assert kept(plan(policy(keys), points), points) == [-1, 1, 2, 3, 7, 8, 9]
    assert kept(plan(policy(keys), points, marked=timedelta(hours=1)), points) == [-1, 1, 2, 3, 6, 7, 8, 9]


@row(
    "a mass expiry",
    "a run that marks and expires more than `guard.max_expire_share` of all restore points does neither; those of VMs"
    " that left or are not selected count for as long as their grace lasts, and what expired of such VMs in the last"
    " `guard.add_up_over` counts with them",
)
def mass() -> None:
    points = days(30)
    most = plan(policy("retention.keep_last = 9"), points)
    assert mass_expiry([most], 0.7) == ""
    assert mass_expiry([most], 0.69) == (
        "21 of 30 restore points would expire, more than the 69% of guard.max_expire_share"
    )
    leaving = policy('retention = { keep_last = 9, grace = "7d" }\non_unmatched = "expire"', select=NOBODY)
    waiting = plan(leaving, points)
    assert (waiting.expire, waiting.mark) == ((), ())
    assert "are not selected any more" in mass_expiry([waiting], 0.69)
    assert mass_expiry([waiting], 0.9) == ""
    assert "(100 of them expired in the last 7 d)" in mass_expiry([waiting], 0.9, 100, timedelta(days=7))
    ordinary = plan(policy('retention = { keep_last = 9, grace = "7d" }'), points)
    assert mass_expiry([ordinary], 0.69) == ""
