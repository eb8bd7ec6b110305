"""Each disk takes the best way that there is to it, and the restore point tells why it was not a better one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.engine_process import ON_REQUEST, engine_for, frozen_at
from tests.lab.vcenter import MIB, Lab, Machine


def test_hot_add_and_nbd_are_both_used_and_the_way_not_taken_is_recorded_with_its_reason(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    near = Machine(name="near", disks=(16 * MIB,), datastore="fast-1", tracking=True)
    far = Machine(name="far", disks=(16 * MIB,), datastore="bulk-1", tracking=True, host=1)
    proxy = Machine(name="proxy", disks=(8 * MIB,), datastore="fast-1", content=False)
    lab = fresh_lab(vms=0, extra=(near, far, proxy))
    lab.hide_datastore("bulk-1", lab.vm("proxy").host)
    with engine_for(lab, tmp_path / "engine", ON_REQUEST, order=("hotadd", "nbd"), proxy="proxy") as engine:
        engine.start()
        for name, way in (("near", "hotadd"), ("far", "nbd")):
            point = engine.back_up(name)
            [disk] = point["disks"]
            assert disk["transport"] == way
            reasons = dict(json.loads(disk["fallbacks"]))
            assert list(reasons) == ([] if way == "hotadd" else ["hotadd"])
            assert way == "hotadd" or "bulk-1" in reasons["hotadd"]
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)
            assert not lab.vm(name).snapshots
        assert len(lab.vm("proxy").disks) == 1
        assert engine.metric("backstay_transport_fallbacks_total") == 1
