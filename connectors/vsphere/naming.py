"""How a snapshot of ours is named and described, so that we find ours, and only ours, after a crash."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PREFIX = "backstay"

_SAFE = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Mark:
    """What the description of a snapshot of ours says."""

    engine: str
    run: str
    started: str


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One snapshot of a VM, with the mark that it carries if it is Backstay's (of any engine)."""

    moref: str
    name: str
    created_at: datetime
    quiesced: bool
    manifest: str
    depth: int
    mark: Mark | None


def snapshot_name(engine_id: str, run: str) -> str:
    """The name of the snapshot of a run. vSphere escapes %, / and \\ in names, so the parts may not hold them."""
    for part in (engine_id, run):
        if not _SAFE.fullmatch(part):
            raise ValueError(f"{part!r} may only hold letters, digits, dots, dashes and underscores")
    return f"{PREFIX}-{engine_id}-{run}"


def snapshot_description(engine_id: str, run: str, started: datetime) -> str:
    """The description of the snapshot of a run, as JSON."""
    return json.dumps({"engine": engine_id, "run": run, "started": started.astimezone(UTC).isoformat()})


def read_mark(name: str, description: str) -> Mark | None:
    """The mark of a snapshot whose name and description agree that a Backstay made it; None for any other."""
    if not name.startswith(f"{PREFIX}-"):
        return None
    try:
        told = json.loads(description)
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    mark = Mark(str(told.get("engine", "")), str(told.get("run", "")), str(told.get("started", "")))
    return mark if name == f"{PREFIX}-{mark.engine}-{mark.run}" else None


def escaped(name: str) -> str:
    """A name as vCenter's API takes and gives it (ManagedEntity.name): percent, slash and backslash escaped."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def tree_nodes(trees: Sequence[Any] | None, depth: int = 1) -> Iterator[TreeNode]:
    """Every snapshot of a VM's rootSnapshotList, parents first."""
    for tree in trees or ():
        name = str(tree.name)
        yield TreeNode(
            moref=str(tree.snapshot._moId),
            name=name,
            created_at=tree.createTime,
            quiesced=bool(tree.quiesced),
            manifest=str(tree.backupManifest or ""),
            depth=depth,
            mark=read_mark(name, str(tree.description or "")),
        )
        yield from tree_nodes(tree.childSnapshotList, depth + 1)
