"""backstay disk restore POINT"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import Config, Json, PassphraseFile, Point, Repo
from engine.cli.output import say, show_json
from engine.cli.progress import Progress, Steps, progress
from engine.cli.reach import reach
from engine.client import Engine
from engine.commands import RestoreToFile
from engine.file_restore import restore_to_file
from engine.units import show_size
from policies.facts import PointId
from storage.errors import NoSuchPoint
from storage.repository import Repository


def disk_restore(
    point: Point,
    /,
    *,
    to: Annotated[Path, Parameter(help="The file or block device to write.")],
    disk: Annotated[str, Parameter(help="Which disk, where the restore point has several.")] = "",
    force: Annotated[bool, Parameter(help="Overwrite a file or block device that is there.")] = False,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Write a disk of a restore point to a file or block device, every byte verified.

    A file appears under its name only when it is complete, and stays sparse.
    """
    with reach(repo, config, passphrase_file, command="disk restore") as place, progress(quiet=json) as bar:
        if isinstance(place, Engine):
            from engine.cli.tasks import follow

            result = dict(follow(place, RestoreToFile(point, to.absolute(), disk, force), bar))
        else:
            result = restore_here(place, point, disk, to, force, bar)
    if json:
        show_json(result)
    else:
        say(f"Restored {result['point']}, {result['disk']}, to {to}: {show_size(result['capacity_bytes'])}, verified.")


def restore_here(
    repository: Repository, reference: str, wanted: str, target: Path, force: bool, bar: Progress
) -> dict[str, object]:
    """Write a disk of a repository that we own; what `--json` shows of it."""
    point = repository.find(reference)
    name = wanted or only_disk(repository, point)
    opened = repository.read_disk(point, name)
    bar.begin(f"{point} {name}", opened.record.mapped_bytes)
    written = restore_to_file(opened, target, force=force, progress=Steps(bar))
    return {
        "point": point,
        "disk": name,
        "target": str(target.absolute()),
        "capacity_bytes": opened.capacity_bytes,
        "written_bytes": written,
    }


def only_disk(repository: Repository, point: PointId) -> str:
    """The label of the only disk; NoSuchPoint lists them when there are several."""
    names = [record.head.name for record in repository.detail(point).disks]
    if len(names) != 1:
        known = ", ".join(names) or "none"
        raise NoSuchPoint(f"restore point {point} has {len(names)} disks", hint=f"choose one with --disk: {known}")
    return names[0]
