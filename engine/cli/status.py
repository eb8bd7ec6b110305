"""backstay status"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.cli.options import Config, Json, PassphraseFile, Repo
from engine.cli.output import printable, say, show, show_json, show_table
from engine.cli.reach import reach
from engine.client import Engine
from engine.units import show_size
from policies.units import counted, span
from storage.repository import Repository


def status(
    *, repo: Repo = None, config: Config = None, passphrase_file: PassphraseFile = None, json: Json = False
) -> None:
    """How protection stands: coverage, queue, repository, and what waits for a person."""
    with reach(repo, config, passphrase_file, command="status") as place:
        if isinstance(place, Engine):
            found = dict(place.get("/v1/status"))
            if json:
                show_json(found)
            else:
                _show_engine(found)
            return
        found = _of_repository(place)
    if json:
        show_json(found)
        return
    _show_repository(found["repository"])
    say("No engine runs here: nothing is backed up by itself. Start it with: backstay run")


def _of_repository(repository: Repository) -> dict[str, Any]:
    sizes = repository.sizes()
    return {
        "engine": None,
        "repository": {
            "location": str(repository.location),
            "encrypted": repository.encrypted,
            "stored_bytes": sizes.stored_bytes,
            "logical_bytes": sizes.logical_bytes,
            "free_bytes": sizes.free_bytes,
            "chunks": sizes.chunks,
            "packs": sizes.packs,
            "points": sizes.points,
        },
    }


def _show_engine(found: Mapping[str, Any]) -> None:
    engine, covered = found["engine"], found["coverage"]
    show(
        printable(
            f"engine {engine['name']} {engine['version']}, pid {engine['pid']}, since {_time(engine['started_at'])} UTC"
        )
    )
    for vcenter in found["vcenters"]:
        trouble = f": {vcenter['trouble']}" if vcenter["trouble"] else ""
        show(printable(f"vcenter {vcenter['name']}: {counted(vcenter['vms'], 'VM')}{trouble}"))
    if missed := found.get("missed_events"):
        kinds = ", ".join(f"{count} {kind}" for kind, count in missed.items())
        show(printable(f"found by comparing, told by no event: {kinds}"))
    show(
        f"coverage: {covered['protected']} of {counted(covered['vms'], 'VM')} protected,"
        f" {len(covered['never_backed_up'])} never backed up, {len(covered['late'])} late"
    )
    _show_repository(found["repository"])
    for one in found.get("repositories", ()):
        points = counted(one["points"], "restore point")
        show(printable(f"repository {one['name']} at {one['location']}: {points}{', away' if one['away'] else ''}"))
    for wish in found["verification"]:
        show(printable(_verification(wish)))
    for wish in found.get("rehearsals", ()):
        show(printable(_rehearsals(wish)))
    for row in found["vms"]:
        rehearsal = row.get("rehearsal") or {}
        if rehearsal.get("running") or rehearsal.get("passed") is False:
            show(printable(f"{row['vm']}: {rehearsal['words']}"))
    for target in found["notify"]:
        show(printable(_target(target)))
    for name, said in found["upkeep"].items():
        at, _, sentence = said.partition(" ")
        if name != "metrics":
            show(printable(f"{name}: {sentence} ({_time(at)} UTC)"))
    show("")
    show_table(
        ("VM", "POLICIES", "POINTS", "LAST", "RPO", "DUE (UTC)", "STANDING"),
        [_vm(row) for row in found["vms"]],
        right=frozenset({"POINTS"}),
    )
    for kind in ("running", "waiting"):
        for job in found["queue"][kind]:
            why = job["stage"] or job["waits_because"] or job["reason"]
            show(printable(f"{kind}: {job['kind']} of {job['vm']} ({job['policy'] or 'asked for'}): {why}"))
    for lease in found.get("leases", ()):
        way = f" by {lease['transport']}" if lease["transport"] else ""
        held = f"{lease['kind']} {lease['name']} of {lease['vm']}{way}"
        show(printable(f"held for {_seconds(lease['seconds'])}: {held}"))
    for gate in found.get("gates", ()):
        if gate["waiting"]:
            show(printable(f"{gate['waiting']} wait: {gate['what']} on {gate['place']}, {gate['held']} at a time"))
    for sentence in (*found["waits_for_a_person"], *found["problems"]):
        show(printable(f"! {sentence}"))


def _verification(wish: Mapping[str, Any]) -> str:
    points = counted(wish["points"], "restore point")
    oldest = f", the oldest reading {_ago(wish['oldest_reading'])}" if wish["oldest_reading"] else ""
    overdue = f", {wish['overdue']} OVERDUE" if wish["overdue"] else ""
    return f"policy {wish['policy']}: {points} to be read back every {_seconds(wish['every_seconds'])}{oldest}{overdue}"


def _rehearsals(wish: Mapping[str, Any]) -> str:
    overdue = f", {wish['overdue']} OVERDUE" if wish["overdue"] else ""
    failed = f", {wish['failed']} FAILED" if wish["failed"] else ""
    vms, every = counted(wish["vms"], "VM"), _seconds(wish["every_seconds"])
    return f"policy {wish['policy']}: {vms} to be rehearsed every {every}{overdue}{failed}"


def _target(target: Mapping[str, Any]) -> str:
    last = f"last told {_ago(target['last_sent'])}" if target["last_sent"] else "told nothing since the start"
    return f"notices to {target['target']}: {last}{', one is under way' if target['waiting'] else ''}"


def _vm(row: Mapping[str, Any]) -> tuple[object, ...]:
    standing = row["refusal"] or row["last_failure"] or row["standing"]
    if row["running"]:
        standing = "is being backed up"
    elif row["pending"]:
        standing = f"tries again after: {row['last_failure']}" if row["last_failure"] else "waits for its run"
    rpo = row["rpo_seconds"]
    return (
        row["vm"],
        ", ".join(row["policies"]) or "UNPROTECTED",
        row["points"],
        _ago(row["last_success"]),
        f"{_seconds(rpo)}{' LATE' if row['late'] else ''}" if rpo else "",
        _time(row["due_at"]),
        standing,
    )


def _show_repository(repository: Mapping[str, Any]) -> None:
    stored, logical = repository["stored_bytes"], repository["logical_bytes"]
    ratio = f", ratio {logical / stored:.1f}" if stored else ""
    how = "encrypted" if repository["encrypted"] else "plain"
    free = repository["free_bytes"]
    show(
        printable(
            f"repository {repository['location']} ({how}): {counted(repository['points'], 'restore point')},"
            f" {show_size(logical)} of disks in {show_size(stored)}{ratio}"
            f"{f', {show_size(free)} free' if free is not None else ''}"
        )
    )


def _time(at: str | None) -> str:
    return at[:16].replace("T", " ") if at else ""


def _ago(at: str | None) -> str:
    if not at:
        return "never"
    return f"{_seconds((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())} ago"


def _seconds(seconds: float) -> str:
    return span(timedelta(seconds=seconds))
