"""backstay restore POINT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from engine.cli.disk_restore import restore_here
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Point, Repo
from engine.cli.output import printable, say, show_json
from engine.cli.progress import progress
from engine.cli.reach import reach, running
from engine.cli.tasks import follow
from engine.client import Engine
from engine.commands import RestoreToFile, RestoreToVm
from engine.failures import BadInput


def restore(
    point: Point,
    /,
    *,
    to_file: Annotated[Path | None, Parameter(help="Write the disk to this file or block device.")] = None,
    to_vm: Annotated[str | None, Parameter(help="Make a new VM of this name, powered off.")] = None,
    disk: Annotated[str, Parameter(help="Only this disk; without it several become files in a folder.")] = "",
    force: Annotated[bool, Parameter(help="Overwrite a file or block device that is there.")] = False,
    vcenter: Annotated[str, Parameter(help="The vCenter of the new VM, where there are several.")] = "",
    folder: Annotated[str, Parameter(help="Its folder; else the one that the restore point remembers.")] = "",
    resource_pool: Annotated[str, Parameter(help="Its resource pool.")] = "",
    datastore: Annotated[str, Parameter(help="The datastore of its disks.")] = "",
    host: Annotated[str, Parameter(help="The host that it is registered on.")] = "",
    network: Annotated[tuple[str, ...], Parameter(help="OLD=NEW: connect to NEW what was on OLD.")] = (),
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Restore a disk to a file, or a whole VM into a new one, every byte verified."""
    if (to_file is None) == (to_vm is None):
        raise BadInput("say where to", where="restore", hint="either --to-file FILE or --to-vm NAME")
    of_vm = {
        "--vcenter": vcenter,
        "--folder": folder,
        "--resource-pool": resource_pool,
        "--datastore": datastore,
        "--host": host,
        "--network": network,
    }
    of_file = {"--disk": disk, "--force": force}
    for option, value in (of_file if to_vm is not None else of_vm).items():
        if value:
            raise BadInput("means nothing here", where=option, hint="it belongs to the other way to restore")
    if to_vm is not None:
        task = RestoreToVm(
            point, to_vm, vcenter, folder, resource_pool, datastore, host, dict(_mapped(pair) for pair in network)
        )
        with progress(quiet=json) as bar:
            result: dict[str, Any] = dict(follow(running(repo, config), task, bar))
    elif to_file is not None:
        with reach(repo, config, passphrase_file, command="restore") as place, progress(quiet=json) as bar:
            if isinstance(place, Engine):
                result = dict(follow(place, RestoreToFile(point, to_file.absolute(), disk, force), bar))
            else:
                result = restore_here(place, point, disk, to_file, force, bar)
    if json:
        show_json(result)
    else:
        say(f"Restored {result.get('point', point)} to {to_vm or to_file}, verified.")
        for label, why in result.get("without", ()):
            say(printable(f"Without {label}, which is not in the restore point: {why}"))


def _mapped(pair: str) -> tuple[str, str]:
    old, equals, new = pair.partition("=")
    if not equals or not old or not new:
        raise BadInput(f"{pair} is not a pair of networks", where="--network", hint="write OLD=NEW")
    return old, new
