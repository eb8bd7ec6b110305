"""Objects cut, emptied, gone, swapped, or under another name, id, type or repository are found; no byte goes wrong."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.format import parse_pack_key
from tests.damage_kit import Outcome, Scene, build, in_memory, judge

Scenes = tuple[Scene, Scene]
"""Ours, and another repository that holds the same VMs and is opened by the same passphrase."""


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "encrypted"])
def scenes(request: pytest.FixtureRequest) -> Iterator[Scenes]:
    with in_memory() as folder, in_memory() as other:
        yield build(folder / "r", encrypted=request.param), build(other / "r", encrypted=request.param)


def _after(scene: Scene, change: Callable[[Path], object], *, to_file: bool = True) -> Outcome:
    with scene.trial() as location:
        change(location)
        return judge(scene, location, to_file=to_file)


def _needed(scene: Scene) -> list[Path]:
    """Packs and manifests: each is needed by some restore point."""
    return scene.objects("packs", "manifests")


def test_a_cut_or_emptied_object_is_found(scenes: Scenes) -> None:
    scene, tried = scenes[0], 0
    for path in (*_needed(scene), Path("config"), Path("config.copy")):
        data = (scene.location / path).read_bytes()
        for left in _cuts(data):
            outcome = _after(scene, lambda at, path=path, left=left: (at / path).write_bytes(left))  # type: ignore[misc]
            said = f"{path}: {len(left)} of {len(data)} bytes"
            assert outcome.found, said
            assert not outcome.wrong, said
            if path.parts[0] in ("packs", "manifests"):
                assert outcome.failed == outcome.hit, said
                assert outcome.failed or len(left) > len(data), said
            tried += 1
    assert tried >= 50


def _cuts(data: bytes) -> tuple[bytes, ...]:
    return b"", data[:1], data[: len(data) // 2], data[:-1], data + b"\0"


def test_cut_or_emptied_marks_are_each_found(scenes: Scenes) -> None:
    """All of them at once: they are looked at one by one, and told one by one."""
    scene = scenes[0]
    marks = scene.objects("marks")
    for way in range(5):

        def cut(location: Path, way: int = way) -> None:
            for path in marks:
                (location / path).write_bytes(_cuts((location / path).read_bytes())[way])

        outcome = _after(scene, cut)
        assert len([name for name in outcome.objects if name.startswith("marks/")]) == len(marks), way
        assert not outcome.wrong and not outcome.failed, way
    assert len(marks) * 5 >= 15


def test_an_object_that_is_gone_is_found(scenes: Scenes) -> None:
    scene = scenes[0]
    for path in _needed(scene):
        outcome = _after(scene, lambda at, path=path: (at / path).unlink())  # type: ignore[misc]
        assert outcome.found, path
        assert not outcome.wrong, path
        assert outcome.failed, path
        assert outcome.failed == outcome.hit, path


def test_objects_that_change_places_are_found(scenes: Scenes) -> None:
    scene, tried = scenes[0], 0
    packs, manifests, marks = (scene.objects(kind) for kind in ("packs", "manifests", "marks"))
    pairs = [*itertools.combinations(packs, 2), *itertools.combinations(manifests, 2)]
    pairs += [*itertools.pairwise(marks), (manifests[0], marks[0]), (packs[0], manifests[1])]
    pairs += [(Path("config"), manifests[0]), (Path("config"), marks[0])]
    for one, two in pairs:
        outcome = _after(scene, lambda at, one=one, two=two: _swap(at / one, at / two))  # type: ignore[misc]
        assert outcome.found, f"{one} and {two}"
        assert not outcome.wrong, f"{one} and {two}"
        if one.parts[0] != "marks":
            assert outcome.failed == outcome.hit - _only_marks(outcome, scene), f"{one} and {two}"
        tried += 1
    assert tried >= 20


def _only_marks(outcome: Outcome, scene: Scene) -> frozenset[object]:
    """Restore points of which a mark was changed, and nothing that a restore reads."""
    return frozenset(outcome.hit - outcome.failed) if any("marks/" in name for name in outcome.objects) else frozenset()


def _swap(one: Path, two: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def test_an_object_under_another_name_is_found_and_harms_nobody(scenes: Scenes) -> None:
    scene = scenes[0]
    for path in _needed(scene) + scene.objects("marks"):
        for name in _other_names(path):
            outcome = _after(scene, lambda at, path=path, name=name: _copy(at / path, at / name))  # type: ignore[misc]
            assert outcome.found, f"{path} as {name}"
            assert not outcome.wrong, f"{path} as {name}"
            assert not outcome.failed, f"{path} as {name}"


def _other_names(path: Path) -> list[Path]:
    """Names of the same shape: another id; for a pack also another number and another kind."""
    head, tail = path.name[:-1], path.name[-1]
    other = path.with_name(head + ("0" if tail != "0" else "1"))
    name = parse_pack_key(path.as_posix())
    if name is None:
        return [other]
    ids = name.id[::-1].hex()
    later = name.number + 0x40
    return [
        Path(f"packs/{later & 0xFF:02x}/{later:08x}-{name.id.hex()}{path.suffix}"),
        Path(f"packs/{later & 0xFF:02x}/{later:08x}-{ids}{path.suffix}"),
        path.with_suffix(".tree" if path.suffix == ".data" else ".data"),
    ]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_objects_of_another_repository_are_refused(scenes: Scenes) -> None:
    scene, theirs = scenes
    ours = {kind: scene.objects(kind) for kind in ("packs", "manifests", "marks")}
    for kind, paths in ours.items():
        foreign = theirs.objects(kind)
        for path, other in zip(paths, foreign, strict=False):
            for target in (path, other):  # in the place of ours, and beside ours under its own name
                outcome = _after(
                    scene,
                    lambda at, target=target, other=other: _copy(theirs.location / other, at / target),  # type: ignore[misc]
                )
                said = f"{other} of the other repository as {target}"
                assert outcome.found, said
                assert not outcome.wrong, said
                if kind == "marks" or target == other:
                    assert not outcome.failed, said
                else:
                    assert outcome.failed == outcome.hit, said
                    assert outcome.failed, said


def test_the_config_of_another_repository_opens_nothing_of_ours(scenes: Scenes) -> None:
    scene, theirs = scenes
    for names in (["config"], ["config.copy"], ["config", "config.copy"]):
        with scene.trial() as location:
            for name in names:
                _copy(theirs.location / name, location / name)
            outcome = judge(scene, location, to_file=True)
            assert outcome.found, names
            assert not outcome.wrong, names
