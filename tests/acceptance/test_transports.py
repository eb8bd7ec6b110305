"""Each disk takes the best way that there is to it, and the restore point tells why it was not a better one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.acceptance.engine_process import ON_REQUEST, engine_for, frozen_at
from tests.lab.vcenter import MIB, Lab, Machine

IDLE = """
[policy.idle]
priority = 60
select.all = ["name:idle"]
consistency = { want = "crash", fallback = "crash" }
transports = ["hotadd", "https"]
"""
"""A policy's own order of the ways."""


def test_each_transport_is_used_and_the_ways_not_taken_are_recorded_with_their_reasons(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    near = Machine(name="near", disks=(16 * MIB,), datastore="fast-1", tracking=True)
    far = Machine(name="far", disks=(16 * MIB,), datastore="bulk-1", tracking=True, host=1)
    proxy = Machine(name="proxy", disks=(8 * MIB,), datastore="fast-1", content=False)
    idle = Machine(name="idle", disks=(16 * MIB,), datastore="bulk-1", tracking=True, power="off", host=1)
    lab = fresh_lab(vms=0, extra=(near, far, idle, proxy))
    lab.hide_datastore("bulk-1", lab.vm("proxy").host)
    policy = ON_REQUEST + IDLE
    with engine_for(lab, tmp_path / "engine", policy, order=("hotadd", "nbd"), proxy="proxy") as engine:
        engine.start()
        for name, way in (("near", "hotadd"), ("far", "nbd"), ("idle", "https")):
            point = engine.back_up(name)
            [disk] = point["disks"]
            assert disk["transport"] == way
            reasons = dict(disk["fallbacks"])
            assert list(reasons) == ([] if way == "hotadd" else ["hotadd"])
            assert way == "hotadd" or "bulk-1" in reasons["hotadd"]
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
            assert not lab.vm(name).snapshots
        assert len(lab.vm("proxy").disks) == 1
        assert engine.metric("backstay_transport_fallbacks_total") == 2
