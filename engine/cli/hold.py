"""backstay hold POINT"""

from __future__ import annotations

from typing import Annotated

from engine.cli.options import Config, Parameter, PassphraseFile, Point, Repo
from engine.cli.output import say
from engine.cli.reach import detail_of, reach, utc_now
from engine.client import Engine
from policies.facts import PointId


def hold(
    point: Point,
    /,
    *,
    reason: Annotated[str, Parameter(help="Why it is kept; release names it again.")] = "held by an operator",
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Keep a restore point, whatever retention says, until it is released."""
    with reach(repo, config, passphrase_file, command="hold") as place:
        found, _ = detail_of(place, point)
        if isinstance(place, Engine):
            place.post("/v1/hold", {"point": found, "reason": reason})
        else:
            place.mark_hold(PointId(found), reason, utc_now())
    say(f"{found} is held: {reason}")
