"""What a SELECT may name of a repository. `vm` is a name and `vm_id` an id in every view, as in all our JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow

from storage.catalog_rows import VIEWS
from storage.repository import Repository

_RENAMED = {"restore_points": {"vm": "vm_id", "vm_name": "vm"}, "vms": {"id": "vm_id", "name": "vm"}}


def repository_views(repository: Repository) -> Mapping[str, Callable[[], Any]]:
    """For each view the function that gives a reader of its rows as Arrow batches; blocking, safe in any thread."""
    return {name: partial(_rows, repository, name) for name in VIEWS}


def _rows(repository: Repository, name: str) -> pyarrow.RecordBatchReader:
    reader = repository.opened_catalog().export_view(name)
    renamed = _RENAMED.get(name, {})
    names = [renamed.get(column, column) for column in reader.schema.names]
    schema = pyarrow.schema([field.with_name(to) for field, to in zip(reader.schema, names, strict=True)])
    return pyarrow.RecordBatchReader.from_batches(schema, (batch.rename_columns(names) for batch in reader))
