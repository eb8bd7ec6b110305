"""backstay hold POINT"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import Config, PassphraseFile, Point, Repo
from engine.cli.output import say
from engine.cli.reach import reach, utc_now
from engine.client import Engine


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
        if isinstance(place, Engine):
            place.post("/v1/hold", {"point": point, "reason": reason})
        else:
            place.mark_hold(place.find(point), reason, utc_now())
    say(f"{point} is held: {reason}")
