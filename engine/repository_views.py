"""What a SELECT may name of a repository. `vm` is a name and `vm_id` an id in every view, as in all our JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from storage.repository import Repository

VIEWS = ("restore_points", "vms", "disks", "packs", "chunks", "marks")

_RENAMED = {"restore_points": {"vm": "vm_id", "vm_name": "vm"}}


def repository_views(repository: Repository) -> Mapping[str, Callable[[], Any]]:
    """For each view the function that gives its rows as Arrow; blocking, safe in any thread."""
    return {name: lambda name=name: _rows(repository, name) for name in VIEWS}  # type: ignore[misc]


def _rows(repository: Repository, name: str) -> Any:
    table = repository.opened_catalog().export_views()[name]
    renamed = _RENAMED.get(name, {})
    return table.rename_columns([renamed.get(column, column) for column in table.column_names])
