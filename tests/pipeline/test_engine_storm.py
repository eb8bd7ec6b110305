"""Thousands of events a second lead to one run per VM and rule; none is lost, and the engine stays responsive."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from engine.inbox import INBOX_ITEMS, Tick
from tests.pipeline.storm import POLICIES, StormHypervisor, blow, lag_of_loop, paused_engine, share

MIB = 1 << 20
LONGEST_LAG = 0.1


@pytest.mark.timeout(120)
async def test_a_storm_leads_to_one_run_per_vm_and_rule_and_none_of_its_events_is_lost(tmp_path: Path) -> None:
    hypervisor = StormHypervisor(tmp_path)
    hypervisor.populate(2_000, on_busy_host=500)
    async with paused_engine(tmp_path, hypervisor) as engine:
        blown = await blow(engine, hypervisor, per_second=2_000, seconds=10)
        evacuated = {engine.parts.world.book.at(address) for address in hypervisor.evacuated}
    assert blown.sent == 20_500
    assert sorted(blown.journaled) == sorted(event.key for event in hypervisor.sent), "each once"
    assert blown.undecided == 0
    assert max(Counter(blown.jobs).values()) == 1
    assert max(Counter(vm for vm, _ in blown.jobs).values()) == 1
    assert len(evacuated) == 500
    assert evacuated <= {vm for vm, _ in blown.jobs}
    assert share(blown.lag.own, 0.99) < LONGEST_LAG
    assert blown.grown_bytes < 300 * MIB
    assert blown.most_waiting <= INBOX_ITEMS


@pytest.mark.timeout(120)
async def test_neither_the_clock_nor_other_policies_stop_the_engine_for_long(tmp_path: Path) -> None:
    hypervisor = StormHypervisor(tmp_path)
    hypervisor.populate(5_000, on_busy_host=0)
    async with paused_engine(tmp_path, hypervisor) as engine:
        parts = engine.parts

        def reloaded() -> bool:
            tier = parts.rulebook.in_force.policy("tier")
            return tier is not None and tier.timing.rpo == timedelta(hours=12)

        async with lag_of_loop() as lag:
            await parts.inbox.put(Tick(parts.now()))
            (tmp_path / "policies" / "all.toml").write_text(POLICIES.replace('"24h"', '"12h"'))
            await engine.until(reloaded)
            await parts.inbox.put(Tick(parts.now()))
    assert share(lag.own, 0.99) < LONGEST_LAG
    assert max(lag.own) < 3 * LONGEST_LAG
