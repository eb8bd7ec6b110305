"""backstay rehearse VM"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from engine.cli.durations import duration
from engine.cli.options import Config, Json, Parameter, Repo
from engine.cli.output import printable, say, show_json
from engine.cli.progress import progress
from engine.cli.reach import running
from engine.cli.tasks import follow
from engine.commands import Rehearse
from engine.failures import BadInput
from engine.units import show_size


def rehearse(
    what: Annotated[str, Parameter(name="VM", help="A VM, by name or id, or a restore point: its id or NAME@latest.")],
    /,
    *,
    heartbeat: Annotated[bool, Parameter(help="Switch the trial VM on and wait for its VMware Tools.")] = False,
    heartbeat_within: Annotated[str | None, Parameter(help="How long that may take, such as 15m; else 10m.")] = None,
    datastore: Annotated[str, Parameter(help="The trial VM's datastore; else the roomiest of the VM's own.")] = "",
    pool: Annotated[str, Parameter(help="Its resource pool; else the remembered one.")] = "",
    vcenter: Annotated[str, Parameter(help="The vCenter, where the VM is gone and there are several.")] = "",
    repo: Repo = None,
    config: Config = None,
    json: Json = False,
) -> int:
    """Restore a VM's last good restore point into a trial VM without network, compare every byte, and remove it again.

    Ends with 4 when a byte differs or the restore point is damaged, which is then marked as such, and with 3 when all
    is as it was but the guest gives no sign of life. What came of it counts for the policy that wants rehearsals.
    """
    if heartbeat_within is not None and not heartbeat:
        raise BadInput("means nothing here", where="--heartbeat-within", hint="give --heartbeat as well")
    task = Rehearse(what, vcenter, heartbeat, _seconds(heartbeat_within), datastore, pool)
    with progress(quiet=json) as bar:
        result = dict(follow(running(repo, config), task, bar))
    code = int(result.pop("exit_code"))
    if json:
        show_json(result)
    else:
        _tell(result)
    return code


def _seconds(text: str | None) -> float:
    return 0.0 if text is None else duration(text, "--heartbeat-within").total_seconds()


def _tell(result: Mapping[str, Any]) -> None:
    ended = "passed" if result["passed"] else f"failed: {result['why']}"
    say(printable(f"Rehearsal of {result['vm']} from {result['point']}, {result['seconds']:.0f} s: {ended}."))
    for disk in result["disks"]:
        size = show_size(disk["compared_bytes"])
        wrong = show_size(disk["differing_bytes"]) if disk["differing_bytes"] else "nothing"
        say(printable(f"{disk['disk']}: {size} written and read back by {disk['transport']}, {wrong} differs."))
        for transport, why in disk["fallbacks"]:
            say(printable(f"{disk['disk']}: not by {transport}: {why}"))
    beat = result["heartbeat"]
    if beat["seen"]:
        say(f"Its guest lived after {beat['seconds']:.0f} s.")
    elif beat["why"] and not beat["waited"]:
        say(printable(f"No heartbeat was waited for: {beat['why']}."))
    for warning in result["warnings"]:
        say(printable(f"Note: {warning}."))
