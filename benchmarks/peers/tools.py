"""The peers themselves: restic from Debian, borg and benji from PyPI, each below the benchmark's own folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks._programs import compile_folder
from benchmarks.images.apt import Apt

BORG_HEADERS = (
    *("liblz4-dev", "liblz4-1", "libacl1-dev", "libacl1", "libattr1-dev", "libattr1"),
    *("libxxhash-dev", "libxxhash0", "libzstd-dev", "libzstd1", "libssl-dev", "libssl3"),
)
BENJI_OVERRIDES = ("ruamel.yaml<0.18",)  # what benji 0.17 pins no longer builds
BENJI_WANTS = ("benji[compression]==0.17.0", "setuptools<80")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the peers' programs are."""

    restic: Path
    borg: Path
    benji: Path


def ensure_tools(folder: Path, say: Say) -> Tools:
    """Programs that are there already are used as they are; the machine's installed packages stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    apt = Apt(folder / "apt")
    tools = Tools(_restic(folder, apt, say), _borg(folder, apt, say), _benji(folder, say))
    for program in (tools.borg, tools.benji):
        compile_folder(program.parents[1] / "lib")
    return tools


def _restic(folder: Path, apt: Apt, say: Say) -> Path:
    program = folder / "restic/usr/bin/restic"
    if not program.exists():
        say("getting restic")
        subprocess.run(["dpkg-deb", "-x", str(apt.download("restic").path), str(folder / "restic")], check=True)
    return program


def _borg(folder: Path, apt: Apt, say: Say) -> Path:
    program = folder / "borg/bin/borg"
    if not program.exists():
        say("building borg")
        headers = folder / "headers"
        for name in BORG_HEADERS:
            subprocess.run(["dpkg-deb", "-x", str(apt.download(name).path), str(headers)], check=True)
        pkgconfig = next((headers / "usr/lib").glob("*/pkgconfig"))
        environment = {
            "PKG_CONFIG_PATH": str(pkgconfig),
            "PKG_CONFIG_SYSROOT_DIR": str(headers),
            "CFLAGS": f"-O2 -I{headers}/usr/include",
            "LDFLAGS": f"-L{pkgconfig.parent} -L{headers}/lib/{pkgconfig.parent.name}",
        }
        _install(folder / "borg", ["borgbackup"], environment)
        shutil.rmtree(headers)
    return program


def _benji(folder: Path, say: Say) -> Path:
    program = folder / "benji/bin/benji"
    if not program.exists():
        say("installing benji")
        if shutil.which("uv"):
            overrides = folder / "benji-overrides.txt"
            overrides.write_text("\n".join(BENJI_OVERRIDES))
            _install(folder / "benji", ["--override", str(overrides), *BENJI_WANTS], {})
        else:
            _install_benji_with_pip(folder / "benji")
    return program


def _install(folder: Path, wanted: list[str], environment: dict[str, str]) -> None:
    if shutil.which("uv"):
        _call(["uv", "venv", "-q", "--clear", "--python", sys.executable, str(folder)], {})
        _call(["uv", "pip", "install", "-q", "--python", str(folder / "bin/python"), *wanted], environment)
    else:
        _call([sys.executable, "-m", "venv", "--clear", str(folder)], {})
        _call([str(folder / "bin/pip"), "install", "-q", *wanted], environment)


def _install_benji_with_pip(folder: Path) -> None:
    """pip has no overrides: what benji asks for goes in by name, then benji without its dependencies."""
    requires = (
        *("PrettyTable<1", "sqlalchemy<2", "setproctitle<2", "python-dateutil<3", "alembic<2", "psycopg2-binary<3"),
        *("argcomplete<2", "sparsebitfield<1", "cerberus<2", "pycryptodome<4", "pyparsing<3", "semantic-version<3"),
        *("dateparser<2", "structlog", "colorama<1", "diskcache", "attrs<22", "zstandard", "setuptools<80"),
    )
    _install(folder, [*requires, *BENJI_OVERRIDES], {})
    _call([str(folder / "bin/pip"), "install", "-q", "--no-deps", BENJI_WANTS[0]], {})


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.decode(errors='replace')[-2000:]}")
