"""What a power cut may leave: what was not synced is dropped, reordered, torn.

Strict on purpose: a file's sync does not keep its name, a folder's sync does; each write and each name that nobody
synced survives or not, by itself; a write survives in part, in sectors. Only a rename within a folder happens as one.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from engine.state import State
from tests.crash.aftermath import after_a_crash
from tests.crash.recorded import job
from tests.crash.recording import ROOT, Ack, Move, Name, Operation, Recording, Sync, Truncate, Unname, Write
from tests.crash.scenes import Scene
from tests.crash.stages import Stage
from tests.storage_kit import NOW

SECTOR = 512

Fate = Callable[[int, Operation], float]
"""Which part of an operation that was not synced survives: 0 to 1. Only writes survive in part."""


@dataclass(frozen=True)
class Cut:
    """A moment, and a way in which what was not synced survives: `none`, `all`, `names`, `data`, or a seed."""

    at: int
    way: str

    def __str__(self) -> str:
        return f"{self.at}-{self.way}"


WAYS = ("none", "all", "names", "data", "torn")


def cuts(recording: Recording, seeds: range) -> Iterator[Cut]:
    """Every moment after which something differs, in every way, and in as many random ones as there are seeds."""
    for at in range(1, len(recording.operations) + 1):
        if not isinstance(recording.operations[at - 1], Ack):
            for way in (*WAYS, *map(str, seeds)):
                yield Cut(at, way)


def told(recording: Recording, cut: Cut) -> list[str]:
    """What the process had been told before the cut."""
    return [one.said for one in recording.operations[: cut.at] if isinstance(one, Ack)]


def left(recording: Recording, cut: Cut) -> dict[str, bytes | None]:
    """Every path that the cut leaves, with its content; None for a folder."""
    folders = {number: dict(names) for number, names in recording.folders.items()}
    contents = {number: bytearray(data) for number, data in recording.contents.items()}
    fate = _fate(cut)
    durable = _durable(recording, cut.at)
    survived: dict[int, bool] = {}
    for place, one in enumerate(recording.operations[: cut.at]):
        share = 1.0 if place in durable else fate(place, one)
        if isinstance(one, Unname) and one.after >= 0 and not survived[one.after]:
            share = 0.0
        survived[place] = share > 0
        if share > 0:
            _do(one, share, folders, contents)
    found: dict[str, bytes | None] = {}
    _walk(ROOT, "", folders, contents, found)
    return found


def after_a_cut(
    recording: Recording, cut: Cut, stage: Stage, scene: Scene | None, folder: Path, *, thorough: bool
) -> None:
    """Make what a cut leaves, below a new folder, and look at it; a cut through the engine's state has no scene."""
    lay_out(left(recording, cut), folder)
    said = told(recording, cut)
    if scene is None:
        _state_is_sound(folder / "state", said)
    else:
        after_a_crash(folder / "repo", stage, scene, told=said, most=len(scene.made), thorough=thorough)
    shutil.rmtree(folder)


def _state_is_sound(state_dir: Path, said: list[str]) -> None:
    """It opens, with all that was acknowledged, or it says why it starts empty; and it can be written."""
    state = State(state_dir, now=NOW)
    try:
        known = set(state.job_keys(NOW).values())
        if not state.fresh:
            assert {one.split()[1] for one in said if one.startswith("saved")} <= known, "a job is forgotten silently"
        else:
            assert state.why_fresh
        state.save_job(job(99))
    finally:
        state.close()


def digest(found: dict[str, bytes | None]) -> bytes:
    """The same for the same state, whatever random names its files have."""
    hasher = blake2b(digest_size=16)
    for path, data in sorted(found.items()):
        hasher.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        hasher.update(data or b"")
    return hasher.digest()


def lay_out(found: dict[str, bytes | None], folder: Path) -> None:
    """Make the files."""
    folder.mkdir()
    for path, data in sorted(found.items()):
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


def _durable(recording: Recording, at: int) -> set[int]:
    synced: dict[int, int] = {}
    for one in recording.operations[:at]:
        if isinstance(one, Sync):
            synced[one.file] = max(synced.get(one.file, 0), one.covers)
    durable = set()
    for place, one in enumerate(recording.operations[:at]):
        match one:
            case Write(file=file) | Truncate(file=file):
                pass
            case Name(folder=file) | Unname(folder=file) | Move(folder=file):
                pass
            case _:
                continue
        if place < synced.get(file, 0):
            durable.add(place)
    return durable


def _fate(cut: Cut) -> Fate:
    match cut.way:
        case "none":
            return lambda place, one: 0.0
        case "all":
            return lambda place, one: 1.0
        case "names":
            return lambda place, one: float(isinstance(one, Name | Unname | Move))
        case "data":
            return lambda place, one: float(isinstance(one, Write | Truncate))
        case "torn":
            return lambda place, one: 0.5 if isinstance(one, Write) else 1.0
        case seed:
            chance = random.Random(f"{cut.at} {seed}")
            share = chance.choice((0.2, 0.5, 0.8))

            def fate(place: int, one: Operation) -> float:
                if chance.random() > share:
                    return 0.0
                return chance.random() if isinstance(one, Write) and chance.random() < 0.3 else 1.0

            return fate


def _do(one: Operation, share: float, folders: dict[int, dict[str, int]], contents: dict[int, bytearray]) -> None:
    match one:
        case Write(file, offset, data):
            if share < 1:
                data = data[: max(int(len(data) * share) // SECTOR, 0) * SECTOR]
            content = contents.setdefault(file, bytearray())
            if len(content) < offset + len(data) and data:
                content.extend(bytes(offset + len(data) - len(content)))
            content[offset : offset + len(data)] = data
        case Truncate(file, size):
            content = contents.setdefault(file, bytearray())
            del content[size:]
            content.extend(bytes(size - len(content)))
        case Name(folder, name, file, makes_folder):
            if makes_folder:
                folders.setdefault(file, {})
            folders.setdefault(folder, {})[name] = file
        case Unname(folder, name):
            folders.setdefault(folder, {}).pop(name, None)
        case Move(folder, old, new, file):
            names = folders.setdefault(folder, {})
            if names.get(old) == file:
                del names[old]
            names[new] = file
        case _:
            pass


def _walk(
    number: int,
    path: str,
    folders: dict[int, dict[str, int]],
    contents: dict[int, bytearray],
    found: dict[str, bytes | None],
) -> None:
    for name, below in folders[number].items():
        if below in folders:
            found[path + name] = None
            _walk(below, f"{path}{name}/", folders, contents, found)
        else:
            found[path + name] = bytes(contents.get(below, b""))
