"""How far a restore has come, on disk, so that one which was cut off goes on there. One file for each, until it ends.

Lines of JSON are appended and synced; a torn last line is as good as none. What a line says of a disk was durable on
that disk before the line was written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.filecalls import translated

FOLDER = "restores"


@dataclass(frozen=True, slots=True)
class Restoring:
    """What is restored to where. `target` is the VM's moRef, `name` what people call it, `kind` how it is done."""

    kind: str
    point: str
    vcenter: str
    target: str
    name: str

    @property
    def moref(self) -> str:
        """The VM's moRef: of a single disk the target names that too."""
        return self.target.partition("/")[0]

    @property
    def file_name(self) -> str:
        """The name of its journal."""
        key = "\0".join((self.kind, self.point, self.vcenter, self.target))
        return hashlib.sha256(key.encode()).hexdigest()[:24] + ".jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a journal says: up to which offset each disk is done, and how the VM was known when that was written.

    `made` is the UUID of a disk that the restore has added to the VM: device keys change hands. `wanted_by` is the run
    that was about to take the VM over, when the journal says nothing after it.
    """

    reached: Mapping[int, int] = field(default_factory=dict)
    version: str = ""
    made: str = ""
    wanted_by: str = ""


class Journal:
    """The journal of one restore. Every method blocks."""

    def __init__(self, state_dir: Path, what: Restoring) -> None:
        self.path = state_dir / FOLDER / what.file_name
        self.what = what

    def read(self) -> Progress | None:
        """What an earlier attempt came to; None when there was none."""
        lines = _lines(self.path)
        if not lines:
            return None
        reached: dict[int, int] = {}
        version, made, wanted_by = "", "", ""
        for line in lines[1:]:
            version, made = str(line.get("version", version)), str(line.get("made", made))
            wanted_by = str(line.get("wanted_by", ""))
            if line.get("anew"):
                reached.clear()
            disk, offset = line.get("disk"), line.get("reached")
            if isinstance(disk, int) and isinstance(offset, int):
                reached[disk] = offset
        return Progress(reached, version, made, wanted_by)

    def intend(self, run: str) -> None:
        """A run is about to take the VM over; StorageError, before anything is changed, when no journal can be kept."""
        self._add({"wanted_by": run})

    def begin(self, *, version: str, anew: bool, made: str = "") -> None:
        """An attempt starts: the VM is known as `version` now. With `anew` nothing that was reached counts."""
        self._add({"version": version, "made": made, "anew": anew})

    def _add(self, line: Mapping[str, Any]) -> None:
        with translated(str(self.path)):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _lines(self.path):
                self.path.unlink(missing_ok=True)
                self._append(asdict(self.what))
                _sync_folder(self.path.parent)
            self._append(line)

    def note(self, disk: int, reached: int) -> None:
        """All of the disk before this offset is done and durable."""
        with translated(str(self.path)):
            self._append({"disk": disk, "reached": reached})

    def finish(self) -> None:
        """The restore is over. Idempotent."""
        with translated(str(self.path)):
            self.path.unlink(missing_ok=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        # After a torn line a fresh one begins: a line that is not JSON counts as none.
        data = b"\n" + json.dumps(line).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def unfinished(state_dir: Path) -> list[Restoring]:
    """The restores that began and did not end, those under way among them."""
    found: list[Restoring] = []
    for path in sorted((state_dir / FOLDER).glob("*.jsonl")):
        lines = _lines(path)
        if lines and set(lines[0]) == set(Restoring.__dataclass_fields__):
            found.append(Restoring(**{name: str(value) for name, value in lines[0].items()}))
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            found.append(told)
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
