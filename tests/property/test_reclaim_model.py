"""Two writers, reclaims and a restore on one shared store: every schedule with few switches, on the real code.

Each process has a repository of its own over the same blobs; each operation that another can notice is a step.
Whatever the order, every restore point that was committed reads back as it was written, and so does the restore.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from policies.facts import PointId
from storage import commitment, pagetable, pointmarks, roots
from storage.errors import Overtaken, Refused, StorageError
from storage.format import Pieced
from storage.places import ObjectPlace
from storage.reclaim import SafetyAges, Thresholds, carry_out, plan_reclaim
from storage.repository import Repository, open_repository
from tests.interleaving import Gate, Store, StoreInMemory, Turns
from tests.storage_kit import BLOCK, NOW, back_up, changed, image, later, make, read_back

EAGER = Thresholds(dead_share=0.01)
SOAK = bool(os.environ.get("BACKSTAY_SOAK"))
pytestmark = pytest.mark.timeout(4 * 3600 if SOAK else 180)
DAY_SECONDS = 25 * 3600
LARGE = 64 << 10


class NoCatalog:
    """A catalog that knows nothing and is no witness: the model is about the store."""

    witness = False

    def point_ids(self) -> set[PointId]:
        return set()

    def points(self, vm: object = None) -> list[object]:
        return []

    def apply(self, changes: object) -> bool:
        return True

    def catch_up(self) -> None:
        return None

    def close(self) -> None:
        return None

    def query(self, sql: str, parameters: object = ()) -> list[object]:
        return []


@dataclass
class Scene:
    """A store, what its restore points hold, and folders for the processes."""

    store: Store
    folder: Path
    disks: dict[str, bytearray]
    points: dict[str, PointId]
    pages: bytes = b""
    """The table of pages that every process begins with."""


@dataclass
class World:
    """One playing of a scene: what was committed in it."""

    scene: Scene
    store: Store
    committed: dict[PointId, bytearray]
    folder: Path
    repositories: dict[str, Repository] = field(default_factory=dict)

    def open(self, name: str, gate: Gate = lambda what: None) -> Repository:
        """A process of its own over the same store. `gate` holds from its first step after opening on."""
        blobs = StoreInMemory(self.store)
        place = ObjectPlace("s3", "model", state_dir=self.folder / name)
        repo = open_repository(place, now=NOW, blobs=blobs)
        repo.catalog = NoCatalog()  # type: ignore[assignment]
        repo._catalog_open = True
        if self.scene.pages:
            repo.private.replace(pagetable.KEY, self.scene.pages)
        blobs.gate = gate
        self.repositories[name] = repo
        return repo


Actor = Callable[[World, Repository], None]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A point that stays and shares a block with one that is gone; the rest of that one's packs is dead."""
    local = make(tmp_path / "r")
    store = Store()
    for path in sorted(local.rglob("*")):
        if path.is_file() and path.name.startswith("config"):
            store.blobs[path.name] = (path.read_bytes(), store.seconds)
    gone = image(1, 3, used=1.0)
    kept = changed(gone, 2, [1, 2])
    base = changed(gone, 3, [0])
    made = Scene(store, tmp_path, {"gone": gone, "kept": kept, "base": base}, {})
    world = World(made, store, {}, tmp_path / "before")
    with world.open("before") as repo:
        made.points["gone"] = back_up(repo, gone, vm="gone").id
        made.points["kept"] = back_up(repo, kept, vm="kept").id
        made.points["base"] = back_up(repo, base, vm="base").id
        repo.expire(made.points["gone"], "old", NOW)
    store.seconds += DAY_SECONDS
    monkeypatch.setattr(time, "clock_gettime", lambda clock: world.store.seconds)
    return made


@pytest.fixture
def pieced_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The same with large blocks: pages of two points that are gone come back elsewhere within their blocks.

    What `moved` has was in `gone`; `base` has piece lists of what was in `other`, and `kept` one block of each.
    """
    local = make(tmp_path / "r", block_bytes=LARGE)
    store = Store()
    for path in sorted(local.rglob("*")):
        if path.is_file() and path.name.startswith("config"):
            store.blobs[path.name] = (path.read_bytes(), store.seconds)
    chance = random.Random(5)
    gone, other = (bytearray(chance.randbytes(3 * LARGE)) for _ in range(2))
    aside = bytearray(chance.randbytes(3 * 4096))
    disks: dict[str, bytearray] = {"gone": gone, "other": other, "kept": gone[:LARGE] + other[:LARGE]}
    disks |= {"base": other[-LARGE // 2 :] + other[: -LARGE // 2], "moved": aside + gone[: -len(aside)]}
    made = Scene(store, tmp_path, disks, {})
    world = World(made, store, {}, tmp_path / "before")
    with world.open("before") as repo:
        for name in ("gone", "other", "kept", "base"):
            made.points[name] = back_up(repo, disks[name], vm=name).id
        for name in ("gone", "other"):
            repo.expire(made.points[name], "old", NOW)
        made.pages = repo.private.get(pagetable.KEY)
        assert pieced(repo, made.points["base"]) == 3
    store.seconds += DAY_SECONDS
    monkeypatch.setattr(time, "clock_gettime", lambda clock: world.store.seconds)
    return made


def pieced(repo: Repository, point: PointId) -> int:
    """How many blocks of a restore point have piece lists."""
    leaves = repo.read_disk(point, "Hard disk 1").leaves()
    return sum(isinstance(id_, Pieced) for _, children in leaves for id_ in children.values())


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process dies here, so what is private need not be durable, and small listings need no threads."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(pointmarks, "for_each", _one_after_the_other)


def _one_after_the_other(items: Iterable[Any], worker: Callable[[], Callable[[Any], None]], threads: int) -> None:
    work = worker()
    for item in items:
        work(item)


def _folder() -> Path:
    """A folder for the private things of one playing, in memory where there is such a place."""
    shm = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="backstay-model-", dir=shm if shm.is_dir() else None))


def writes(disk: str, *, base: str | None = None, blocks: Sequence[int] = (0,)) -> Actor:
    """A writer that learns of the packs, then commits this disk; what is said to be overtaken is not committed."""

    def act(world: World, repo: Repository) -> None:
        repo.refresh()
        data = world.scene.disks[disk]
        on = world.scene.points[base] if base else None
        try:
            point = back_up(repo, data, vm=f"new {disk}", base=on, blocks=blocks if base else None)
        except Overtaken:
            return
        except StorageError as error:
            assert base, error  # the base was forgotten before it was taken
            return
        world.committed[point.id] = data

    return act


def expires(name: str) -> Actor:
    """Somebody forgets a restore point."""

    def act(world: World, repo: Repository) -> None:
        world.committed.pop(world.scene.points[name], None)
        repo.expire(world.scene.points[name], "old", NOW)

    return act


def reclaims(*, age: timedelta = timedelta(0), days: int = 0, times: int = 1) -> Actor:
    """A reclaim; between two runs of it time goes by."""

    def act(world: World, repo: Repository) -> None:
        for again in range(times):
            if again:
                world.store.seconds += days * DAY_SECONDS
            try:
                carry_out(repo, plan_reclaim(repo, later(days=3650), SafetyAges(age), EAGER), NOW)
            except Refused:
                continue  # it may always be careful

    return act


def restores(name: str) -> Actor:
    """A restore of a point that stays, whatever happens to its packs meanwhile."""

    def act(world: World, repo: Repository) -> None:
        disk = repo.read_disk(world.scene.points[name], "Hard disk 1")
        expected = world.scene.disks[name]
        for start in range(0, len(expected), BLOCK):
            part = bytearray(BLOCK)
            disk.read_into(start, memoryview(part))
            assert part == expected[start : start + BLOCK], "a restore read something else"

    return act


def play(scene: Scene, actors: Mapping[str, Actor], order: tuple[str, ...], forced: Mapping[int, str]) -> Turns:
    """One schedule from the beginning; afterwards everything that was committed must read back."""
    names = [name for name in ("kept", "base") if name in scene.points]
    committed = {scene.points[name]: scene.disks[name] for name in names}
    world = World(scene, scene.store.copy(), committed, _folder())
    time.clock_gettime = lambda clock: world.store.seconds
    turns = Turns(order, forced)
    opened = {name: world.open(name, turns.gate(name)) for name in actors}

    def acting(name: str) -> Callable[[], None]:
        return lambda: actors[name](world, opened[name])

    try:
        turns.play({name: acting(name) for name in actors})
        for name in actors:
            opened[name].blobs.gate = lambda what: None  # type: ignore[attr-defined]
            opened[name].close()
        with world.open("after") as repo:
            there = repo.point_ids()
            assert set(world.committed) <= there, "a restore point is gone"
            for point in there:
                expected = world.committed.get(point)
                found = read_back(repo, point)
                assert expected is None or found == expected
    except BaseException as error:
        story = [f"{at:3} {actor}: {what}" for at, (actor, what, _) in enumerate(turns.trace)]
        raise AssertionError("\n".join([f"order {order}, switches {dict(forced)}: {error!r}", *story])) from error
    finally:
        for repo in world.repositories.values():
            repo.close()
        shutil.rmtree(world.folder)
    return turns


def schedules(
    run: Callable[[tuple[str, ...], Mapping[int, str]], Turns],
    actors: Mapping[str, Actor],
    switches: int,
    stride: int,
) -> Iterator[None]:
    """Play every order of the actors, and in each every set of at most so many forced switches.

    With a stride only every so-many-th step is one at which a switch is forced, each order beginning at another.
    """

    def deeper(order: tuple[str, ...], forced: dict[int, str], left: int, start: int) -> Iterator[None]:
        trace = run(order, forced).trace
        yield
        if left:
            for at in range(max(forced, default=-1) + 1 + start, len(trace), stride):
                for other in trace[at][2]:
                    yield from deeper(order, {**forced, at: other}, left - 1, 0)

    for number, order in enumerate(itertools.permutations(actors)):
        yield from deeper(order, {}, switches, number % stride)


SCRIPTS: dict[str, tuple[int, int, dict[str, Actor]]] = {
    "a writer finds chunks in packs that a reclaim frees": (2, 1, {"writer": writes("gone"), "reclaim": reclaims()}),
    "a writer builds on a point that expires": (
        1,
        9,
        {"writer": writes("base", base="base"), "expiry": expires("base"), "reclaim": reclaims()},
    ),
    "two writers and a reclaim": (
        1,
        9,
        {"one": writes("gone"), "two": writes("gone"), "reclaim": reclaims()},
    ),
    "two reclaims and a restore": (
        1,
        9,
        {"one": reclaims(), "two": reclaims(), "restore": restores("kept")},
    ),
    "two writers, a reclaim in two phases a day apart, and a restore": (
        1,
        60,
        {
            "one": writes("gone"),
            "two": writes("base", base="base"),
            "reclaim": reclaims(age=timedelta(hours=24), days=1, times=3),
            "restore": restores("kept"),
        },
    ),
}
"""How many switches are forced, at every how-many-th step (at every one in a soak), and the actors."""

PIECED: dict[str, tuple[int, int, dict[str, Actor]]] = {
    "a writer makes lists of chunks in packs that a reclaim frees": (
        1,
        2,
        {"writer": writes("moved"), "reclaim": reclaims()},
    ),
    "a writer keeps lists of a point that expires": (
        1,
        9,
        {
            "writer": writes("base", base="base", blocks=range(3)),
            "expiry": expires("base"),
            "reclaim": reclaims(),
        },
    ),
    "two writers make the same lists beside a reclaim in two phases": (
        1,
        200,
        {
            "one": writes("moved"),
            "two": writes("moved"),
            "reclaim": reclaims(age=timedelta(hours=24), days=1, times=3),
            "restore": restores("base"),
        },
    ),
}


def _play_all(scene: Scene, script: str) -> int:
    switches, stride, actors = (SCRIPTS | PIECED)[script]
    played = schedules(
        lambda order, forced: play(scene, actors, order, forced), actors, switches, 1 if SOAK else stride
    )
    return sum(1 for _ in played)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_was_committed_reads_back_whatever_the_order(scene: Scene, script: str) -> None:
    count = _play_all(scene, script)
    assert count >= (1000 if SCRIPTS[script][0] > 1 else 20)


@pytest.mark.parametrize("script", PIECED)
def test_what_piece_lists_name_stays_whatever_the_order(pieced_scene: Scene, script: str) -> None:
    assert _play_all(pieced_scene, script) >= 20


def test_the_model_notices_a_writer_that_does_not_look_whether_packs_are_freed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "check", lambda blobs, reliance: None)
    with pytest.raises(AssertionError, match="switches"):
        _play_all(scene, "a writer finds chunks in packs that a reclaim frees")


def test_the_model_notices_a_reclaim_that_does_not_look_who_is_committing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "announcements", lambda blobs, sealing: [])
    with pytest.raises(AssertionError, match="switches"):
        _play_all(scene, "a writer finds chunks in packs that a reclaim frees")
