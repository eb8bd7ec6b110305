"""From a location to what a repository is made of: the store, config and keys, and the folder for private things."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from storage import config as configs
from storage.blobs import Blobs, LocalBlobs
from storage.creation import FOLDERS
from storage.errors import Damaged, NoRepository, WrongKey
from storage.filecalls import translated
from storage.keeping import OWNED_MODE, Terms, made_by_owner, terms_of
from storage.objectlock import ObjectLocks
from storage.owner import Ownership
from storage.places import ObjectPlace, Place, default_state_dir, open_blobs, parse_place
from storage.sealing import Sealing


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository with its owner's lock taken.

    `work` holds what is derived and private: index, catalog, spool, lock. It is the repository's own directory, or
    one of this machine and user where the repository lies in an object store or is append-only. `private` keeps small
    blobs there. `append_only` is for a user who may only add; `trusted` tells of a name in the store whether the
    repository's owner wrote it.
    """

    place: Place
    work: Path
    blobs: Blobs
    private: Blobs
    config: configs.Config
    sealing: Sealing
    ownership: Ownership
    locks: ObjectLocks | None = None
    append_only: bool = False
    trusted: Callable[[str], bool] = lambda name: True

    @property
    def shared(self) -> bool:
        """Whether other processes may write this store, too."""
        return self.work != self.place


def open_checked(
    location: Place | str,
    *,
    passphrase: Callable[[], str] | None,
    now: datetime,
    owner: str,
    blobs: Blobs | None = None,
    state_dir: Path | None = None,
    must_be_encrypted: bool = False,
) -> Opened:
    """As `open_store`, with the config mended where it is damaged; WrongKey for a plain one that must be encrypted."""
    place = parse_place(location) if isinstance(location, str) else location
    opened = open_store(place, passphrase=passphrase, now=now, owner=owner, blobs=blobs, state_dir=state_dir)
    try:
        if must_be_encrypted and not opened.config.encrypted:
            raise WrongKey(
                "there is a passphrase for this repository, but it is not encrypted",
                where=str(place),
                hint="name no passphrase if it is meant to be plain",
            )
        if not opened.append_only:
            configs.mend(opened.blobs, opened.config, opened.sealing)
    except BaseException:
        opened.ownership.release()
        raise
    return opened


def open_store(
    place: Place,
    *,
    passphrase: Callable[[], str] | None,
    now: datetime,
    owner: str,
    blobs: Blobs | None = None,
    state_dir: Path | None = None,
) -> Opened:
    """NoRepository, Locked, WrongKey, Unsupported, Damaged, AccessRefused, Refused, StoreFailed.

    `state_dir` is for the private things of an append-only repository.
    """
    if isinstance(place, ObjectPlace):
        return _open_objects(place, passphrase, now, owner, blobs)
    terms = terms_of(place) if blobs is None else None
    if terms is not None:
        return _open_kept(place, terms, passphrase, now, owner, state_dir or default_state_dir())
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
    from storage.objects import ObjectBlobs

    store = open_blobs(place) if blobs is None else blobs
    try:
        config, sealing = configs.load(store, passphrase)
    except NoRepository:
        if isinstance(store, ObjectBlobs):
            store.check()  # a missing bucket looks like a missing blob
        raise
    locks = ObjectLocks(place) if place.object_lock else None
    if locks is not None:
        locks.check()
    work = _work_folder(place.state_dir, sealing)
    if isinstance(store, ObjectBlobs):
        store.spool = work / "spool"
        store.locks = locks
    ownership = Ownership(work, owner, now, place=str(place))
    return Opened(place, work, store, LocalBlobs(work), config, sealing, ownership, locks)


def _open_kept(
    place: Path, terms: Terms, passphrase: Callable[[], str] | None, now: datetime, owner: str, state_dir: Path
) -> Opened:
    """An append-only repository: by its owner directly, by anybody else through its keeper."""
    from storage.kept import KeptBlobs

    owning = os.geteuid() == terms.owner_uid
    store: Blobs
    if owning:
        store = files = LocalBlobs(place, mode=OWNED_MODE)
        files.spool = place / "spool" / "owner"  # the spool itself is the keeper's, which cleans it
    else:
        store = KeptBlobs(place, terms)
    config, sealing = configs.load(store, passphrase)
    work = _work_folder(state_dir, sealing)
    ownership = Ownership(work, owner, now, place=str(place))
    trusted = partial(made_by_owner, place)
    return Opened(
        place, work, store, LocalBlobs(work), config, sealing, ownership, append_only=not owning, trusted=trusted
    )


def _work_folder(state_dir: Path, sealing: Sealing) -> Path:
    """Where what is derived and private lies: lookup index, catalog, spool, the owner's lock."""
    work = state_dir / "catalogs" / sealing.repository.hex()
    with translated(str(work)):
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        (work / "spool").mkdir(exist_ok=True)
    return work
