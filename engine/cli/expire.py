"""backstay expire POINT"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import Config, PassphraseFile, Point, Repo
from engine.cli.output import say
from engine.cli.reach import detail_of, reach, utc_now
from engine.client import Engine
from policies.facts import PointId, RestorePoint
from storage.errors import Refused
from storage.repository import Repository


def expire(
    point: Point,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "from the command line",
    last: Annotated[bool, Parameter(help="Also when it is the VM's last good restore point.")] = False,
    lost: Annotated[bool, Parameter(help="Give up one whose manifest is gone, so that reclaim may go on.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Forget a restore point.

    What only it needs is freed by the next reclaim. A held or locked one is refused, and without --last so is the
    last good restore point of a VM.
    """
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


def _guard_last(repository: Repository, point: PointId) -> None:
    points = repository.points()
    vm = next(p.vm for p in points if p.id == point)
    good = [p for p in points if p.vm == vm and _good(p)]
    if [p.id for p in good] == [point]:
        raise Refused(f"{point} is the last good restore point of {good[0].vm_name}", hint="use --last to forget it")


def _good(point: RestorePoint) -> bool:
    return point.complete and not point.damaged
