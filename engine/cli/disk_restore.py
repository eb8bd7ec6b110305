"""backstay disk restore POINT"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from engine.cli.options import Config, Json, Parameter, PassphraseFile, Point, Repo
from engine.cli.output import say, show_json
from engine.cli.progress import Progress, Steps, progress
from engine.cli.reach import reach
from engine.client import Engine
from engine.units import show_size
from policies.facts import PointId

if TYPE_CHECKING:
    from storage.repository import Repository


NEEDED = ("engine.file_restore", "storage.duckdb_engine")
"""Loaded while a key is derived."""


def disk_restore(
    point: Point,
    /,
    *,
    to: Annotated[Path, Parameter(help="The file or block device to write.")],
    disk: Annotated[str, Parameter(help="Only this disk; without it several become files in a folder.")] = "",
    force: Annotated[bool, Parameter(help="Overwrite a file or block device that is there.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Write a disk of a restore point to a file or block device, every byte verified.

    A file appears under its name only when it is complete, and stays sparse.
    """
    with (
        reach(repo, config, passphrase_file, command="disk restore", needed=NEEDED) as place,
        progress(quiet=json) as bar,
    ):
        if isinstance(place, Engine):
            from engine.cli.tasks import follow
            from engine.commands import RestoreToFile

            result = dict(follow(place, RestoreToFile(point, to.absolute(), disk, force), bar))
        else:
            result = restore_here(place, point, disk, to, force, bar)
    if json:
        show_json(result)
    else:
        say(told(result, to))


def told(result: Mapping[str, Any], target: Path) -> str:
    """What a person hears of a restore."""
    disks = result.get("disks") or [result]
    size = sum(disk["capacity_bytes"] for disk in disks)
    names = ", ".join(str(disk["disk"]) for disk in disks)
    return f"Restored {result['point']}, {names}, to {target}: {show_size(size)}, verified."


def restore_here(
    repository: Repository, reference: str, wanted: str, target: Path, force: bool, bar: Progress
) -> dict[str, object]:
    """Write disks of a repository that we own; what `--json` shows of it.

    Several disks, of which none is chosen, become files in the target as a folder.
    """
    point = repository.find(reference)
    labels = [wanted] if wanted else [record.head.name for record in repository.detail(point).disks]
    if len(labels) == 1:
        return _restore_disk(repository, point, labels[0], target, force, bar)
    from engine.file_restore import files_in

    files = files_in(target, labels, force=force)
    return {
        "point": point,
        "disks": [_restore_disk(repository, point, label, file, force, bar) for label, file in files.items()],
    }


def _restore_disk(
    repository: Repository, point: PointId, label: str, target: Path, force: bool, bar: Progress
) -> dict[str, object]:
    disk = repository.read_disk(point, label)
    bar.begin(f"{point} {label}", disk.record.mapped_bytes)
    from engine.file_restore import restore_to_file

    written = restore_to_file(disk, target, force=force, progress=Steps(bar))
    return {
        "point": point,
        "disk": label,
        "target": str(target.absolute()),
        "capacity_bytes": disk.capacity_bytes,
        "written_bytes": written,
    }
