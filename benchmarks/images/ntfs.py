"""An NTFS file system in a plain file, made with ntfs-3g's tools, which need no mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.images.apt import Apt

PACKAGES = ("ntfs-3g", "libntfs-3g89")


def fill(image: Path, size_bytes: int, files: Iterable[tuple[Path, str]], apt: Apt) -> None:
    """A new file system with these (source, name) in its root folder, as ntfscp makes no folders."""
    tools = apt.folder / "ntfs-tools"
    for name in PACKAGES:
        subprocess.run(["dpkg-deb", "-x", str(apt.download(name).path), str(tools)], check=True)
    library = next(tools.rglob("libntfs-3g.so.*")).parent
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run(
        [str(tools / "sbin/mkntfs"), "-q", "-F", "-f", "-s", "512", "-p", "0", "-H", "0", "-S", "0", str(image)],
        environment,
    )
    for source, name in files:
        _run([str(tools / "sbin/ntfscp"), "-q", str(image), str(source), f"/{name}"], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.decode(errors='replace').strip()[-500:]}")
