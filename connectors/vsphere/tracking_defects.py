"""ESXi builds whose change tracking leaves changes out: a table with its sources, which the configuration makes longer.

Pure. A host counts that runs the VM now, and the one that ran it when the restore point was made that is built on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class HostBuild:
    """What an ESXi host runs, such as version "8.0.2" and build 22380479; 0 where the build is not known."""

    version: str = ""
    build: int = 0

    def __str__(self) -> str:
        return f"{self.version} build {self.build}" if self.version else ""


@dataclass(frozen=True, slots=True)
class Defect:
    """Versions that are `version` or begin with it and a dot, of builds below `below` (None for all of them).

    Only disks of more than `over_bytes` are concerned.
    """

    version: str
    what: str
    source: str
    below: int | None = None
    over_bytes: int = 0


_EXTENDED = "loses track of disks that were extended past a multiple of 128 GiB"

DEFECTS = (
    Defect("4", _EXTENDED, "KB 310751", over_bytes=128 * GIB),
    Defect("5", _EXTENDED, "KB 310751", over_bytes=128 * GIB),
    Defect("6.0", "loses what is written while a snapshot is consolidated", "KB 317933", below=3_247_720),
)
"""KB 317933 names the patch, ESXi600-201511001; its build is from VMware's list of builds and versions. Fixes for some
branches of 5.x are named in KB 310751 without builds, so the whole of 5.x is here; it is out of support."""

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)*)\s*(?:<\s*(\d+)\s*)?", re.ASCII)


def parse_defect(text: str) -> Defect:
    """A line of the configuration: "8.0.2" for all its builds, "8.0.2 < 22380479" for those below. ValueError."""
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is not a version of ESXi; write for instance "8.0.2" or "8.0.2 < 22380479"')
    below = int(found[2]) if found[2] else None
    return Defect(found[1], "is not to be believed", "the configuration", below)


def parse_build(text: str) -> HostBuild:
    """What `str` made of it; an empty one for anything else."""
    version, _, build = text.partition(" build ")
    return HostBuild(version, int(build)) if build.isdecimal() else HostBuild()


def known_defect(defects: Iterable[Defect], host: HostBuild, capacity_bytes: int) -> str:
    """Why change tracking of a disk of this size is not believed on this host; empty where nothing is known."""
    for one in defects:
        of_version = host.version == one.version or host.version.startswith(f"{one.version}.")
        if of_version and (one.below is None or host.build < one.below) and capacity_bytes > one.over_bytes:
            return f"change tracking of ESXi {host} {one.what} ({one.source})"
    return ""
