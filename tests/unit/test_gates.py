"""Places in a vCenter: as many as allowed at once, in the order of coming, and no waiting that never ends."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from connectors.gates import Act, Gate, GateLimits, Gates, connection, creation, removal


class Crowd:
    """Visitors of gates, each of whom stays until it is told to go."""

    def __init__(self, limits: GateLimits) -> None:
        self.gates = Gates(limits)
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    async def visit(self, name: str, gates: Sequence[Gate]) -> None:
        self.leave[name] = asyncio.Event()
        async with self.gates.through(gates, name):
            self.inside.append(name)
            await self.leave[name].wait()
        self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_removals_run_on_a_datastore_as_it_allows_and_the_next_in_order() -> None:
    crowd = Crowd(GateLimits(removals_per_datastore=2))
    async with asyncio.TaskGroup() as group:
        for name in "abcd":
            group.create_task(crowd.visit(name, removal(["ssd-1"])))
            await settle()
        assert crowd.inside == ["a", "b"]
        assert [one.what for one in crowd.gates.waiting] == ["c", "d"]
        crowd.leave["b"].set()
        await settle()
        assert crowd.inside == ["a", "c"]
        for event in crowd.leave.values():
            event.set()
    assert crowd.gates.held == crowd.gates.waiting == ()


async def test_those_who_wait_for_one_datastore_do_not_keep_the_vcenter_from_another() -> None:
    crowd = Crowd(GateLimits(removals_per_datastore=1, removals_per_vcenter=3))
    async with asyncio.TaskGroup() as group:
        for name in ("full-1", "full-2", "full-3", "full-4"):
            group.create_task(crowd.visit(name, removal(["full"])))
        group.create_task(crowd.visit("free", removal(["free"])))
        await settle()
        assert crowd.inside == ["full-1", "free"]
        for _ in range(8):
            for event in crowd.leave.values():
                event.set()
            await settle()


async def test_nobody_is_let_past_one_who_waits_for_two_datastores() -> None:
    crowd = Crowd(GateLimits(removals_per_datastore=1))
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.visit("on a", removal(["a"])))
        await settle()
        group.create_task(crowd.visit("on both", removal(["a", "b"])))
        await settle()
        group.create_task(crowd.visit("on b", removal(["b"])))
        await settle()
        assert crowd.inside == ["on a"]
        crowd.leave["on a"].set()
        await settle()
        assert crowd.inside == ["on both"]
        for name in ("on both", "on b"):
            crowd.leave[name].set()
            await settle()


async def test_who_is_cancelled_while_waiting_leaves_its_place_to_the_next() -> None:
    crowd = Crowd(GateLimits(connections_per_host=1))
    async with asyncio.TaskGroup() as group:
        group.create_task(crowd.visit("first", connection("esx-1")))
        await settle()
        gone = group.create_task(crowd.visit("gone", connection("esx-1")))
        group.create_task(crowd.visit("last", connection("esx-1")))
        group.create_task(crowd.visit("elsewhere", connection("esx-2")))
        await settle()
        gone.cancel()
        crowd.leave["first"].set()
        await settle()
        assert crowd.inside == ["elsewhere", "last"]
        for event in crowd.leave.values():
            event.set()
    assert crowd.gates.held == ()


async def test_any_crowd_keeps_the_limits_and_everybody_gets_through() -> None:
    limits = GateLimits(
        creations_per_vcenter=2, removals_per_vcenter=3, removals_per_datastore=2, connections_per_host=2
    )
    gates, chance, inside = Gates(limits), random.Random(7), Counter[Gate]()
    done = 0

    async def visit() -> None:
        nonlocal done
        wanted = chance.choice(
            [creation(), connection(chance.choice("hk")), removal(chance.sample("abc", chance.randint(1, 3)))]
        )
        async with gates.through(wanted, "x"):
            inside.update(wanted)
            assert all(inside[gate] <= limits.of(gate) for gate in wanted)
            for _ in range(chance.randint(1, 4)):
                await asyncio.sleep(0)
            inside.subtract(wanted)
        done += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(visit())
    assert done == 200
    assert limits.of(Gate(Act.CREATE, "vcenter")) == 2
