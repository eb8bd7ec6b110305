"""Making an empty repository."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from storage import config as configs
from storage.blobs import LocalBlobs, sync_folder, translated
from storage.errors import AlreadyExists, Refused
from storage.format import CONFIG_COPY_KEY, CONFIG_KEY

BLOCK_BYTES = 64 << 10
FOLDERS = ("spool", "packs", "manifests", "marks", "index")


def create(
    location: Path | str, *, now: datetime, passphrase: str | None = None, block_bytes: int = BLOCK_BYTES
) -> None:
    """Make an empty repository; encrypted if there is a passphrase or the line of a key file.

    AlreadyExists if there is one. Refused in a folder that holds anything else: what is in `spool/` is removed at every open.
    """
    root = Path(location)
    blobs = LocalBlobs(root)
    if (root / CONFIG_KEY).exists() or (root / CONFIG_COPY_KEY).exists():
        raise AlreadyExists("there is a repository already", where=str(root))
    with translated(str(root)):
        new = [path for path in (root, *root.parents) if not path.exists()]
        root.mkdir(parents=True, exist_ok=True)
        if foreign := sorted(path.name for path in root.iterdir() if _foreign(path)):
            raise Refused(f"the folder is not empty: {foreign[0]}", where=str(root), hint="name a new or empty one")
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)
        for path in (root, *(path.parent for path in new)):
            sync_folder(path)
    configs.put_new(blobs, configs.new_config(now, block_bytes, passphrase)[1])


def _foreign(path: Path) -> bool:
    """Whether a file would get mixed up with ours; what we or the file system made is not, nor what is hidden."""
    if path.name in FOLDERS:
        return any(path.iterdir())
    return path.name != "lost+found" and not path.name.startswith(".")
