"""backstay reclaim"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from engine.cli.durations import duration
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import say, show, show_json
from engine.cli.progress import progress
from engine.cli.reach import place_named, reach, utc_now
from engine.cli.tasks import follow
from engine.client import Engine
from engine.commands import Reclaim
from engine.failures import Exit
from engine.maintenance import safety
from engine.plain import plain
from engine.reports import plan_row
from engine.units import show_size
from policies.units import counted
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.repository import Repository

SHOWN = {
    "free": "free",
    "condemn": "condemn",
    "rewrite": "rewrite",
    "waiting": "waiting",
    "take_back": "take back",
}
"""What the plan calls a pack's fate, and what a person reads."""


def reclaim(
    *,
    plan: Annotated[
        bool,
        Parameter(
            name=("--plan", "--dry-run"), help="Only show, pack by pack; ends with 3 when there is something to do."
        ),
    ] = False,
    min_age: Annotated[
        str | None,
        Parameter(help="The safety age: 24h, or what the engine's configuration says. A shorter one needs --yes."),
    ] = None,
    yes: Annotated[bool, Parameter(help="Yes, with a shorter safety age; restores of what expired may fail.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """Free what no restore point needs any more, in two phases.

    The first run condemns packs that no restore point reaches, and copies what is live out of those that are mostly
    dead. A run after the safety age asks all restore points again and frees them. Nothing that a restore point
    reaches is touched, nor a pack younger than the safety age. With --min-age 0s --yes one run does both.
    """
    age = None if min_age is None else duration(min_age, "--min-age")
    with reach(repo, config, passphrase_file, command="reclaim") as place:
        if isinstance(place, Engine):
            seconds = None if age is None else age.total_seconds()
            with progress(quiet=json) as bar:
                done = dict(follow(place, _asked(plan, seconds, yes, repo), bar))
                done.pop("exit_code", None)  # told as such
        else:
            done = _reclaim(place, safety(age, SafetyAges().min_age, agreed=plan or yes), plan)
    if json:
        show_json(done)
    else:
        _tell(done, plan)
    return Exit.PARTIAL if plan and not done["idle"] else Exit.DONE


def _asked(plan: bool, seconds: float | None, yes: bool, repo: str | None) -> Reclaim:
    return Reclaim(plan_only=plan, min_age_seconds=seconds, yes=yes, repository=place_named(repo))


def _reclaim(repository: Repository, ages: SafetyAges, plan_only: bool) -> dict[str, Any]:
    plan = plan_reclaim(repository, utc_now(), ages)
    if plan_only:
        return plan_row(plan)
    outcome = carry_out(repository, plan, utc_now())
    return {**plan_row(plan), "done": plain(outcome), "freed_bytes": outcome.freed_bytes}


def _tell(done: Mapping[str, Any], plan_only: bool) -> None:
    if plan_only:
        for what, shown in SHOWN.items():
            for fate in done[what]:
                live = f", {show_size(fate['live_bytes'])} live" if fate["live_bytes"] else ""
                show(f"{shown:9}  {fate['pack']}  {show_size(fate['bytes'])}{live}  {fate['reason']}")
    verb = "would free" if plan_only else "freed"
    say(f"Reclaim {verb} {show_size(done['freed_bytes'])} of {show_size(done['total_bytes'])}.")
    if not plan_only and (count := done["done"]["condemned"]):
        say(
            f"Condemned {counted(count, 'pack')} with {show_size(done['condemned_bytes'])}: freed after the safety age."
        )
    if plan_only and done["condemned_bytes"] and not done["at_once"]:
        say(f"It would condemn {show_size(done['condemned_bytes'])}, to be freed after the safety age.")
    if waiting := done["waiting"]:
        size, until = sum(fate["bytes"] for fate in waiting), _minute(min(fate["until"] for fate in waiting))
        say(f"Waiting: {counted(len(waiting), 'condemned pack')} with {show_size(size)}, the first until {until}.")
    if done["young"]:
        say(f"Too young to judge: {counted(done['young'], 'pack')}.")


def _minute(time: str) -> str:
    """As the plan's reasons write it."""
    return f"{time[:16].replace('T', ' ')} UTC"
