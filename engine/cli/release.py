"""backstay release POINT"""

from __future__ import annotations

from typing import Annotated

from engine.cli.options import Config, Parameter, PassphraseFile, Point, Repo
from engine.cli.output import say
from engine.cli.reach import detail_of, reach, utc_now
from engine.client import Engine
from policies.facts import PointId


def release(
    point: Point,
    /,
    *,
    reason: Annotated[str | None, Parameter(help="Only the hold with this reason; else all holds.")] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Open the holds of a restore point, so that retention may forget it."""
    with reach(repo, config, passphrase_file, command="release") as place:
        found, _ = detail_of(place, point)
        if isinstance(place, Engine):
            place.post("/v1/release", {"point": found, "reason": reason})
        else:
            place.release(PointId(found), reason, utc_now())
        _, left = detail_of(place, found)
    say(f"{found} is still held: {', '.join(left)}" if left else f"{found} is released.")
