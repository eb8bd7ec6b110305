"""The repositories of an engine: its own, and further ones that policies name as their destination.

A further one may be away: not opened yet, or not to be opened. That stops only what needs it. All restore points of a
VM count together, wherever they are. One that two repositories have counts where it is found first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from engine.config import Config
from engine.failures import BadInput
from engine.stores import RepositorySection
from policies.facts import PointId, RestorePoint, VmId
from storage.errors import UNREADABLE, NoSuchPoint, StorageError, StoreFailed
from storage.points import resolve
from storage.repository import Repository, open_repository

log = logging.getLogger("engine.repositories")


class Away(StoreFailed):
    """A further repository is not open; it may be the next time."""


def open_section(section: RepositorySection, state_dir: Path, now: Callable[[], datetime], owner: str) -> Repository:
    """The repository that a section of the configuration tells. Blocking."""
    passphrase = section.passphrase
    return open_repository(
        section.place(state_dir),
        passphrase=passphrase.read if passphrase is not None else None,
        must_be_encrypted=passphrase is not None,
        now=now,
        owner=owner,
    )


@dataclass(slots=True)
class Repositories:
    """See the module. Its methods block, and are called from any thread.

    `away` tells of each that is not open why, `silent` of each that is open and did not answer when it was asked last.
    """

    first: Repository
    more: dict[str, Repository] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[str, Repository]]:
        """Those that are open, by name; the engine's own is "" and comes first."""
        yield "", self.first
        yield from sorted(self.more.items())

    def named(self, name: str) -> Repository:
        """The one of this name; Away when it is not open."""
        if not name:
            return self.first
        if name in self.more:
            return self.more[name]
        why = self.away.get(name, f"the configuration has no [repositories.{name}]")
        raise Away(f"repository {name} is away: {why}")

    def at(self, location: str) -> str:
        """The name of the one at this place; the engine's own for "". BadInput when none is."""
        for name, repository in self.each():
            if not location or _real(str(repository.location)) == _real(location):
                return name
        raise BadInput("the engine has no repository open there", where=location)

    def home(self, point: PointId) -> Repository:
        """Where a restore point is; the engine's own when nowhere, whose errors then tell so.

        One that does not answer hides none of another: its error is raised when the point is in no other.
        """
        if not self.more:
            return self.first
        trouble: StorageError | None = None
        for _, repository in self.each():
            try:
                if _has(repository, point):
                    return repository
            except StorageError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return self.first

    def find(self, reference: str) -> PointId:
        """The restore point that an id, the beginning of an id, or NAME@latest means; NoSuchPoint."""
        if not (self.more or self.away):
            return self.first.find(reference)
        ids: set[PointId] = set()
        untold = dict(self.away)
        for name, repository in self.each():
            try:
                ids |= repository.point_ids() | repository.marks.lost()
            except StorageError as error:
                if not name:
                    raise
                untold[name] = str(error)
        try:
            return resolve(reference, ids, self.points)
        except NoSuchPoint as error:
            if not untold:
                raise
            names = ", ".join(sorted(untold))
            raise NoSuchPoint(error.what, where=error.where, hint=f"what is in {names} is not known now") from None

    def name_of(self, repository: Repository) -> str:
        """The name of an open one."""
        return next(name for name, one in self.each() if one is repository)

    def there(self) -> dict[str, set[PointId]]:
        """What each has now by its own store, whatever is remembered of it; nothing where one does not answer."""
        found: dict[str, set[PointId]] = {}
        for name, repository in self.each():
            try:
                found[name] = repository.point_ids()
            except StorageError as error:
                log.error("repository does not answer", extra={"repository": name, "why": str(error)})
                self.silent[name], found[name] = str(error), set()
            else:
                self.silent.pop(name, None)
        return found

    def good_beside(self, point: PointId, vm: VmId) -> bool:
        """Whether the VM has another complete and undamaged restore point, in whichever repository."""
        for other in self.points(vm):
            if other.id != point and other.complete and not other.damaged:
                with suppress(StorageError):
                    if _has(self.named(other.repository), other.id):
                        return True
        return False

    def points(
        self, vm: VmId | None = None, *, known: Mapping[VmId, tuple[RestorePoint, ...]] | None = None
    ) -> list[RestorePoint]:
        """All restore points, or those of one VM, oldest first; see `listing`."""
        return self.listing(vm, known=known)[0]

    def listing(
        self, vm: VmId | None = None, *, known: Mapping[VmId, tuple[RestorePoint, ...]] | None = None
    ) -> tuple[list[RestorePoint], frozenset[str]]:
        """The same, and which repositories answered.

        Of a further repository that does not answer, or is away, those count that are `known`.
        """
        if not (self.more or self.away):
            return self.first.points(vm), frozenset({""})
        found: dict[PointId, RestorePoint] = {}
        answered: set[str] = set()
        for name, repository in self.each():
            try:
                listed = repository.points(vm)
                answered.add(name)
            except StorageError as error:
                if not name:
                    raise
                log.warning("repository not listed", extra={"repository": name, "why": str(error)})
                listed = self._known(name, vm, known or {})
            for point in listed:
                found.setdefault(point.id, replace(point, repository=name) if name else point)
        for name in [*self.away]:
            for point in self._known(name, vm, known or {}):
                found.setdefault(point.id, point)
        return sorted(found.values(), key=lambda point: (point.taken_at, point.id)), frozenset(answered)

    def _known(self, name: str, vm: VmId | None, known: Mapping[VmId, tuple[RestorePoint, ...]]) -> list[RestorePoint]:
        several = known.values() if vm is None else [known.get(vm, ())]
        return [point for points in several for point in points if point.repository == name]

    def open_away(self, config: Config, opened: Callable[[RepositorySection], Repository]) -> list[str]:
        """Try to open those that are away; the names of those that are open now."""
        done = []
        for name in [*self.away]:
            try:
                self.more[name] = opened(config.repositories[name])
            except (StorageError, BadInput) as error:
                if self.away[name] != str(error):
                    log.error("repository away", extra={"repository": name, "why": str(error)})
                self.away[name] = str(error)
            else:
                del self.away[name]
                done.append(name)
        return done

    def close(self) -> None:
        """Close all but the engine's own."""
        while self.more:
            name, repository = self.more.popitem()
            with suppress(StorageError):
                repository.close()
            self.away[name] = "the engine ends"


def _has(repository: Repository, point: PointId) -> bool:
    try:
        repository.manifest(point)
    except NoSuchPoint:
        return False
    except UNREADABLE:
        return True
    return True


def _real(place: str) -> str:
    return place.rstrip("/") if "://" in place else os.path.realpath(place)
