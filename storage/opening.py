"""From a location to what a repository is made of: the store, config and keys, and the folder for private things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from storage import config as configs
from storage.blobs import Blobs, LocalBlobs, translated
from storage.creation import FOLDERS
from storage.errors import Damaged, NoRepository
from storage.objects import ObjectBlobs
from storage.owner import Ownership
from storage.places import ObjectPlace, Place, open_blobs
from storage.sealing import Sealing


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository with its owner's lock taken.

    `work` holds what is derived and private: index, catalog, spool, lock. It is the repository's own directory, or
    one of this machine where the repository lies in an object store. `private` keeps small blobs there.
    """

    place: Place
    work: Path
    blobs: Blobs
    private: Blobs
    config: configs.Config
    sealing: Sealing
    ownership: Ownership

    @property
    def shared(self) -> bool:
        """Whether other processes may write this store, too."""
        return isinstance(self.place, ObjectPlace)


def open_store(
    place: Place, *, passphrase: Callable[[], str] | None, now: datetime, owner: str, blobs: Blobs | None = None
) -> Opened:
    """NoRepository, Locked, WrongKey, Unsupported, Damaged, AccessRefused, StoreFailed."""
    if isinstance(place, ObjectPlace):
        return _open_objects(place, passphrase, now, owner, blobs)
    blobs = blobs or LocalBlobs(place)
    if not place.is_dir():
        raise NoRepository("there is no repository here", where=str(place), hint="make one with: backstay repo init")
    config, sealing = configs.load(blobs, passphrase)
    for name in FOLDERS[1:4]:
        if not (place / name).is_dir():
            raise Damaged("this folder is gone", where=str(place / name), hint="put it back; if it was empty, make it")
    return Opened(place, place, blobs, blobs, config, sealing, Ownership(place, owner, now))


def _open_objects(
    place: ObjectPlace, passphrase: Callable[[], str] | None, now: datetime, owner: str, blobs: Blobs | None
) -> Opened:
    store = open_blobs(place) if blobs is None else blobs
    try:
        config, sealing = configs.load(store, passphrase)
    except NoRepository:
        if isinstance(store, ObjectBlobs):
            store.check()  # a missing bucket looks like a missing blob
        raise
    work = place.work_folder(sealing.repository)
    with translated(str(work)):
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        (work / "spool").mkdir(exist_ok=True)
    if isinstance(store, ObjectBlobs):
        store.spool = work / "spool"
    ownership = Ownership(work, owner, now, place=str(place))
    return Opened(place, work, store, LocalBlobs(work), config, sealing, ownership)
