"""The disk images that the benchmarks read: real Debian systems, a database's disk, NTFS, and two of them a day later.

A and C are clones of one template with other packages, B is installed separately and in another order, N is NTFS.
A2 and C2 are A and C the next day: packages upgraded, logs rotated, random pages of a database written anew, all in
the same file systems. What differs is listed beside them, as change tracking would list it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.images import comparing, ntfs
from benchmarks.images.apt import Apt, Archive, extract, new_root
from benchmarks.images.content import Prose, changed_pages, write_table
from benchmarks.images.ext4 import Ext4Image, make_file_system, walk

SIZE = 4 << 30
FORMAT = 2
NAMES = ("A", "B", "C", "N", "A2", "C2")
NEXT_DAY = {"A": "A2", "C": "C2"}
FREE_BYTES_WANTED = 12 << 30

_BASE = ["?priority(required)", "?priority(important)", "linux-image-amd64", "openssh-server", "python3"]
_TEMPLATE = [*_BASE, "?priority(standard)", "vim", "locales", "apt"]
_WEB = ["nginx", "postgresql", "build-essential", "php-cli"]
_STORE = ["mariadb-server", "ruby"]
_SEPARATE = [*_BASE, "apache2", "default-jdk-headless", "nodejs", "emacs-nox"]
_WINDOWS = ["libwine"]
_UPGRADED = {
    "A": [
        *("openssh-client", "openssh-server", "openssl", "libssl3", "php8.2-cli", "php8.2-common", "bind9-libs"),
        *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "postgresql-client-15"),
    ],
    "C": ["mariadb-server-core", "mariadb-client-core", "openssl", "libssl3"],
}
_TABLE = "var/lib/database/table"
_TABLE_PAGES = {"A": 8192, "C": 49152}
_CHANGED_PAGES = {"A": 200, "C": 2500}
_LOG_BYTES = 24 << 20
_NEW_LOG_BYTES = 6 << 20
_JOURNAL_BYTES = 24 << 20
_JOURNAL_WRITTEN = 4 << 20

Say = Callable[[str], None]


def ensure_images(folder: Path, cache: Path, seed: int, say: Say) -> dict[str, Any]:
    """The manifest of the images in a folder, made when they are not there, for which root and a mirror are needed."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        found: dict[str, Any] = json.loads(manifest.read_text())
        if found["format"] == FORMAT and found["seed"] == seed and all(image(folder, name).exists() for name in NAMES):
            return found
        say("The images there are of another kind; they are made anew.")
        manifest.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < FREE_BYTES_WANTED:
        raise RuntimeError(f"{folder} has less than {FREE_BYTES_WANTED >> 30} GiB free, which the images need")
    return _Making(folder, Apt(cache / "apt"), cache / "stage", seed, say).run()


def image(folder: Path, name: str) -> Path:
    """Where an image lies."""
    return folder / f"{name}.img"


def hints(folder: Path, name: str) -> Path:
    """Where the list of changed extents of a next day's image lies."""
    return folder / f"{name}.changed.json"


class _Making:
    """One making of all images; the stage holds what was unpacked, and goes."""

    def __init__(self, folder: Path, apt: Apt, stage: Path, seed: int, say: Say) -> None:
        self._folder, self._apt, self._stage, self._seed = folder, apt, stage, seed
        self._began = time.monotonic()
        self._told = say
        self._packages: dict[str, dict[str, str]] = {}
        self._contents: dict[str, tuple[list[str], list[str]]] = {}

    def run(self) -> dict[str, Any]:
        shutil.rmtree(self._stage, ignore_errors=True)
        try:
            self._say("downloading packages")
            template = self._apt.closure(_TEMPLATE)
            sets = {"A": self._apt.closure([*_TEMPLATE, *_WEB]), "C": self._apt.closure([*_TEMPLATE, *_STORE])}
            wanted = [name for names in _UPGRADED.values() for name in names]
            older = self._apt.older([*sets["A"], *sets["C"]], wanted)
            self._clones(template, sets, older)
            self._separate(self._apt.closure(_SEPARATE))
            self._ntfs(self._apt.closure(_WINDOWS))
            for name in NEXT_DAY:
                self._next_day(name, [archive for archive in sets[name] if archive.name in older])
            return self._manifest()
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)

    def _clones(self, template: list[Archive], sets: Mapping[str, list[Archive]], older: Mapping[str, Archive]) -> None:
        self._say(f"template: {len(template)} packages")
        root = self._root("template")
        for archive in template:
            extract(older.get(archive.name, archive), root)
        (root / "var/lib/dpkg").mkdir(parents=True, exist_ok=True)
        folders, files = walk(root)
        base = self._folder / "template.img"
        make_file_system(base, SIZE, self._uuid("template"), root)
        known = {archive.name for archive in template}
        for name, archives in sets.items():
            self._say(f"{name}: the template and {len(archives) - len(known)} packages")
            copy_sparse(base, image(self._folder, name))
            disk = Ext4Image(image(self._folder, name), folders, files)
            used = [older.get(archive.name, archive) for archive in archives]
            self._install(disk, name, [archive for archive in used if archive.name not in known])
            self._own_files(disk, name, used)
        base.unlink()
        shutil.rmtree(root)

    def _separate(self, archives: list[Archive]) -> None:
        self._say(f"B: {len(archives)} packages in another order")
        random.Random(f"{self._seed} B").shuffle(archives)
        make_file_system(image(self._folder, "B"), SIZE, self._uuid("B"))
        disk = Ext4Image(image(self._folder, "B"))
        self._install(disk, "B", archives)
        self._own_files(disk, "B", archives)

    def _ntfs(self, archives: list[Archive]) -> None:
        root = self._root("N")
        for archive in archives:
            extract(archive, root)
        _, files = walk(root)
        largest = sorted(files, key=lambda file: -(root / file).lstat().st_size)[:700]
        chosen = [file for file in largest if not (root / file).is_symlink()]
        self._say(f"N: NTFS with {len(chosen)} files")
        table = self._stage / "table"
        write_table(table, 49152, self._prose("N"))
        placed = [(root / file, file.replace("/", "_").lower()) for file in sorted(chosen)]
        ntfs.fill(image(self._folder, "N"), SIZE, [(table, "database.mdf"), *placed], self._apt)
        self._packages["N"] = versions(archives)
        shutil.rmtree(root)

    def _next_day(self, name: str, newer: Sequence[Archive]) -> None:
        later = NEXT_DAY[name]
        upgraded = [archive for archive in newer if archive.name in _UPGRADED[name]]
        self._say(f"{later}: {name} the next day, {len(upgraded)} packages upgraded")
        copy_sparse(image(self._folder, name), image(self._folder, later))
        disk = Ext4Image(image(self._folder, later), *self._contents[name])
        root = self._root(later)
        for archive in upgraded:
            paths = extract(archive, root)
            for path in paths:
                if path in disk.files and not (root / path).is_dir():
                    disk.remove(path)
            disk.install(root, paths)
            disk.write(archive.path, f"var/cache/apt/archives/{archive.path.name}")
        prose = self._prose(later)
        disk.rename("var/log/syslog", "var/log/syslog.1")
        fresh = self._stage / "syslog"
        fresh.write_bytes(prose.log(_NEW_LOG_BYTES))
        disk.write(fresh, "var/log/syslog")
        disk.overwrite("var/log/journal/system.journal", [(_JOURNAL_BYTES // 2, prose.log(_JOURNAL_WRITTEN))])
        disk.overwrite(_TABLE, changed_pages(_TABLE_PAGES[name], _CHANGED_PAGES[name], prose))
        disk.check()
        self._packages[later] = {**self._packages[name], **versions(upgraded)}
        shutil.rmtree(root)

    def _install(self, disk: Ext4Image, name: str, archives: Sequence[Archive]) -> None:
        root = self._root(name)
        disk.install(root, sorted(f"usr/{link}" for link in ("bin", "sbin", "lib", "lib64")))
        disk.install(root, ("bin", "sbin", "lib", "lib64"))
        for archive in archives:
            disk.install(root, extract(archive, root))
        disk.flush()
        shutil.rmtree(root)

    def _own_files(self, disk: Ext4Image, name: str, archives: Sequence[Archive]) -> None:
        """What a machine writes itself: its package status, logs, a journal, a table."""
        own = self._root(f"{name}-own")
        prose = self._prose(name)
        (own / "status").write_text("\n\n".join(control(archive) for archive in archives))
        (own / "syslog").write_bytes(prose.log(_LOG_BYTES))
        (own / "journal").write_bytes(prose.log(_JOURNAL_BYTES))
        disk.write(own / "status", "var/lib/dpkg/status")
        disk.write(own / "syslog", "var/log/syslog")
        disk.write(own / "journal", "var/log/journal/system.journal")
        if name in _TABLE_PAGES:
            write_table(own / "table", _TABLE_PAGES[name], prose)
            disk.write(own / "table", _TABLE)
        disk.check()
        self._packages[name] = versions(archives)
        self._contents[name] = (sorted(disk.folders), sorted(disk.files))
        shutil.rmtree(own)

    def _manifest(self) -> dict[str, Any]:
        self._say("comparing")
        told: dict[str, Any] = {}
        for name in NAMES:
            used = comparing.blocks_in_use(image(self._folder, name))
            told[name] = {"bytes_in_use": used, "capacity_bytes": SIZE, "packages": self._packages[name]}
        for name, later in NEXT_DAY.items():
            blocks = comparing.differences(image(self._folder, name), image(self._folder, later))
            extents = [{"offset": offset, "length": length} for offset, length in comparing.extents(blocks)]
            hints(self._folder, later).write_text(json.dumps(extents))
            told[later]["changed_bytes"] = {str(size): n for size, n in comparing.changed_bytes(blocks).items()}
        seconds = round(time.monotonic() - self._began)
        manifest = {"format": FORMAT, "seed": self._seed, "seconds": seconds, "images": told}
        (self._folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
        self._say("done")
        return manifest

    def _root(self, name: str) -> Path:
        root = self._stage / name
        root.mkdir(parents=True)
        new_root(root)
        return root

    def _prose(self, name: str) -> Prose:
        return Prose(f"{self._seed} {name}")

    def _uuid(self, name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self._seed} {name}"))

    def _say(self, what: str) -> None:
        self._told(f"[{time.monotonic() - self._began:5.0f} s] {what}")


def versions(archives: Sequence[Archive]) -> dict[str, str]:
    """Version by name."""
    return {archive.name: archive.version for archive in archives}


def control(archive: Archive) -> str:
    """A package's entry of the package status."""
    told = subprocess.run(["dpkg-deb", "-f", str(archive.path)], check=True, capture_output=True, text=True).stdout
    return f"{told.strip()}\nStatus: install ok installed"


def copy_sparse(source: Path, target: Path) -> None:
    """A copy whose zeros are holes."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
