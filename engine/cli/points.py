"""backstay points"""

from __future__ import annotations

from typing import Any

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import printable, say, show_json, show_table
from engine.cli.reach import reach
from engine.client import Engine
from engine.plain import point_row
from engine.units import show_size
from storage.repository import Repository


def points(
    vm: str | None = None,
    /,
    *,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """List restore points, oldest first.

    Parameters
    ----------
    vm
        Only those of this VM, by name or id.
    """
    with reach(repo, config, passphrase_file, command="points") as place:
        rows = _rows(place, vm)
    if json:
        show_json(rows)
        return
    show_table(
        ("POINT", "VM", "TAKEN (UTC)", "CONSISTENCY", "DISKS", "READ", "STORED", "STATE"),
        [
            (
                row["id"],
                row["vm"],
                row["taken_at"][:19].replace("T", " "),
                row["consistency"],
                show_size(row["disk_bytes"]),
                show_size(row["read_bytes"]),
                show_size(row["stored_bytes"]),
                _state(row),
            )
            for row in rows
        ],
        right=frozenset({"DISKS", "READ", "STORED"}),
    )
    if not rows and vm is not None:
        say(printable(f"There is no restore point of {vm}."))


def _rows(place: Repository | Engine, vm: str | None) -> list[dict[str, Any]]:
    if isinstance(place, Engine):
        return list(place.get("/v1/points", {"vm": vm}))
    return [point_row(point) for point in place.points() if vm is None or vm in (point.vm_name, point.vm)]


def _state(row: dict[str, Any]) -> str:
    states = [
        name
        for name, holds in (
            ("incomplete", not row["complete"]),
            ("damaged", row["damaged"]),
            ("held", bool(row["holds"])),
            ("locked", bool(row["locked_until"])),
            ("expiring", bool(row["expiring_since"])),
        )
        if holds
    ]
    return ", ".join(states) or "good"
