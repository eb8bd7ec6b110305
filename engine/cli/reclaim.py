"""backstay reclaim"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import say, show, show_json
from engine.cli.progress import progress
from engine.cli.reach import reach, utc_now
from engine.cli.tasks import follow
from engine.client import Engine
from engine.commands import Reclaim
from engine.failures import BadInput, Exit
from engine.plain import plain
from engine.reports import plan_row
from engine.units import show_size
from policies.units import parse_duration
from storage.reclaim import SafetyAges, carry_out, plan_reclaim
from storage.repository import Repository


def reclaim(
    *,
    dry_run: Annotated[bool, Parameter(help="Only show; ends with 3 when there is something to do.")] = False,
    young: Annotated[
        str | None, Parameter(help="Leave packs younger than this alone; 24h, longer than any backup may take.")
    ] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """Free what no restore point needs any more.

    Nothing that a restore point reaches is touched, nor anything younger than the safety age.
    """
    safety = _safety(young)
    with reach(repo, config, passphrase_file, command="reclaim") as place:
        if isinstance(place, Engine):
            if young is not None:
                raise BadInput(
                    "the engine has its own safety age", where="--young", hint="set maintenance.orphan_pack there"
                )
            with progress(quiet=json) as bar:
                done = dict(follow(place, Reclaim(plan_only=dry_run), bar))
        else:
            done = _reclaim(place, safety, dry_run)
    if json:
        show_json(done)
    else:
        _tell(done, dry_run)
    return Exit.PARTIAL if dry_run and (done["drop"] or done["rewrite"]) else Exit.DONE


def _safety(young: str | None) -> SafetyAges:
    if young is None:
        return SafetyAges()
    try:
        return SafetyAges(young_pack=parse_duration(young))
    except ValueError as error:
        raise BadInput(str(error), where="--young") from None


def _reclaim(repository: Repository, safety: SafetyAges, dry_run: bool) -> dict[str, Any]:
    plan = plan_reclaim(repository, utc_now(), safety)
    if dry_run:
        return plan_row(plan)
    outcome = carry_out(repository, plan, utc_now())
    return {**plan_row(plan), **plain(outcome)}


def _tell(done: Mapping[str, Any], dry_run: bool) -> None:
    for what in ("drop", "rewrite"):
        for fate in done[what]:
            show(f"{what:8}{fate['pack']}  {show_size(fate['bytes'])}  {fate['reason']}")
    verb = "would free" if dry_run else "freed"
    young = f", {done['young']} packs are too young to judge" if done["young"] else ""
    say(f"Reclaim {verb} {show_size(done['freed_bytes'])} of {show_size(done['total_bytes'])}{young}.")
