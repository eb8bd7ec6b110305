"""What a quiesced snapshot of a Windows guest left: whether VSS writers took part, or file systems alone were frozen.

vSphere keeps a zip file beside the VM with Microsoft's Backup Components Document and, where applications were asked,
a Writer Metadata Document of each writer (VDDK programming guide, "Application-Consistent Backup and Restore").
Neither says whether a writer failed: a requester asks for that while the snapshot is made (GetWriterStatus).
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import Any

from connectors.errors import Gone
from connectors.vsphere.folder_files import FolderFile, below, datacenter_path, read_file
from connectors.vsphere.session import Session

MOST_DOCUMENTS = 500
LOOKED_AT_BYTES = 64 << 10
"""Of each document, which may be of any size: what it is stands in its first element."""

_WRITER, _BACKUP = re.compile(r"<WRITER_METADATA[\s>]"), re.compile(r"<BACKUP_COMPONENTS[\s>]")


def only_file_systems(archive: bytes) -> bool:
    """Whether the archive has no writer's document; ValueError where it is not what VSS leaves. Pure."""
    backups = writers = 0
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as held:
            for entry in held.infolist()[:MOST_DOCUMENTS]:
                with held.open(entry) as document:
                    text = _text(document.read(LOOKED_AT_BYTES))
                writers += bool(_WRITER.search(text))
                backups += bool(_BACKUP.search(text))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"it is no archive that can be read: {error}") from error
    if not (backups or writers):
        raise ValueError("it holds no document of VSS")
    return not writers


def _text(start: bytes) -> str:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return start.decode("utf-16", "replace")
    return start.decode("utf-16-le" if b"\x00" in start[:4] else "utf-8", "replace")


async def read_manifest(session: Session, managed: Any, path: str) -> bytes:
    """The archive at the path that the snapshot names, on a datastore or below the VM's folder of snapshots.

    Raises a ConnectorError, Gone where it is not there.
    """
    told = await session.properties(managed, ["runtime.host", "config.files.snapshotDirectory"])
    folder, host = str(told.get("config.files.snapshotDirectory") or ""), told.get("runtime.host")
    if host is None:
        raise Gone("the VM has no host", where=path)
    name = path if path.startswith("[") else below(folder, path)
    return await read_file(session, FolderFile(name, await datacenter_path(session, host)))
