"""Disks with real file systems, and what a guest does to them.

A guest's writer holds an exclusive flock on the flat file while it writes, and notes what it wrote in `<flat>.writes`.
The simulator takes the same lock for a snapshot, so that the snapshot is one moment, and reads the notes, so that a
rewrite of equal bytes counts as a change.
"""

import fcntl
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.build import LabUnavailable, lab_directory

GRAIN = 64 * 1024
_SOURCES = (
    Path("/usr/lib/python3"),
    Path("/usr/lib/python3.11"),
    Path("/usr/share/perl"),
    Path("/usr/share/doc"),
    Path("/usr/include"),
)


def template(size: int) -> Path:
    """An ext4 image of `size` bytes, about a third full of this machine's own files. Made once and kept."""
    directory = lab_directory() / "templates"
    image = directory / f"ext4-{size}.img"
    if image.exists():
        return image
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image.exists():
            return image
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            tree = Path(scratch) / "tree"
            _gather(tree, min(size // 3, 96 * 1024 * 1024))
            fresh = Path(scratch) / "image"
            with fresh.open("wb") as file:
                file.truncate(size)
            _run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit",
                  "-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-d", str(tree), str(fresh)])  # fmt: skip
            fresh.rename(image)
    return image


def _gather(tree: Path, budget: int) -> None:
    tree.mkdir()
    for source in _SOURCES:
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_symlink() or not path.is_file():
                continue
            size = path.stat().st_size
            if size > budget:
                continue
            budget -= size + 4096
            target = tree / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if budget <= 0:
                return


def _run(command: Sequence[str], text: str | None = None) -> str:
    program = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise LabUnavailable(f"the lab needs {command[0]}: apt-get install e2fsprogs")
    done = subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
    return done.stdout


def data_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Offset and length of what is not a hole."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, at - start


def copy_sparse(source: Path, target: Path) -> None:
    """Make `target` (an existing file) equal to `source`, without filling holes."""
    with source.open("rb") as src, target.open("r+b") as dst:
        dst.truncate(0)
        dst.truncate(os.fstat(src.fileno()).st_size)
        for start, length in data_extents(source):
            dst.seek(start)
            done = 0
            while done < length:
                done += os.sendfile(dst.fileno(), src.fileno(), start + done, length - done)


def fill(flat: Path, size: int, seed: str, own_bytes: int = 1024 * 1024) -> None:
    """Put a file system on a disk: the common template, with an identity and a file of its own."""
    copy_sparse(template(size), flat)
    unique = random.Random(seed).randbytes(min(own_bytes, size // 16))
    write_file(flat, "/own.bin", unique, "ssv uuid random")


def write_file(image: Path, name: str, data: bytes, *orders: str) -> None:
    """Write a file into the image's ext4 file system, which stays consistent."""
    with tempfile.NamedTemporaryFile(dir=image.parent, prefix=".guest-") as source:
        source.write(data)
        source.flush()
        text = "\n".join([*orders, f"rm {name}", f"write {source.name} {name}", "quit"])
        _run(["debugfs", "-w", "-f", "/dev/stdin", str(image)], text)


@contextmanager
def guest_lock(flat: Path) -> Iterator[int]:
    """A descriptor of the disk, held against snapshots. FileNotFoundError when the disk has moved meanwhile."""
    fd = os.open(flat, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if flat.stat().st_ino != os.fstat(fd).st_ino:
            raise FileNotFoundError(flat)
        if os.fstat(fd).st_nlink > 1:
            raise RuntimeError(f"{flat} is held by a snapshot that was frozen by a link (settings: link_frozen)")
        yield fd
    finally:
        os.close(fd)


def write(flat: Path, pieces: Iterable[tuple[int, bytes]]) -> None:
    with guest_lock(flat) as fd:
        notes = []
        for offset, data in pieces:
            done = 0
            while done < len(data):
                done += os.pwrite(fd, data[done:], offset + done)
            notes.append(f"{offset} {len(data)}\n")
        with flat.with_name(flat.name + ".writes").open("a") as log:
            log.writelines(notes)
