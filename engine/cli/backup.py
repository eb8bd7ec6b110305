"""backstay backup VM"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import printable, say, show_json
from engine.cli.progress import progress
from engine.cli.reach import running
from engine.cli.tasks import follow
from engine.commands import BackUpVm
from engine.failures import Exit
from engine.units import show_size


def backup(
    vm: str,
    /,
    *,
    full: Annotated[bool, Parameter(help="Read everything; trust no change tracking.")] = False,
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "from the command line",
    wait: Annotated[bool, Parameter(negative="--no-wait", help="Wait for the restore point.")] = True,
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Back a VM up now, by the engine that runs. Ends with 3 when a disk could not be protected.

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
        return Exit.DONE
    with progress(quiet=json) as bar:
        row = dict(follow(engine, task, bar))
    code = int(row.pop("exit_code", Exit.DONE))
    if json:
        show_json(row)
    else:
        _tell(row)
    return code


def _tell(row: Mapping[str, Any]) -> None:
    sizes = f"{show_size(row['read_bytes'])} read, {show_size(row['stored_bytes'])} stored"
    say(printable(f"Restore point {row['id']} of {row['vm']}: {sizes}, {row['consistency']} consistent."))
    for disk in row.get("disks", ()):
        if disk.get("check"):
            say(printable(f"{disk['label']}: {disk['check']['sentence']}"))
        if (sampled := disk.get("sampled")) and sampled["blocks"]:
            what = "blocks that change tracking calls unchanged were read again"
            say(
                printable(
                    f"{disk['label']}: {sampled['blocks']} {what}, {sampled['differ'] or 'none of them'} changed."
                )
            )
    for label, why in row.get("unprotected", ()):
        say(printable(f"Not protected: {label}: {why}"))
    for sentence in row.get("warnings", ()):
        say(printable(sentence))
