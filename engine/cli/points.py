"""backstay points"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json, show_table
from engine.cli.reach import further_named, reach
from engine.client import Engine
from engine.failures import Exit, RemoteFailure
from engine.keptvm import shown, summary_of
from engine.plain import plain, point_row
from engine.reports import point_details
from engine.units import show_size
from storage.repository import Repository

_POINT = re.compile(r"[0-9]{8}t|.*@")
"""What may be a restore point rather than a VM that has none."""


def points(
    vm: str | None = None,
    /,
    *,
    repo: Repo = None,
    config: Config = None,
    passphrase_file: PassphraseFile = None,
    json: Json = False,
) -> None:
    """List restore points, oldest first; of one restore point, tell what led to it and what it holds.

    Parameters
    ----------
    vm
        Only those of this VM, by name or id. Or a restore point: its id, the beginning of it, or NAME@latest.
    """
    with reach(repo, config, passphrase_file, command="points") as place:
        rows = _rows(place, vm, repo)
        one = _details(place, vm) if vm is not None and not rows and _POINT.match(vm) else None
    if one is not None:
        _tell(one, json)
        return
    if json:
        show_json(rows)
        return
    several = any(row.get("repository") for row in rows)
    show_table(
        ("POINT", "VM", "TAKEN (UTC)", "CONSISTENCY", "DISKS", "READ", "STORED", *(["IN"] if several else []), "STATE"),
        [
            (
                row["id"],
                row["vm"],
                row["taken_at"][:19].replace("T", " "),
                row["consistency"],
                show_size(row["disk_bytes"]),
                show_size(row["read_bytes"]),
                show_size(row["stored_bytes"]),
                *([row.get("repository", "")] if several else []),
                _state(row),
            )
            for row in rows
        ],
        right=frozenset({"DISKS", "READ", "STORED"}),
    )
    if not rows and vm is not None:
        say(printable(f"There is no restore point of {vm}."))


def _rows(place: Repository | Engine, vm: str | None, repo: str | None) -> list[dict[str, Any]]:
    if isinstance(place, Engine):
        try:
            rows = list(place.get("/v1/points", {"vm": vm}))
        except RemoteFailure as failure:
            if vm is None or not _POINT.match(vm) or failure.verdict.exit_code is not Exit.USAGE:
                raise
            return []  # no VM's name, so a restore point's
        name = further_named(place, repo)
        return rows if repo is None else [row for row in rows if row.get("repository", "") == name]
    return [point_row(point) for point in place.points() if vm is None or vm in (point.vm_name, point.vm)]


def _details(place: Repository | Engine, reference: str) -> Mapping[str, Any]:
    if isinstance(place, Engine):
        return dict(place.get("/v1/point", {"reference": reference}))
    point = place.find(reference)
    details = point_details(place.detail(point), summary_of(place, point))
    return {**plain(details), "repository": "", "rehearsals": []}  # the engine's state has these


def _tell(point: Mapping[str, Any], json: bool) -> None:
    if json:
        show_json(point)
        return
    for name, words in _provenance(point):
        if words:
            show(printable(f"{name:<12} {words}"))
    for disk in sorted(point["disks"], key=lambda disk: _in_order(disk["label"])):
        size, read = show_size(disk["capacity_bytes"]), show_size(disk["read_bytes"])
        show(printable(f"{'disk':<12} {disk['label']}, {size}, {read} read{_way(disk)} ({disk.get('changes', '')})"))
        for transport, why in disk["fallbacks"]:
            show(printable(f"{'':<12} not by {transport}: {why}"))
        if disk.get("tracking_check"):
            show(printable(f"{'':<12} {disk['tracking_check']}"))
    for one in point.get("rehearsals", ()):
        ended = "passed" if one["passed"] else f"failed: {one['why']}"
        beat = f", its guest lived after {one['heartbeat_seconds']:.0f} s" if one["heartbeat_seconds"] else ""
        when = one["at"][:16].replace("T", " ")
        show(printable(f"{'rehearsed':<12} {when} UTC, {ended}{beat}, {one['seconds']:.0f} s"))
    for label, why in point["unprotected"]:
        show(printable(f"{'not in it':<12} {label}: {why}"))
    for name, words in shown(point.get("kept", {})):
        if words:
            show(printable(f"{name:<12} {words}"))


def _in_order(label: str) -> list[tuple[int, str]]:
    """ "Hard disk 2" before "Hard disk 10"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", label)]


def _way(disk: Mapping[str, Any]) -> str:
    return f" by {disk['transport']}" if disk.get("transport") else ""


def _provenance(point: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What there is to say of how it came about; the words are empty where nothing is known."""
    said: Mapping[str, Any] = point["attributes"]
    consistency, wanted = point["consistency"], said.get("consistency_wanted", "")
    yield "point", point["id"]
    yield "vm", f"{point['vm']} ({point['vm_id']})"
    yield "taken", f"{point['taken_at'][:19].replace('T', ' ')} UTC"
    yield "repository", point.get("repository", "")
    yield "consistency", consistency if wanted in ("", consistency) else f"{consistency}, {wanted} was wanted"
    yield "why", said.get("consistency_reason", "")
    doubt = said.get("tracking_doubt", "")
    yield "tracking", doubt["reason"] if isinstance(doubt, Mapping) else doubt
    yield "snapshot", f"made in {said['snapshot_seconds']} s" if said.get("snapshot_seconds") else ""
    yield "stood still", "; ".join(_stood_still(said))
    yield "placement", said.get("placement", "")
    yield "policy", f"{said.get('policy', '')} {said.get('rule', '')}".strip()
    yield "because", said.get("reason", "")
    at = f" at {said['event_at'][:19].replace('T', ' ')} UTC" if said.get("event_at") else ""
    yield "event", f"{said.get('event_type', '')}{at} ({said['event_key']})" if said.get("event_key") else ""
    yield "policy hash", said.get("policy_hash", "")
    yield "git commit", said.get("policy_commit", "")
    yield "host", said.get("host", "")
    yield "held", "; ".join(point["holds"])
    yield "locked", f"until {point['locked_until'][:19].replace('T', ' ')} UTC" if point["locked_until"] else ""
    yield "verified", f"{point['verified_at'][:19].replace('T', ' ')} UTC" if point["verified_at"] else ""
    yield "damaged", str(point["damaged"]) if point["damaged"] else ""


def _stood_still(said: Mapping[str, Any]) -> Iterator[str]:
    """How long the guest did so, where that is known."""
    for when, then in (("creation", "made"), ("removal", "removed")):
        stuns = said.get(f"stun_{when}")
        match stuns:
            case {"count": 1, "total_seconds": float() | int() as seconds}:
                yield f"{seconds:.2f} s when the snapshot was {then}"
            case {"count": int() as count, "longest_seconds": float() | int() as longest}:
                yield f"{count} times, {longest:.2f} s at most, when the snapshot was {then}"


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
