"""Debian packages from the mirror that this machine is configured for, without touching what is installed on it.

Apt runs with an empty package status of its own, so that it resolves and downloads everything that a new system needs.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MERGED = ("bin", "sbin", "lib", "lib64")
"""Folders of the root that are links into /usr on a Debian of today."""


class NotAvailable(Exception):
    """Apt cannot give what is wanted; says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A downloaded package."""

    name: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True)
class Apt:
    """A private place for downloads."""

    folder: Path

    def closure(self, wanted: Sequence[str]) -> list[Archive]:
        """These packages (or patterns such as ?priority(required)) and all they depend on, downloaded, by name."""
        # Apt leaves out of its list what is downloaded already, so this one looks into an empty folder.
        printed = self._get("--print-uris", "-y", "install", *wanted, archives=self.folder / "nothing")
        files = [line.split()[1] for line in printed.splitlines() if line.startswith("'")]
        if not files:
            raise NotAvailable(f"apt resolves nothing for {' '.join(wanted)}; run apt-get update and try again")
        self._get("--download-only", "-y", "install", *wanted)
        return sorted((read_archive(self._archives / file) for file in files), key=lambda archive: archive.name)

    def older(self, archives: Sequence[Archive], names: Iterable[str]) -> dict[str, Archive]:
        """What the mirror still has of an earlier version of the named packages, downloaded, by name."""
        newest = {archive.name: archive for archive in archives}
        asked = sorted(set(names) & set(newest))
        listed = subprocess.run(["apt-cache", "madison", *asked], check=True, capture_output=True, text=True).stdout
        versions: dict[str, set[str]] = {}
        for line in listed.splitlines():
            name, version, where = (part.strip() for part in line.split("|"))
            if where.endswith("Packages"):
                versions.setdefault(name, set()).add(version)
        found = {name: sorted(versions.get(name, set()) - {newest[name].version}) for name in asked}
        return {name: self.download(f"{name}={older[0]}") for name, older in found.items() if older}

    def download(self, wanted: str) -> Archive:
        """One package without its dependencies; `name` or `name=version`."""
        folder = self._archives / "single" / wanted.replace("=", "_").replace(":", "%3a")
        folder.mkdir(parents=True, exist_ok=True)
        if not list(folder.glob("*.deb")):
            done = subprocess.run(
                ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", wanted],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise NotAvailable(f"apt-get download {wanted}: {done.stderr.strip().splitlines()[-1:]}")
        return read_archive(next(folder.glob("*.deb")))

    @property
    def _archives(self) -> Path:
        return self.folder / "archives"

    def _get(self, *arguments: str, archives: Path | None = None) -> str:
        archives = archives or self._archives
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        status = self.folder / "status"
        status.write_bytes(b"")
        options = {
            "Dir::State::status": status,
            "Dir::Cache::archives": archives,
            "Debug::NoLocking": "1",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
        }
        command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotAvailable(f"{' '.join(command)}: {done.stderr.strip()}; run apt-get update and try again")
        return done.stdout


def read_archive(path: Path) -> Archive:
    """What a .deb file says of itself."""
    told = subprocess.run(
        ["dpkg-deb", "-f", str(path), "Package", "Version"], check=True, capture_output=True, text=True
    )
    fields = dict(re.findall(r"^(\w+): (.*)$", told.stdout, re.MULTILINE))
    return Archive(fields["Package"], fields["Version"], path)


def new_root(folder: Path) -> None:
    """An empty root whose /bin, /lib and so on are links into /usr."""
    for name in MERGED:
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"usr/{name}")


def extract(archive: Archive, root: Path) -> list[str]:
    """Unpack into a root; the paths of its files, links and folders as they are in the root, parents first."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive.path)], stdout=subprocess.PIPE) as stream:
        unpacked = subprocess.run(
            ["tar", "-x", "--keep-directory-symlink", "--numeric-owner", "-p", "-C", str(root)],
            stdin=stream.stdout,
            check=False,
        )
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive.path)], stdout=subprocess.PIPE) as stream,
        tarfile.open(fileobj=stream.stdout, mode="r|") as members,
    ):
        paths = [merged(member.name) for member in members]
    if unpacked.returncode or stream.returncode:
        raise NotAvailable(f"{archive.path} cannot be unpacked")
    return [path for path in paths if path]


def merged(name: str) -> str:
    """A package's path in a root with merged /usr; empty for the root itself."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    if len(parts) > 1 and parts[0] in MERGED:
        parts.insert(0, "usr")
    return "" if parts in ([], *([name] for name in MERGED)) else "/".join(parts)
