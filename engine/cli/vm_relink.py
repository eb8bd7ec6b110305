"""backstay vm relink OLD NEW"""

from __future__ import annotations

import sys
from typing import Annotated

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.reach import running
from engine.failures import Exit
from policies.units import counted


def vm_relink(
    old: Annotated[
        str, Parameter(help="The VM whose history goes on, by its id or a name that it had; it left the inventory.")
    ],
    new: Annotated[str, Parameter(help="The same VM by the id or name under which it stands in the inventory now.")],
    /,
    *,
    yes: Annotated[bool, Parameter(help="Join what is shown without asking.")] = False,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Join the histories of a VM that came back under a new id: restored, or registered again with other uuids.

    The VM goes on as OLD with the restore points of both, and its next backup reads it in full.
    Retention counts them together, with a new grace for each. Two that both stand in the inventory are
    refused. Without --yes or a terminal it only shows what it would do, and ends with 3.
    """
    engine = running(repo, config)
    plan = engine.get("/v1/vms/relink", {"old": old, "new": new})
    if not json:
        for line in str(plan["text"]).splitlines():
            show(printable(line))
    if not (yes or (not json and _agreed())):
        if json:
            show_json({**plan, "joined": False})
        return Exit.PARTIAL
    done = engine.post("/v1/vms/relink", {"old": plan["old"]["id"], "new": plan["new"]["id"]})
    if json:
        show_json({**done, "joined": True})
    name, points = printable(str(done["new"]["name"])), len(done["moved"])
    say(f"{name} goes on as {done['old']['id']}; {counted(points, 'restore point')} moved.")
    return Exit.DONE


def _agreed() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("Not joined; --yes joins.")
        return False
    sys.stderr.write("Join them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
