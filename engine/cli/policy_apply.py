"""backstay policy apply"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import printable, say, show, show_json
from engine.cli.reach import running
from engine.client import Engine
from engine.failures import BadInput, Declined, Exit

OVERRIDE = "if it shall be done all the same: --override-guard"


def policy_apply(
    plan: str = "",
    /,
    *,
    plan_file: Annotated[
        Path | None,
        Parameter(name="--plan", help="Plan of `policy plan --out`; refused when it does not hold."),
    ] = None,
    yes: Annotated[bool, Parameter(help="Confirm what is shown without asking.")] = False,
    override_guard: Annotated[
        bool, Parameter(help="Confirm also what a guard refuses; the audit keeps who did.")
    ] = False,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Confirm the policy change that waits because it would take protection or restore points away.

    Shows the change first. Without a plan, --yes or a terminal it only shows, and ends with 3. With --plan it takes
    effect only if it is exactly what the plan says: otherwise it ends with 5 and says what differs by now.

    Parameters
    ----------
    plan
        The id of the plan to confirm, as status shows it; refused when another one waits by now.
    """
    if plan_file is not None:
        if plan:
            raise BadInput("a plan's id and --plan both say what to confirm", hint="give one of them")
        return _apply_file(running(repo, config), plan_file, override_guard, json)
    engine = running(repo, config)
    pending = engine.get("/v1/policies/pending")
    if not pending and not plan:
        if json:
            show_json({})
        say("No policy change waits.")
        return Exit.DONE
    if pending:
        show_json(pending) if json else _show(str(pending["text"]))
    digest = plan or str(pending["digest"])
    refused = bool(pending and pending["refused"] and digest == pending["digest"] and not override_guard)
    if refused and (plan or yes or _terminal()):
        raise Declined("a guard refuses it", where=f"plan {digest}", hint=OVERRIDE)
    if not (plan or yes or _agreed("--yes with --override-guard" if refused else "--yes")):
        return Exit.PARTIAL
    asked = {"digest": digest, "override_guard": override_guard, "user": _user()}
    done = engine.post("/v1/policies/apply", asked)
    say(f"Confirmed {done['digest']}.")
    return Exit.DONE


def _apply_file(engine: Engine, file: Path, override_guard: bool, json: bool) -> int:
    from engine.cli.standing import read_file
    from engine.statefile import read_json
    from policies.planfile import planned

    seen = planned(read_json(read_file(file), str(file)), str(file))
    asked = {"plan": seen.as_json(), "override_guard": override_guard, "user": _user()}
    done = engine.post("/v1/policies/apply-plan", asked)
    if json:
        show_json({"digest": done["digest"], "done": done["done"]})
    say(f"Confirmed {done['digest']}." if done["done"] else f"Plan {done['digest']} is in force already.")
    return Exit.DONE


def _show(text: str) -> None:
    for line in text.splitlines():
        show(printable(line))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _agreed(confirms: str) -> bool:
    if not _terminal():
        say(f"Not confirmed; {confirms} confirms.")
        return False
    sys.stderr.write("Confirm? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
