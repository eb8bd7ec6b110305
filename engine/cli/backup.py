"""backstay backup VM"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import Config, Json, Repo
from engine.cli.output import say, show_json
from engine.cli.progress import progress
from engine.cli.reach import running
from engine.cli.tasks import follow
from engine.commands import BackUpVm
from engine.units import show_size


def backup(
    vm: str,
    /,
    *,
    full: Annotated[bool, Parameter(help="Read everything; trust no change tracking.")] = False,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "asked for on the command line",
    wait: Annotated[bool, Parameter(negative="--no-wait", help="Wait for the restore point.")] = True,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Back a VM up now, by the engine that runs.

    Parameters
    ----------
    vm
        Name or id.
    """
    engine = running(repo, config)
    task = BackUpVm(vm, reason, full)
    if not wait:
        id = engine.submit(task)
        show_json({"task": id}) if json else say(f"The engine took it on as task {id}.")
        return
    with progress(quiet=json) as bar:
        row = dict(follow(engine, task, bar))
    if json:
        show_json(row)
    elif "id" in row:
        sizes = f"{show_size(row['read_bytes'])} read, {show_size(row['stored_bytes'])} stored"
        say(f"Restore point {row['id']} of {row['vm']}: {sizes}, {row['consistency']} consistent.")
    else:
        say(str(row.get("sentence") or "Done."))
