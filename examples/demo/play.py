"""The scenes, in order. Each plays something in the lab, waits for what Backstay does, and states claims."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

from examples.demo.stage import Stage
from examples.demo.world import World
from tests.lab.records import LabVm

GRAIN = 64 * 1024
UNPROTECTED = {"backstay-proxy"}


def protect(stage: Stage, world: World) -> None:
    """Every VM that a policy selects gets its first restore point."""
    stage.scene("1. Initial protection: twelve VMs, three policies, no command given")
    world.start_engine()
    names = {vm.name for vm in world.lab.vms()} - UNPROTECTED

    def all_protected() -> list[dict[str, Any]] | None:
        points = world.points()
        return points if names <= {point["vm"] for point in points} else None

    points = stage.wait("a restore point of each VM", all_protected, within=60)
    read, stored = sum(p["read_bytes"] for p in points), sum(p["stored_bytes"] for p in points)
    stage.claim(f"{len(names)} VMs are protected", True, f"read {mib(read)}, stored {mib(stored)}")
    for policy in sorted({point["policy"] for point in points}):
        chosen = sorted(point["vm"] for point in points if point["policy"] == policy)
        stage.say(f"policy {policy}: {', '.join(chosen)}")
    transports = world.sql(
        "SELECT attributes ->> 'transport' AS transport, count(*) AS disks FROM disks "
        "GROUP BY transport ORDER BY transport"
    )
    stage.say("transports: " + ", ".join(f"{row['transport']} for {row['disks']} disks" for row in transports))


def react(stage: Stage, world: World) -> None:
    """Moves, power changes, new, cloned and removed VMs lead to what the policies say."""
    stage.scene("2. Guests write, and VMs move, stop, appear and go")
    lab = world.lab
    for name in ("web-01", "db-03", "web-04"):
        lab.write_random_grains(name, 0, share=0.01, seed=7)
    before = {name: len(world.points(name)) for name in ("db-03", "web-01", "web-04", "web-07", "app-02")}
    host = lab.drs_move("db-03")
    stage.say(f"DRS moves db-03 to {host}")
    stage.say(f"a person moves web-01 to {lab.migrate('web-01')}")
    lab.relocate("web-04", _other_datastore(world, "web-04"))
    stage.say("a person moves web-04's disks to another datastore")
    lab.power_off("web-07")
    stage.say("a person switches web-07 off")
    lab.migrate("app-02")
    stage.say("a person moves app-02, whose policy has no trigger")
    lab.create_vm("web-13", disks=(16 << 20,), folder="prod/web")
    stage.say("a person makes web-13")
    lab.clone_vm("web-10", "web-10-clone")
    stage.say("a person clones web-10")
    lab.remove_vm("app-11")
    stage.say("a person removes app-11")

    for name in ("db-03", "web-01", "web-04", "web-07", "web-13", "web-10-clone"):
        _wait_for_point(stage, world, name, more_than=before.get(name, 0))
    for name in ("db-03", "web-01", "web-04", "web-07", "web-13", "web-10-clone"):
        point = world.points(name)[-1]
        stage.say(f"{name}: {point['policy']}, {point['rule']}: {point['reason']}")

    for name in ("db-03", "web-01"):
        point = world.points(name)[-1]
        limit = 0.012 * point["disk_bytes"]
        stage.claim(
            f"{name}'s incremental read only what changed",
            0 < point["read_bytes"] <= limit,
            f"{mib(point['read_bytes'])} of {mib(point['disk_bytes'])}",
        )
    clone = world.points("web-10-clone")[-1]
    stage.claim(
        "the clone deduplicates to almost nothing",
        clone["stored_bytes"] < 0.02 * max(1, clone["read_bytes"]),
        f"read {mib(clone['read_bytes'])}, stored {mib(clone['stored_bytes'])}",
    )
    stage.claim("a move that no trigger names leads to no run", len(world.points("app-02")) == before["app-02"])
    said = "SELECT reason FROM decisions WHERE vm = 'app-02' AND kind = 'skip' ORDER BY decided_at DESC LIMIT 1"
    for row in world.sql(said):
        stage.say(f"app-02: {row['reason']}")
    stage.claim("the removed VM keeps its restore points", len(world.points("app-11")) == 1)


def move_while_read(stage: Stage, world: World) -> None:
    """A VM moves while its disk is being read."""
    stage.scene("3. A VM moves while its disk is being read")
    lab = world.lab
    slow = lab.root / "nbd-faults.json"
    slow.write_text(json.dumps({"delay_ms": 1500}), encoding="utf-8")
    lab.power_on("files-12")
    known, before = len(world.points("files-12")), len(lab.frozen("files-12"))
    world.backstay("backup", "files-12", "--full", "--no-wait")
    stage.wait("the snapshot of the VM", lambda: len(lab.frozen("files-12")) > before or None)
    stage.wait("its disk to be read", lambda: _reading(lab.root, "files-12") or None)
    stage.say(f"the disk is being read; a person moves the VM to {lab.migrate('files-12')}")
    still = _reading(lab.root, "files-12")
    slow.unlink()
    point = stage.wait("the restore point", lambda: world.points("files-12")[known:] or None, within=60)[-1]
    stage.claim("the move came in the middle of the read", still)
    stage.claim("the restore point is what the snapshot froze", _same(world, point))


def survive(stage: Stage, world: World) -> None:
    """SIGKILL in the middle of a run, when a pack is written and no manifest; the next start cleans up by itself."""
    stage.scene("4. SIGKILL after the packs and before the manifest")
    world.stop_engine()
    world.lab.write_random_grains("files-12", 0, share=0.5, seed=11)
    packs, points = len(world.packs()), len(world.points())
    world.start_engine(die_at="pack.sealed")
    stage.wait("the engine to know its VMs", lambda: world.accepts_backup("files-12") or None)
    status = stage.wait("the engine to be killed", world.engine_ended)
    left = world.lab.vm("files-12").snapshots
    stage.claim("the engine died by SIGKILL", status == -signal.SIGKILL)
    stage.claim(
        "at least one pack was written, no manifest", len(world.packs()) > packs and len(world.points()) == points
    )
    stage.claim("a snapshot is left behind", len(left) == 1, ", ".join(left))
    world.start_engine()
    stage.wait("the janitor", lambda: not world.lab.vm("files-12").snapshots or None)
    stage.claim("after the start no snapshot is left on any VM", not any(vm.snapshots for vm in world.lab.vms()))
    stage.wait("the interrupted run to be made up for", lambda: len(world.points()) > points or None)
    stage.claim("the interrupted backup was taken again", True)


def find_damage(stage: Stage, world: World) -> None:
    """One flipped bit is found."""
    stage.scene("5. One bit flips in the repository")
    pack = max(world.packs(), key=lambda path: path.stat().st_size)
    offset = pack.stat().st_size // 2
    _flip(pack, offset)
    found = world.backstay("verify", expect=(0, 4))
    stage.claim("verify finds it and ends with exit code 4", found.code == 4)
    stage.show("\n".join((found.out + found.err).splitlines()[-6:]))
    _flip(pack, offset)
    healed = world.backstay("verify", expect=(0, 4))
    stage.claim("with the bit put back, everything verifies", healed.code == 0)


def restore(stage: Stage, world: World) -> None:
    """Three restore points come back as the lab froze them, one of them as a new VM."""
    stage.scene("6. Restore, and compare with what the lab froze")
    for name, number in (("db-03", 0), ("web-01", -1)):
        point = world.points(name)[number]
        which = "the first" if number == 0 else "the last"
        stage.claim(f"{which} restore point of {name} is identical, disk by disk", _same(world, point))
    point = world.points("db-06")[-1]
    world.backstay("restore", point["id"], "--to-vm", "db-06-restored")
    # The engine protects the new VM at once; while that snapshot stands, its disks are deltas.
    restored = stage.wait("the snapshot of the restored VM to go", lambda: _without_snapshots(world, "db-06-restored"))
    frozen = world.frozen_for(point)
    pairs = zip(restored.disks, frozen.disks, strict=True)
    stage.claim(
        "the restored VM's disks are identical, and it is powered off",
        restored.power != "on" and all(_digest(disk.flat) == _digest(image.image) for disk, image in pairs),
        f"{len(restored.disks)} disks",
    )


def try_change(stage: Stage, world: World) -> None:
    """What an edit of the policies would do is known before it is merged."""
    stage.scene("7. A change of the policies is tried before it is merged")
    proposed = world.directory / "proposed.d"
    shutil.copytree(world.policies, proposed)
    _edit(proposed)
    stage.say('the proposed applications.toml says none = ["name:app-02", "name:app-05"]')
    tested = world.backstay("policy", "test", proposed, expect=(0, 3))
    stage.claim("the test beside the policies fails", tested.code == 3 and "app-02" in tested.out)
    planned = world.backstay("policy", "plan", proposed, "--exit-code", expect=(0, 3, 5))
    stage.show(planned.out)
    stage.claim("the plan names both VMs, and that a guard refuses it", planned.code == 5 and _names_both(planned.out))
    month = world.backstay("policy", "simulate", proposed, "--days", "30", "--json").json()
    runs = {vm["name"]: vm["runs"] for vm in month["runs"]["by_vm"]}
    stage.claim(
        "thirty days of it, decided as the engine decides, have runs of all others and none of the two",
        not runs["app-02"] and not runs["app-05"] and runs["app-08"] > 0,
        f"{month['runs']['total']:,} runs",
    )


def refuse(stage: Stage, world: World) -> None:
    """A policy edit that takes protection away stays pending; the last screen."""
    stage.scene("8. Somebody merges it all the same")
    _edit(world.policies)
    shown = stage.wait("the reload", lambda: _pending(world), within=15)
    stage.show(shown)
    lost = [point for name in ("app-02", "app-05") for point in world.points(name)]
    stage.claim("the reload refuses, naming both VMs", _names_both(shown))
    told = world.backstay("policy", "apply", "--json", expect=(3,)).out
    stage.claim("and their restore points", all(point["id"] in told for point in lost), f"{len(lost)} restore points")
    stage.scene("9. Why the VM that DRS moved was backed up")
    stage.show(world.backstay("policy", "explain", "db-03").out)


def _edit(policies: Path) -> None:
    edited = policies / "applications.toml"
    edited.write_text(
        edited.read_text().replace(
            'all = ["name:app-*"]', 'all = ["name:app-*"]\nnone = ["name:app-02", "name:app-05"]'
        )
    )


def _names_both(shown: str) -> bool:
    return "app-02" in shown and "app-05" in shown


def _wait_for_point(stage: Stage, world: World, name: str, *, more_than: int) -> None:
    def there() -> bool | None:
        return len(world.points(name)) > more_than or None

    stage.wait(f"a new restore point of {name}", there)


def _pending(world: World) -> str | None:
    shown = world.backstay("policy", "apply", expect=(0, 3, 5))
    return shown.out if "app-02" in shown.out else None


def _other_datastore(world: World, name: str) -> str:
    return next(each for each in ("fast-1", "bulk-1") if each != world.lab.vm(name).datastore)


def _reading(root: Path, name: str) -> bool:
    """Whether a process of nbdkit has this VM's disk open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            links = [str(entry.readlink()) for entry in folder.iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(root)) and f"/{name}/" in link and ".snapshot-" in link for link in links):
            return True
    return False


def _same(world: World, point: dict[str, Any]) -> bool:
    target = world.directory / "restored" / point["id"]
    target.mkdir(parents=True)
    frozen = world.frozen_for(point)
    same = True
    for disk in frozen.disks:
        file = target / f"{disk.label.replace(' ', '-')}.raw"
        world.backstay("restore", point["id"], "--disk", disk.label, "--to-file", file)
        same = same and _digest(file) == _digest(disk.image)
        file.unlink()
    return same


def _without_snapshots(world: World, name: str) -> LabVm | None:
    vm = world.lab.vm(name)
    return None if vm.snapshots else vm


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def mib(count: int) -> str:
    """Bytes as MiB."""
    return f"{count / (1 << 20):.1f} MiB"
