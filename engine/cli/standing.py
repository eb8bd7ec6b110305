"""What a plan starts from: a state file, the running engine, or, without one, vCenter, the repository and its state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.cli.output import say
from engine.cli.reach import reach, running, utc_now
from engine.client import Engine
from engine.config import Config, load
from engine.failures import BadInput, NotReachable, RemoteFailure
from engine.records import Recalled, VmRow
from engine.startup import recorded_traits
from engine.state import State
from engine.statefile import Standing, pieces, read_standing
from engine.world import World
from policies.facts import RestorePoint, Vm, VmId
from policies.loading import load_texts
from policies.policyset import PolicySet
from storage.errors import StorageError
from storage.repository import Repository
from storage.sole import sole_bytes


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to ask, as the command line says it."""

    state: Path | None
    repo: str | None
    config: Path | None
    passphrase_file: Path | None


def standing(sources: Sources) -> Standing:
    """Facts and the policies in force."""
    if sources.state is not None:
        return read_standing(read_file(sources.state), str(sources.state))
    engine = _engine(sources)
    if engine is not None:
        return read_standing(engine.fetch("/v1/policies/facts"), "the engine's state")
    return _without_engine(sources)


def standing_bytes(sources: Sources) -> bytes:
    """The same as a document."""
    engine = _engine(sources)
    if engine is not None:
        return engine.fetch("/v1/policies/facts")
    found = _without_engine(sources)
    return b"".join(pieces(found.facts, found.policies))


def freed_by(sources: Sources, points: Sequence[str]) -> int | None:
    """The stored bytes that these restore points hold alone; None, with a message, when the repository cannot tell."""
    try:
        engine = _engine(sources)
        if engine is not None:
            return int(engine.post("/v1/policies/sole-bytes", {"points": list(points)})["bytes"])
        with reach(sources.repo, sources.config, sources.passphrase_file, command="policy plan") as place:
            if isinstance(place, Engine):
                return int(place.post("/v1/policies/sole-bytes", {"points": list(points)})["bytes"])
            wanted = set(points)
            return sole_bytes(place, [point.id for point in place.points() if point.id in wanted])
    except (StorageError, BadInput, RemoteFailure) as error:
        say(f"Bytes to be freed are an upper estimate: {error}")
        return None


def read_file(path: Path) -> bytes:
    """What a file named on the command line holds; BadInput when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", where=str(path)) from None


def _engine(sources: Sources) -> Engine | None:
    try:
        return running(sources.repo, sources.config)
    except NotReachable:
        return None


def _without_engine(sources: Sources) -> Standing:
    config = load(sources.config)
    if not config.vcenter:
        raise NotReachable(
            "no engine runs here and no vCenter is configured", hint="start it with: backstay run, or give --state FILE"
        )
    say("No engine runs here: asking vCenter and the repository.")
    with reach(sources.repo, sources.config, sources.passphrase_file, command="policy plan") as place:
        if isinstance(place, Engine):
            return read_standing(place.fetch("/v1/policies/facts"), "the engine's state")
        recalled, accepted = _recalled(config)
        points = place.points()
        recalled = Recalled(
            [*recalled.rows, *_rows_of(place, points, {row.id for row in recalled.rows})],
            recalled.runs,
            recalled.fired,
            recalled.jobs,
            recalled.job_keys,
        )
    return Standing(_world(recalled, points, asyncio.run(_inventories(config))).facts(utc_now()), accepted)


def _recalled(config: Config) -> tuple[Recalled, PolicySet | None]:
    nothing = Recalled([], {}, {}, [], {})
    try:
        with State.read_only(config.state_dir) as state:
            if state is None:
                return nothing, None
            texts = state.policy_files()
            return state.recall(utc_now()), load_texts(texts) if texts else None
    except StorageError as error:
        say(f"What the engine remembers is left out: {error}")
        return nothing, None


def _rows_of(repository: Repository, points: Sequence[RestorePoint], known: set[VmId]) -> list[VmRow]:
    """VMs that only the repository knows, by their newest restore points."""
    newest: Mapping[VmId, RestorePoint] = {point.vm: point for point in points if point.vm not in known}
    rows = []
    for vm, point in newest.items():
        detail = repository.detail(point.id)
        if detail.head.aliases.get("moref"):
            rows.append(VmRow(vm, recorded_traits(detail), {}, point.taken_at))
    return rows


def _world(recalled: Recalled, points: Sequence[RestorePoint], vms: Sequence[Vm]) -> World:
    """The VMs under Backstay's ids; a new one has its address as its id."""
    fresh = iter([VmId(f"{vm.address.vcenter}/{vm.address.moref}") for vm in vms])
    world = World(mint=lambda: next(fresh))
    world.load(recalled)
    by_vm: dict[VmId, list[RestorePoint]] = {}
    for point in points:
        by_vm.setdefault(point.vm, []).append(point)
    for mine, listed in by_vm.items():
        world.set_points(mine, listed)
    now = utc_now()
    for vm in vms:
        world.sight(vm, now)
    return world


async def _inventories(config: Config) -> list[Vm]:
    from engine.service import connect

    vms: list[Vm] = []
    for name, vcenter in config.vcenter.items():
        hypervisor = await connect(name, vcenter, config)
        try:
            vms += await hypervisor.inventory()
        finally:
            await hypervisor.aclose()
    return vms
