"""Ext4 file systems in plain files, made and changed without a mount: mke2fs and debugfs do the work.

What is written later goes into the same file system, so that changes stay as local as on the disk of a running machine.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

BLOCK = 4096
FAKE_TIME = "1767225600"  # 2026-01-01: time stamps inside an image do not depend on when it was made


def make_file_system(image: Path, size_bytes: int, uuid: str, root: Path | None = None) -> None:
    """A new file system in a sparse file, filled with a folder where one is given."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    filled = ["-d", str(root)] if root is not None else []
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-U", uuid, "-E", f"hash_seed={uuid}", *filled]
    _run([*command, str(image)])


class Ext4Image:
    """A file system that is written to from outside; commands are gathered and run at `flush`."""

    def __init__(self, image: Path, folders: Iterable[str] = (), files: Iterable[str] = ()) -> None:
        self.image = image
        self.folders = {"", *folders}
        self.files = set(files)
        self._commands: list[str] = []
        self._at = ""

    def install(self, root: Path, paths: Iterable[str]) -> None:
        """Write these paths of a root folder, unless they are there."""
        for path in paths:
            source = root / path
            mode = source.lstat().st_mode
            if path in self.files or path in self.folders:
                continue
            if stat.S_ISDIR(mode):
                self.make_folder(path)
            elif stat.S_ISLNK(mode):
                self._enter(path)
                self._do(f'symlink "{Path(path).name}" "{source.readlink()}"')
                self.files.add(path)
            elif stat.S_ISREG(mode):
                self.write(source, path)

    def write(self, source: Path, path: str) -> None:
        """Write a file that is not there yet."""
        self._enter(path)
        self._do(f'write "{source}" "{Path(path).name}"')
        self.files.add(path)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it."""
        if path in self.folders:
            return
        self._enter(path)
        self._do(f'mkdir "{Path(path).name}"')
        self.folders.add(path)

    def remove(self, path: str) -> None:
        """Remove a file or link."""
        self._do(f'rm "/{path}"')
        self.files.discard(path)

    def rename(self, path: str, to: str) -> None:
        """Give a file another name; its contents stay where they are. debugfs leaves the count of links at one."""
        self._do(f'ln "/{path}" "/{to}"')
        self._do(f'unlink "/{path}"')
        self.files.discard(path)
        self.files.add(to)

    def flush(self) -> None:
        """Run what was gathered."""
        if not self._commands:
            return
        with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
            script.write("\n".join(self._commands) + "\n")
            script.flush()
            told = _run(["debugfs", "-w", "-f", script.name, str(self.image)])
        if wrong := [line for line in told.splitlines() if is_complaint(line)]:
            raise RuntimeError(f"debugfs could not fill {self.image}: {wrong[:5]}")
        self._commands.clear()
        self._at = ""

    def overwrite(self, path: str, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write into the blocks that a file has, as a database does: (offset in the file, bytes) in whole blocks."""
        self.flush()
        told = _run(["debugfs", "-R", f'dump_extents -l "/{path}"', str(self.image)])
        places = extents_of(told)
        fd = os.open(self.image, os.O_WRONLY)
        try:
            for offset, data in pieces:
                for at in range(0, len(data), BLOCK):
                    os.pwrite(fd, data[at : at + BLOCK], physical(places, (offset + at) // BLOCK) * BLOCK)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Fail unless the file system is sound."""
        self.flush()
        _run(["e2fsck", "-fn", str(self.image)])

    def _enter(self, path: str) -> None:
        folder = str(Path(path).parent)
        folder = "" if folder == "." else folder
        self.make_folder(folder)
        if folder != self._at:
            self._do(f'cd "/{folder}"')
            self._at = folder

    def _do(self, command: str) -> None:
        self._commands.append(command)


def is_complaint(line: str) -> bool:
    """Whether a line of debugfs tells of a failure, rather than of what it does."""
    return bool(line.strip()) and not line.startswith(("debugfs", "Allocated inode"))


def extents_of(told: str) -> list[tuple[int, int, int]]:
    """(first logical block, first physical block, blocks) of what `dump_extents -l` prints."""
    found = re.findall(r"^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+)\s*-\s*\d+\s+(\d+)\s*-\s*\d+\s+(\d+)", told, re.MULTILINE)
    return [(int(logical), int(first), int(blocks)) for logical, first, blocks in found]


def physical(places: list[tuple[int, int, int]], block: int) -> int:
    """Where a block of a file lies."""
    for logical, first, blocks in places:
        if logical <= block < logical + blocks:
            return first + block - logical
    raise ValueError(f"block {block} of the file is a hole")


def walk(root: Path) -> tuple[list[str], list[str]]:
    """(folders, everything else) below a root, as relative paths."""
    folders: list[str] = []
    files: list[str] = []
    for path in sorted(root.rglob("*")):
        (folders if path.is_dir() and not path.is_symlink() else files).append(str(path.relative_to(root)))
    return folders, files


def _run(command: list[str]) -> str:
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": FAKE_TIME, "LC_ALL": "C"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    told = done.stdout.decode(errors="replace")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} … {command[-1]}: {told.strip()[-500:]}")
    return told
