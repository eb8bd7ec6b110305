"""backstay expire POINT"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from engine.cli.durations import duration
from engine.cli.options import Config, Parameter, PassphraseFile, Repo
from engine.cli.output import printable, say, show
from engine.cli.reach import detail_of, reach, utc_now
from engine.client import Engine
from engine.failures import BadInput, Exit
from policies.facts import PointId, RestorePoint
from policies.units import counted, span
from storage.errors import Refused
from storage.repository import Repository


def expire(
    point: Annotated[str | None, Parameter(help="Id of a restore point, the beginning of one, or NAME@latest.")] = None,
    /,
    *,
    marked: Annotated[
        str | None,
        Parameter(help="Instead of one: all that retention has marked for at least this long, such as 14d."),
    ] = None,
    yes: Annotated[bool, Parameter(help="With --marked: do it; without, only show, and end with 3.")] = False,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "from the command line",
    last: Annotated[bool, Parameter(help="Also when it is the VM's last good restore point.")] = False,
    lost: Annotated[bool, Parameter(help="Give up one whose manifest is gone, so that reclaim may go on.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> int:
    """Forget a restore point.

    What only it needs is freed by the next reclaim. A held or locked one is refused, and without --last so is the
    last good restore point of a VM. --marked is for the owner of an append-only repository: the engine that writes it
    only marks what is to go.
    """
    if (point is None) == (marked is None):
        raise BadInput("name one restore point, or --marked with an age", where="POINT")
    if point is None:
        return _expire_marked(duration(marked or "", "--marked"), yes, repo, config, passphrase_file)
    with reach(repo, config, passphrase_file, command="expire") as place:
        if isinstance(place, Engine):
            found = point if lost else detail_of(place, point)[0]
            place.post("/v1/expire", {"point": found, "reason": reason, "last": last, "lost": lost})
        else:
            found = str(place.find(point))
            if not last:
                _guard_last(place, PointId(found))
            place.expire(PointId(found), reason, utc_now(), lost=lost)
    say(f"{found} is forgotten.")
    return Exit.DONE


def _expire_marked(
    age: timedelta, yes: bool, repo: str | None, config: Path | None, passphrase_file: Path | None
) -> int:
    """Expire what has been marked for long enough by the store's clock, apart from a VM's last good restore point."""
    with reach(repo, config, passphrase_file, command="expire") as place:
        if isinstance(place, Engine):
            raise BadInput("an engine owns this repository, and expires by itself", where="--marked")
        clock, going = place.blobs.clock(), []
        for point in place.points():
            since = place.marked_since(point.id)
            if since is not None and clock - since >= age:
                going.append(point)
        for point in going:
            show(printable(f"{point.id}  {point.vm_name}"))
            if not yes:
                continue
            try:
                _guard_last(place, point.id)
                place.expire(point.id, "marked by retention", utc_now(), by_retention=True)
            except Refused as error:
                say(f"kept: {error}")
    say(f"Marked for {span(age)} or longer: {counted(len(going), 'restore point')}.")
    return Exit.PARTIAL if going and not yes else Exit.DONE


def _guard_last(repository: Repository, point: PointId) -> None:
    points = repository.points()
    vm = next(p.vm for p in points if p.id == point)
    good = [p for p in points if p.vm == vm and _good(p)]
    if [p.id for p in good] == [point]:
        raise Refused(f"{point} is the last good restore point of {good[0].vm_name}", hint="use --last to forget it")


def _good(point: RestorePoint) -> bool:
    return point.complete and not point.damaged
