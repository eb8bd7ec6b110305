"""backstay restore POINT"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from engine.cli.disk_restore import restore_here
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Point, Repo
from engine.cli.output import printable, say, show_json
from engine.cli.progress import progress
from engine.cli.reach import reach, running
from engine.cli.tasks import failure_shown, follow
from engine.client import Engine
from engine.commands import RestoreDisk, RestoreInPlace, RestoreToFile, RestoreToVm
from engine.failures import BadInput
from engine.units import show_size

_WAYS = {
    "--to-file": "to_file",
    "--to-vm": "to_vm",
    "--in-place": "in_place",
    "--into": "into",
}

_BELONGS: Mapping[str, frozenset[str]] = {
    "--disk": frozenset({"to_file", "into"}),
    "--force": frozenset({"to_file"}),
    "--vcenter": frozenset({"to_vm"}),
    "--folder": frozenset({"to_vm"}),
    "--resource-pool": frozenset({"to_vm"}),
    "--datastore": frozenset({"to_vm", "into"}),
    "--disk-datastore": frozenset({"to_vm"}),
    "--host": frozenset({"to_vm"}),
    "--network": frozenset({"to_vm"}),
    "--storage-policy": frozenset({"to_vm", "into"}),
    "--keep-identity": frozenset({"to_vm"}),
    "--new-identity": frozenset({"to_vm"}),
    "--connect": frozenset({"to_vm"}),
    "--transport": frozenset({"to_vm"}),
    "--disconnect": frozenset({"to_vm"}),
    "--over": frozenset({"into"}),
    "--yes": frozenset({"in_place", "into"}),
    "--power-off": frozenset({"in_place", "into"}),
    "--without-safety": frozenset({"in_place", "into"}),
    "--keep-safety": frozenset({"in_place", "into"}),
    "--discard": frozenset({"in_place", "into"}),
}
"""Which way of restoring each option has a meaning for."""


def restore(
    point: Point,
    /,
    *,
    to_file: Annotated[Path | None, Parameter(help="Write the disk to this file or block device.")] = None,
    to_vm: Annotated[str | None, Parameter(help="Make a new VM of this name, powered off.")] = None,
    in_place: Annotated[bool, Parameter(help="Write over the VM that it is of; only what differs is written.")] = False,
    into: Annotated[str | None, Parameter(help="Write one disk into this VM, as a further one or --over one.")] = None,
    disk: Annotated[str, Parameter(help="Only this disk; without it several become files in a folder.")] = "",
    force: Annotated[bool, Parameter(help="Overwrite a file or block device that is there.")] = False,
    vcenter: Annotated[str, Parameter(help="The vCenter of the new VM, where there are several.")] = "",
    folder: Annotated[str, Parameter(help="Its folder; else the one that the restore point remembers.")] = "",
    resource_pool: Annotated[str, Parameter(help="Its resource pool; else the remembered one.")] = "",
    datastore: Annotated[str, Parameter(help="The datastore of its disks; else the remembered one.")] = "",
    disk_datastore: Annotated[tuple[str, ...], Parameter(help="DISK=DATASTORE: another one for this disk.")] = (),
    host: Annotated[str, Parameter(help="The host that it is registered on.")] = "",
    network: Annotated[tuple[str, ...], Parameter(help="OLD=NEW: connect to NEW what was on OLD.")] = (),
    transport: Annotated[tuple[str, ...], Parameter(help="Write by this alone: hotadd, nbd or import.")] = (),
    storage_policy: Annotated[tuple[str, ...], Parameter(help="OLD=NEW: give NEW to what had OLD.")] = (),
    keep_identity: Annotated[bool, Parameter(help="UUIDs and MAC addresses of the original, or no VM.")] = False,
    new_identity: Annotated[bool, Parameter(help="New UUIDs and MAC addresses, though the original is gone.")] = False,
    connect: Annotated[bool, Parameter(help="Its network cards are connected at power-on.")] = False,
    disconnect: Annotated[bool, Parameter(help="Its network cards are not connected at power-on.")] = False,
    over: Annotated[str, Parameter(help="The VM's disk to write over, by its label.")] = "",
    yes: Annotated[bool, Parameter(help="Confirm that what is on the VM's disks is written over.")] = False,
    power_off: Annotated[bool, Parameter(help="Switch the VM off first, without asking its guest.")] = False,
    without_safety: Annotated[bool, Parameter(help="Make no snapshot of the state before.")] = False,
    keep_safety: Annotated[bool, Parameter(help="Leave that snapshot in the end, to revert by hand.")] = False,
    discard: Annotated[bool, Parameter(help="Without that snapshot, give up what was never backed up.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Restore a disk to a file, a whole VM into a new one or in place, or a disk into a VM, every byte verified.

    A restore into vCenter that was interrupted goes on where it was when the same command is given again; an import,
    which is what is left where neither hot-add nor NBD works, begins again.
    """
    given = locals()
    way = _way(given)
    if keep_identity and new_identity:
        raise BadInput("is the opposite of --new-identity", where="--keep-identity", hint="give one of them")
    if connect and disconnect:
        raise BadInput("is the opposite of --disconnect", where="--connect", hint="give one of them")
    if without_safety and keep_safety:
        raise BadInput("is the opposite of --keep-safety", where="--without-safety", hint="give one of them")
    if way == "to_file":
        assert to_file is not None
        with reach(repo, config, passphrase_file, command="restore") as place, progress(quiet=json) as bar:
            if isinstance(place, Engine):
                result = dict(follow(place, RestoreToFile(point, to_file.absolute(), disk, force), bar))
            else:
                result = restore_here(place, point, disk, to_file, force, bar)
    else:
        if over and storage_policy:
            raise BadInput("the disk keeps the one that it has", where="--storage-policy", hint="leave it out")
        pair = "a pair of storage policies"
        policies = dict(_pair(one, "--storage-policy", pair, "OLD=NEW") for one in storage_policy)
        task: RestoreToVm | RestoreInPlace | RestoreDisk
        if way == "to_vm":
            task = RestoreToVm(
                point,
                to_vm or "",
                vcenter,
                folder,
                resource_pool,
                datastore,
                host,
                dict(_pair(one, "--network", "a pair of networks", "OLD=NEW") for one in network),
                dict(
                    _pair(one, "--disk-datastore", "a disk and a datastore", "DISK=DATASTORE") for one in disk_datastore
                ),
                "keep" if keep_identity else "new" if new_identity else "auto",
                True if connect else False if disconnect else None,
                policies,
                transport,
            )
        elif way == "in_place":
            task = RestoreInPlace(point, yes, power_off, not without_safety, keep_safety, discard)
        else:
            task = RestoreDisk(
                point,
                into or "",
                disk,
                over,
                datastore,
                yes,
                power_off,
                not without_safety,
                keep_safety,
                discard,
                policies,
            )
        with failure_shown(json), progress(quiet=json) as bar:
            result = dict(follow(running(repo, config), task, bar))
    if json:
        show_json(result)
    else:
        _tell(result, point, str(to_file))


def _way(given: Mapping[str, Any]) -> str:
    """Which of the ways to restore is asked for; BadInput for none, several, or an option of another."""
    ways = [name for name in _WAYS.values() if given[name] not in (None, False)]
    if len(ways) != 1:
        raise BadInput("say where to", where="restore", hint=f"one of: {', '.join(_WAYS)}")
    for option, ways_of in _BELONGS.items():
        if given[option.removeprefix("--").replace("-", "_")] and ways[0] not in ways_of:
            raise BadInput("means nothing here", where=option, hint="it belongs to another way to restore")
    return ways[0]


def _tell(result: Mapping[str, Any], point: str, to_file: str) -> None:
    say(printable(f"Restored {result.get('point', point)} to {result.get('vm') or to_file}, verified."))
    if place := result.get("place"):
        stands = f"{place['folder']} of {place['datacenter']}, on {place['host']} and {', '.join(place['datastores'])}"
        say(printable(f"It is in {stands}, and it is {result['power']}."))
    elif "switched_off" in result:
        was = "It was switched off for this" if result["switched_off"] else "It was off before"
        say(f"{was}, and is off now.")
    if "UUID" in result.get("identity", ""):  # of a VM that was made; one that was there keeps its own
        say(printable(f"Identity: {result['identity']}."))
    for disk in result.get("disks", ()) if "vm" in result else ():
        how = (
            f"{show_size(disk['written_bytes'])} of {show_size(disk['capacity_bytes'])} written by {disk['transport']}"
        )
        again = f", going on at {show_size(disk['resumed_at'])}" if disk["resumed_at"] else ""
        every = f"; every block was compared: {disk['compared']}" if disk["compared"] else ""
        say(printable(f"{disk['disk']}: {how}{again}{every}."))
        for transport, why in disk["fallbacks"]:
            say(printable(f"{disk['disk']}: not by {transport}: {why}"))
    if result.get("resumable") is False:
        say("vCenter imported it as a whole: had it been cut off, it would have begun again.")
    for warning in result.get("warnings", ()):
        say(printable(f"Note: {warning}."))
    for label, why in result.get("without", ()):
        say(printable(f"Without {label}, which is not in the restore point: {why}"))


def _pair(text: str, option: str, what: str, form: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old or not new:
        raise BadInput(f"{text} is not {what}", where=option, hint=f"write {form}")
    return old, new
