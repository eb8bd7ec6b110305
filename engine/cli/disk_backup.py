"""backstay disk backup SOURCE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from connectors.disk_files import is_nbd
from connectors.disks import Extent
from engine.cli.options import Config, Json, Parameter, PassphraseFile, Repo
from engine.cli.output import say, show_json
from engine.cli.progress import Progress, progress
from engine.cli.reach import place_named, reach, utc_now
from engine.client import Engine
from engine.extentlist import read_extents
from engine.failures import BadInput
from engine.plain import point_row
from engine.rawdisk import RawDisk, back_up_file, vm_of
from engine.units import show_size
from policies.facts import RestorePoint
from storage.repository import Repository


def disk_backup(
    source: str,
    /,
    *,
    name: Annotated[str, Parameter(help="What the disk is called in the repository.")],
    changed: Annotated[
        Path | None, Parameter(help="JSON file with the extents that changed since the last restore point.")
    ] = None,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """Make a restore point of a raw file, a block device or an NBD export.

    With --changed only the extents listed there are read: [{"offset": 0, "length": 65536}, ...] in bytes. What the
    disk has grown by is read too. Without an earlier restore point of this name everything is read.

    Parameters
    ----------
    source
        Path of a file or block device, or an address such as nbd://host:10809/export.
    """
    vm_of(name)
    extents = read_extents(changed) if changed is not None else None
    with reach(repo, config, passphrase_file, command="disk backup") as place, progress(quiet=json) as bar:
        row = _ask(place, source, name, extents, bar, place_named(repo)) if isinstance(place, Engine) else None
        if row is None and isinstance(place, Repository):
            row = point_row(_read(place, RawDisk(source, name, extents), bar))
    if row is None:
        raise BadInput("the engine gave no restore point", where=source)
    if json:
        show_json(row)
    else:
        read, stored = show_size(row["read_bytes"]), show_size(row["stored_bytes"])
        say(f"Restore point {row['id']} of {name}: {read} read, {stored} stored.")


def _read(repository: Repository, raw: RawDisk, bar: Progress) -> RestorePoint:
    if not is_nbd(raw.source):
        return back_up_file(repository, raw, utc_now(), bar.begin, bar.advance)
    import asyncio  # a file needs no event loop, and starts a tenth of a second sooner without

    from engine.rawnbd import back_up_nbd

    return asyncio.run(back_up_nbd(repository, raw, utc_now(), bar.begin, bar.advance))


def _ask(
    engine: Engine, source: str, name: str, extents: list[Extent] | None, bar: Progress, repository: str
) -> dict[str, Any]:
    from engine.cli.tasks import follow
    from engine.commands import BackUpDisk

    where = source if is_nbd(source) else str(Path(source).absolute())
    pairs = None if extents is None else tuple((extent.offset, extent.length) for extent in extents)
    return dict(follow(engine, BackUpDisk(where, name, pairs, repository), bar))
