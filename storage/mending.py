"""Marks that are not what was written are written anew, as a further object, from what the catalog remembers of them.

What nobody remembers is taken for what keeps more: a hold or a lock for a hold, a loss for a loss. The rest is only
removed: an expiry clock begins anew, a release holds again, a verification is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from policies.facts import PointId
from storage import marks
from storage.catalog_loading import Changes
from storage.catalog_rows import mark_of
from storage.damage import Damage
from storage.errors import UNREADABLE, Damaged, Missing, StorageError, Unsupported
from storage.marks import Mark, MarkKind
from storage.parallel import for_each
from storage.pointmarks import READERS
from storage.repository import Repository

log = logging.getLogger(__name__)


def check_marks(repo: Repository) -> list[Damage]:
    """Read every mark; mend those that are damaged."""
    return [_judge(repo, key, error) for key, error in _unsound(repo, sorted(repo.blobs.list(marks.PREFIX)))]


def _unsound(repo: Repository, keys: Iterable[str]) -> Iterable[tuple[str, Damaged | Unsupported]]:
    found: dict[str, Damaged | Unsupported] = {}

    def look(key: str) -> None:
        try:
            repo.marks.read(key)
        except Missing:
            pass  # removed since it was listed, as an expiry does
        except UNREADABLE as error:
            found[key] = error

    for_each(keys, lambda: look, READERS if repo.shared else 1)
    return sorted(found.items())


def _judge(repo: Repository, key: str, error: Damaged | Unsupported) -> Damage:
    points = (PointId(key.split("/")[1]),)
    try:
        marks.parse_key(key)
    except Damaged:
        return Damage(key, "", points, error.what)  # not ours to touch
    try:
        return Damage(key, "", points, error.what, mended=_mend(repo, key, certain=isinstance(error, Damaged)))
    except StorageError as trouble:
        log.error("damaged mark stays: %s", trouble)
        return Damage(key, "", points, error.what)


def _mend(repo: Repository, key: str, *, certain: bool) -> str:
    point, sequence, kind = marks.parse_key(key)
    remembered = [mark_of(row) for row in repo.opened_catalog().query("SELECT * FROM marks WHERE name = ?", [key])]
    if not certain and not remembered:
        return ""  # it may be of a newer version
    guarded = [mark for mark in repo.marks.of(point) if mark.key == key]  # as it is taken while it is unreadable
    source = next(iter(remembered + guarded), None)
    anew: list[Mark] = []
    # Where the damaged one could not be removed, it was written anew before.
    done = any(mark.sequence == sequence and mark.key != key for mark in repo.marks.of(point))
    if source is not None and kind is not MarkKind.EXPIRED and not done:
        anew.append(marks.new_mark(point, sequence, source.kind, source.at, source.text, source.until))
        repo.marks.put_back(anew[0])
    damaged = Mark(key, point, sequence, kind, repo.now())
    repo.marks.drop([damaged])
    repo.tell_catalog(Changes(marks=anew, gone_marks=[key]))
    if remembered and anew:
        return "written anew as the catalog remembers it"
    return f"replaced by a {anew[0].kind}" if anew else "removed"
