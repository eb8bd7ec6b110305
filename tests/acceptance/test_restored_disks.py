"""What comes back is what the lab froze, however the restore point was made and whatever happened since."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.engine_process import ON_REQUEST, engine_for, frozen_at
from tests.lab.vcenter import MIB, Lab


def test_a_restored_disk_is_what_was_frozen_for_full_incremental_after_expiry_and_after_rebuild(
    fresh_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = fresh_lab(vms=1, tracking=True, disk_bytes=32 * MIB)
    [vm] = lab.vms()
    at_once = '[maintenance]\norphan_pack = "1s"\n'
    with engine_for(lab, tmp_path / "engine", ON_REQUEST, more=at_once) as engine:
        engine.start()
        made = [engine.back_up(vm.name)]
        for seed in range(2):
            lab.write_as_guest(vm.name, 0, 4 * MIB, random.Random(seed).randbytes(2 * MIB))
            made.append(engine.back_up(vm.name))
        full, first, last = made
        assert full["disks"][0]["changes"].startswith("whole:")
        assert [point["disks"][0]["changes"] for point in (first, last)] == ["incremental"] * 2
        assert [point["disks"][0]["read_bytes"] for point in (first, last)] == [2 * MIB] * 2
        for point in made:
            engine.assert_same_as_frozen(point["id"], frozen_at(lab, point), tmp_path)

        for point in (full, first):
            engine.backstay("expire", point["id"], "--reason", "a test asks")
        freed: list[int] = []

        def reclaimed() -> int:
            freed.append(int(engine.backstay("reclaim", "--json").data["freed_bytes"]))
            return sum(freed)

        engine.until(lambda: reclaimed() >= 2 * MIB)
        assert [point["id"] for point in engine.points(vm.name)] == [last["id"]]
        engine.assert_same_as_frozen(last["id"], frozen_at(lab, last), tmp_path)
        engine.stop()

        (engine.repository / "catalog.duckdb").unlink()
        engine.backstay("catalog", "rebuild")
        engine.start()
        engine.assert_same_as_frozen(last["id"], frozen_at(lab, last), tmp_path)
        engine.backstay("verify")
