"""A disk of a restore point becomes a file or fills a block device. Blocking, no event loop, quick to import."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from connectors.errors import ConnectorError, NotPermitted
from engine.failures import BadInput, Declined
from storage.reading import PointDisk
from storage.restore import restore_disk


def restore_to_file(
    disk: PointDisk,
    target: Path,
    *,
    force: bool = False,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the disk, every chunk checked, and return the mapped bytes; durable on return.

    A file appears under its name only when it is complete. Declined when something is there and force is not set,
    BadInput when the target cannot take it, Damaged when a chunk is not intact. `progress` gets the bytes so far.
    """
    existing = _kind_of(target)
    if existing == "directory":
        raise BadInput("is a directory", where=str(target), hint="name a file in it")
    if not target.absolute().parent.is_dir():
        raise BadInput("its folder does not exist", where=str(target), hint="make it first")
    if existing == "special":
        raise BadInput("is neither a file nor a block device", where=str(target), hint="name one")
    if existing and not force:
        raise _in_the_way(target)
    if existing == "device":
        return _fill_device(disk, target, threads, progress)
    partial = target.with_name(f".{target.name}.partial")
    try:
        # Opened in here: a signal may come as soon as the file is there.
        descriptor = _open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, named=target)
        try:
            done = restore_disk(disk, descriptor, threads=threads, progress=progress)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    return done


def files_in(folder: Path, labels: Sequence[str], *, force: bool) -> dict[str, Path]:
    """A file for each of these disks, in a folder, which is made where it is not there.

    Nothing is written: Declined where one of them is there and force is not set, BadInput where no folder can be.
    """
    files = {label: folder / f"{label.replace('/', '_')}.raw" for label in labels}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        hint = "several disks become files in a folder: name one, or name the disk"
        raise BadInput("is no folder", where=str(folder), hint=hint) from None
    for file in files.values():
        if not force and _kind_of(file):
            raise _in_the_way(file)
    return files


def _in_the_way(target: Path) -> Declined:
    return Declined("is there already", where=str(target), hint="choose another name, or overwrite with --force")


def _kind_of(target: Path) -> str:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BadInput(f"cannot be written: {error.strerror}", where=str(target)) from error
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISBLK(mode):
        return "device"
    return "file" if stat.S_ISREG(mode) else "special"


def _fill_device(disk: PointDisk, target: Path, threads: int, progress: Callable[[int], None] | None) -> int:
    # O_EXCL on a block device fails while it is mounted or in use.
    descriptor = _open(target, os.O_RDWR | os.O_EXCL)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size < disk.capacity_bytes:
            raise BadInput(f"holds {size} bytes, the disk has {disk.capacity_bytes}", where=str(target))
        done = restore_disk(disk, descriptor, threads=threads, progress=progress)
        os.fsync(descriptor)
        return done
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int, *, named: Path | None = None) -> int:
    """`named` is what messages call the file."""
    named = named or path
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise NotPermitted(f"may not be written: {error.strerror}", where=str(named)) from error
    except FileNotFoundError as error:
        raise BadInput("its folder does not exist", where=str(named), hint="make it first") from error
    except OSError as error:
        raise ConnectorError(f"cannot be written: {error.strerror}", where=str(named)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
