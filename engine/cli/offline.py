"""The facts of an engine that does not run: VMs from vCenter, restore points, and what its state remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.cli.output import say
from engine.cli.reach import reach, utc_now
from engine.client import Engine
from engine.config import Config, load
from engine.connecting import connect
from engine.failures import NotReachable
from engine.records import Recalled, VmRow
from engine.repositories import Repositories, open_section
from engine.second_copies import UNUSABLE
from engine.startup import recorded_traits
from engine.state import State
from engine.statefile import Standing, read_standing
from engine.world import World, by_vm
from policies.facts import RestorePoint, Vm, VmId
from policies.loading import load as load_policies
from policies.loading import load_texts
from policies.policyset import PolicySet
from storage.errors import StorageError
from storage.repository import Repository


def found_offline(repo: str | None, config_file: Path | None, passphrase_file: Path | None) -> Standing:
    """Everything that can be read; NotReachable when no vCenter is configured, or one does not answer."""
    config = load(config_file)
    if not config.vcenter:
        raise NotReachable(
            "no engine runs here and no vCenter is configured", hint="start it with: backstay run, or give --state FILE"
        )
    say("No engine runs here: asking vCenter and the repository.")
    with reach(repo, config_file, passphrase_file, command="policy plan") as place:
        if isinstance(place, Engine):
            return read_standing(place.fetch("/v1/policies/facts"), "the engine's state")
        recalled, accepted = _recalled(config)
        points, away = _everywhere(place, config)
        own = [point for point in points if not point.repository]
        recalled = Recalled(
            [*recalled.rows, *_rows_of(place, own, {row.id for row in recalled.rows})],
            recalled.runs,
            recalled.fired,
            recalled.jobs,
            recalled.job_keys,
        )
    known = _world(recalled, points, asyncio.run(_inventories(config)))
    known.unseen_repositories.update(away)
    if accepted is None:
        say(f"No engine ever ran here: the policies of {config.policies} count as in force.")
    _see_copies(known, config)
    return Standing(known.facts(utc_now()), accepted or load_policies(config.policies))


def _everywhere(place: Repository, config: Config) -> tuple[list[RestorePoint], list[str]]:
    """The restore points of all repositories, and which of these are away."""
    found = Repositories(place, away=dict.fromkeys(config.repositories, ""))
    try:
        found.open_away(config, lambda one: open_section(one, config.state_dir, utc_now, "backstay policy plan"))
        for name, why in found.away.items():
            say(f"The restore points of repository {name} are not known: {why}")
        return found.points(), [*found.away]
    finally:
        found.close()


def _see_copies(world: World, config: Config) -> None:
    for name, section in config.copies.items():
        world.unseen_copies.add(name)
        try:
            with open_section(section, config.state_dir, utc_now, "backstay policy plan") as copy:
                world.set_copy(name, by_vm(copy.points()))
        except UNUSABLE as error:
            say(f"The restore points of the copy {name} are not known: {error}")


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
    vms: list[Vm] = []
    for name, vcenter in config.vcenter.items():
        hypervisor = await connect(name, vcenter, config)
        try:
            vms += await hypervisor.inventory()
        finally:
            await hypervisor.aclose()
    return vms
