"""backstay policy apply"""

from __future__ import annotations

import sys
from typing import Annotated

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import say, show, show_json
from engine.cli.reach import running
from engine.failures import Exit


def policy_apply(
    plan: str = "",
    /,
    *,
    yes: Annotated[bool, Parameter(help="Confirm what is shown without asking.")] = False,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Confirm the policy change that waits because it would take protection or restore points away.

    Shows the change first. Without a plan, --yes or a terminal it only shows, and ends with 3.

    Parameters
    ----------
    plan
        The plan to confirm, as status shows it; refused when another one waits by now.
    """
    engine = running(repo, config)
    pending = engine.get("/v1/policies/pending")
    if not pending and not plan:
        if json:
            show_json({})
        say("No policy change waits.")
        return Exit.DONE
    if pending:
        show_json(pending) if json else show(str(pending["text"]).rstrip())
    digest = plan or str(pending["digest"])
    if not (plan or yes or _agreed()):
        return Exit.PARTIAL
    done = engine.post("/v1/policies/apply", {"digest": digest})
    say(f"Confirmed {done['digest']}.")
    return Exit.DONE


def _agreed() -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("Not confirmed; --yes confirms.")
        return False
    sys.stderr.write("Confirm? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
