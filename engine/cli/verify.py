"""backstay verify"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from engine.cli.durations import duration
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.progress import Progress, Steps, progress
from engine.cli.reach import place_named, reach, utc_now
from engine.client import Engine
from engine.failures import BadInput, Exit
from engine.reports import verify_row
from engine.units import show_size
from policies.units import counted

if TYPE_CHECKING:
    from storage.repository import Repository
    from storage.verify import Bounds

NEEDED = ("storage.verify", "storage.duckdb_engine")
"""Loaded while a key is derived."""

Until = Annotated[str | None, Parameter(help="Stop at this local time, such as 06:00 or 2026-03-01T06:00.")]
For = Annotated[str | None, Parameter(name="--for", help="Stop after so long, such as 30m.")]


def verify(
    *points: Annotated[str, Parameter(help="Only what these restore points need: ids or NAME@latest.")],
    scope: Annotated[
        Literal["full", "incremental"],
        Parameter(help="Read all packs, or only those that were not read back for a while; see --reread."),
    ] = "full",
    reread: Annotated[str, Parameter(help="How long a reading counts in incremental scope.")] = "30d",
    until: Until = None,
    length: For = None,
    anew: Annotated[
        bool, Parameter(help="Begin anew instead of going on where an interrupted verification ended.")
    ] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> int:
    """Read everything back and compare every hash; ends with 4 when damage is found, with 3 when time was up before.

    What was found is recorded with the restore points, and with the packs that were read: the next one goes on there.
    """
    reread_seconds, seconds = duration(reread, "--reread").total_seconds(), _time_left(until, length)
    with (
        reach(repo, config, passphrase_file, command="verify", needed=NEEDED) as place,
        progress(quiet=json) as bar,
    ):
        if isinstance(place, Engine):
            from engine.cli.tasks import follow
            from engine.commands import Verify

            report = dict(follow(place, Verify(points, scope, reread_seconds, seconds, anew, place_named(repo)), bar))
            report.pop("exit_code", None)  # told as such
        else:
            from storage.verify import Bounds, Scope

            now = utc_now()
            end = now + timedelta(seconds=seconds) if seconds is not None else None
            bounds = Bounds(Scope(scope), timedelta(seconds=reread_seconds), end, anew)
            report = _verify(place, points, bounds, now, bar)
    if json:
        show_json(report)
    else:
        _tell(report)
    if report["damaged"]:
        return Exit.DAMAGED
    return Exit.DONE if report["complete"] else Exit.PARTIAL


def _time_left(until: str | None, length: str | None) -> float | None:
    if until is not None and length is not None:
        raise BadInput("--until and --for cannot both be given", where="--until")
    if length is not None:
        return duration(length, "--for").total_seconds()
    return _seconds_until(until, utc_now()) if until is not None else None


def _seconds_until(text: str, now: datetime) -> float:
    here = now.astimezone()
    try:
        if len(text) <= len("06:00"):
            at = datetime.combine(here.date(), time.fromisoformat(text)).astimezone()
            at = at if at > here else at + timedelta(days=1)
        else:
            at = datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise BadInput(f'"{text}" is no time; write 06:00 or 2026-03-01T06:00', where="--until") from None
    if at <= here:
        raise BadInput(f"{text} is over", where="--until")
    return (at - here).total_seconds()


def _verify(
    repository: Repository, references: Sequence[str], bounds: Bounds, now: datetime, bar: Progress
) -> dict[str, Any]:
    points = [repository.find(reference) for reference in references] or None
    if points:
        bar.begin("verify", 0)
    from storage import verify as storage_verify

    report = storage_verify.verify(
        repository,
        now=now,
        points=points,
        bounds=bounds,
        progress=Steps(bar),
        planned=lambda total: bar.begin("verify", total),
    )
    return verify_row(report)


def _damage_line(damage: Mapping[str, Any]) -> str:
    """What is damaged and whom it hits; which chunk it is stands in the data alone, as one pack has thousands.

    Of what is damaged as a whole nobody knows what it held: that is told of each chunk that is missed.
    """
    points = ", ".join(damage["points"]) or ("no restore point" if damage["chunk"] else "")
    of = f" of {', '.join(damage['vms'])}" if damage["vms"] else ""
    what = damage["what"] if damage["object"] != "packs/" else f"a chunk that is needed: {damage['what']}"
    hit = f"; affects {points}{of}" if points else ""
    mended = f"; {damage['mended']}" if damage["mended"] else ""
    return f"{damage['object']}: {what}{hit}{mended}"


def _tell(report: Mapping[str, Any]) -> None:
    for line, number in Counter(_damage_line(damage) for damage in report["damaged"]).items():
        show(printable(f"{line} ({number} times)" if number > 1 else line))
    found = len(report["damaged"])
    said = f"{found} damaged" if found else "all intact" if report["complete"] else "no damage in what was read"
    earlier = f", {show_size(report['counted_bytes'])} earlier" if report["counted_bytes"] else ""
    done = "Verified" if report["complete"] else "Verified in part:"
    say(
        f"{done} {counted(report['checked_points'], 'restore point')}, {counted(report['checked_chunks'], 'chunk')},"
        f" {show_size(report['checked_bytes'])}{earlier}: {said}."
    )
    if report["vms"]:
        say(printable(f"Hit: {', '.join(report['vms'])}. Their next backups store again what the source still has."))
    if report["left_points"]:
        say(f"Time is up: left are {counted(report['left_points'], 'restore point')}.")
    elif not report["complete"]:
        left = f"{counted(report['left_packs'], 'pack')}, {show_size(report['left_bytes'])}"
        say(f"Time is up: left are {left}; the next verification goes on there.")
