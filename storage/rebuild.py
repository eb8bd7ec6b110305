"""Making the derived parts again, catalog and lookup index, from packs, manifests and marks alone."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from storage.errors import StorageError, Unsupported
from storage.failpoints import failpoint
from storage.filecalls import translated
from storage.places import Place
from storage.repository import Repository, open_repository

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What the new catalog holds."""

    points: int
    packs: int
    chunks: int


def rebuild(
    location: Place | str,
    *,
    now: Callable[[], datetime] | datetime,
    passphrase: Callable[[], str] | None = None,
    owner: str = "rebuild",
) -> RebuildReport:
    """Throw catalog and index of a repository that nobody holds away, and make them again."""
    with open_repository(location, now=now, passphrase=passphrase, owner=owner) as repository:
        _hear_witness(repository)  # nobody else has it, the key is right, and interrupted work is finished
        with translated(str(location)):
            shutil.rmtree(repository.work / "index", ignore_errors=True)
    failpoint("rebuild.index_removed")
    with open_repository(location, now=now, passphrase=passphrase, owner=owner) as repository:
        return rebuild_catalog(repository)


def _hear_witness(repository: Repository) -> None:
    """Let a catalog that can be read tell of lost restore points before it goes."""
    try:
        repository.opened_catalog()
    except StorageError as error:
        log.warning("the old catalog tells nothing: %s", error)


def rebuild_catalog(repository: Repository) -> RebuildReport:
    """Make the catalog of an open repository again; backups may be under way."""
    with repository.maintenance:
        try:
            repository.opened_catalog()
        except Unsupported as error:  # a newer one is never changed, but it is only derived: it can be made anew
            log.warning("catalog replaced: %s", error)
            repository.catalog.rebuild()
            repository.catalog.close()
            repository.opened_catalog()
        else:
            repository.catalog.rebuild()
        sizes = repository.sizes()
    return RebuildReport(sizes.points, sizes.packs, sizes.chunks)
