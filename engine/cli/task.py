"""backstay task ID"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import printable, say, show_json
from engine.cli.progress import progress
from engine.cli.reach import running
from engine.cli.tasks import failure_shown, finish
from engine.failures import Exit


def task(
    id: Annotated[str, Parameter(name="ID", help="The task's id, as an interrupted command told it.")],
    /,
    *,
    cancel: Annotated[bool, Parameter(help="Stop it: what it has begun is put in order first.")] = False,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Wait for what the engine does for a command that was interrupted, or stop it.

    Ends as the command would have ended.
    """
    engine = running(repo, config)
    named = quote(id, safe="")
    if cancel:
        engine.delete(f"/v1/tasks/{named}")
        say(printable(f"Task {id} is being stopped."))
        return Exit.DONE
    with failure_shown(json), progress(quiet=json) as bar:
        result: dict[str, Any] = dict(finish(engine, named, bar))
    code = int(result.pop("exit_code", Exit.DONE))
    if json:
        show_json(result)
    else:
        told = "; ".join(f"{name} {value}" for name, value in result.items() if isinstance(value, str | int) and value)
        say(printable(f"Task {id} is done{': ' + told if told else ''}."))
    return code
