"""`make demo`: the main job from nothing to a compared restore, on a simulated vCenter. Exit 0 only if all held."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from examples.demo import play
from examples.demo.stage import DemoFailed, Stage
from examples.demo.world import FILES, PROXY, World
from tests.lab.vcenter import MIB, start_lab

SCENES = (
    play.protect,
    play.react,
    play.move_while_read,
    play.survive,
    play.find_damage,
    play.restore,
    play.try_change,
    play.refuse,
)


def main() -> int:
    """Play every scene; 0 when every claim held, 1 when one did not or the play could not go on."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave lab and engine running, and say where they are")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # the engine is in a session of its own and would go on
    directory = Path(tempfile.mkdtemp(prefix="backstay-demo-"))
    stage = Stage()
    try:
        with start_lab(directory / "lab", vms=11, disk_bytes=48 * MIB, extra=(PROXY, FILES)) as lab:
            world = World(directory, lab)
            try:
                _play(stage, world, keep=options.keep)
            finally:
                world.stop_engine()
    except DemoFailed as problem:
        stage.claim("the play goes on", held=False, seen=problem)
    except KeyboardInterrupt:
        stage.say("interrupted")
        return 130
    finally:
        if not stage.failures:
            shutil.rmtree(directory, ignore_errors=True)
    if options.keep and not stage.failures:
        return 0  # told before it was left running
    return _verdict(stage, directory)


def _play(stage: Stage, world: World, *, keep: bool) -> None:
    stage.console.print(
        "[bold]Backstay[/bold]: policy-as-code backup of VMs that move. A simulated vCenter, twelve VMs, a real engine."
    )
    world.furnish()
    for scene in SCENES:
        scene(stage, world)
    _table(stage, world)
    if keep:
        _verdict(stage, world.directory)
        stage.say(f"vCenter {world.lab.url} as {world.lab.user}, password in {world.directory / 'password'}")
        command = Path(sys.executable).with_name("backstay")
        stage.say(f"export BACKSTAY_CONFIG={world.directory / 'backstay.toml'}")
        stage.say(f"and use {command}; Ctrl-C ends it all")
        with suppress(KeyboardInterrupt):
            signal.pause()


def _table(stage: Stage, world: World) -> None:
    status = world.backstay("status", "--json", expect=(0, 3)).json()
    standing = {row["vm"]: row for row in status["vms"]}
    points = world.points()
    table = Table(title="At a glance", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("VM", no_wrap=True)
    table.add_column("protected", no_wrap=True)
    for column in ("restore points", "read", "stored", "ratio", "RPO"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in sorted({point["vm"] for point in points} | standing.keys()):
        own = [point for point in points if point["vm"] == name]
        read, stored = sum(p["read_bytes"] for p in own), sum(p["stored_bytes"] for p in own)
        table.add_row(
            name, _protection(standing.get(name)), str(len(own)), play.mib(read), play.mib(stored),
            _ratio(read, stored), _goal(standing.get(name)),
        )  # fmt: skip
    read, stored = sum(p["read_bytes"] for p in points), sum(p["stored_bytes"] for p in points)
    late = sum(row["late"] for row in standing.values())
    table.add_section()
    table.add_row(
        "in all", f"{sum(row['protected'] for row in standing.values())} VMs", str(len(points)), play.mib(read),
        play.mib(stored), _ratio(read, stored), f"{late} late", style="bold",
    )  # fmt: skip
    stage.console.print()
    stage.console.print(table)
    for name, address in sorted(status["engine"]["addresses"].items()):
        stage.say(f"{name}: {address}")


def _ratio(read: int, stored: int) -> str:
    if not read:
        return ""
    return f"{read / stored:.1f}" if stored else "all known"


def _protection(row: dict[str, Any] | None) -> str:
    if row is None:
        return "gone, points kept"
    return "yes" if row["protected"] else "no"


def _goal(row: dict[str, Any] | None) -> str:
    """The RPO and whether it is kept."""
    if row is None or not row["rpo_seconds"]:
        return ""
    kept = "late" if row["late"] else "ok" if row["points"] else "none yet"
    return f"{row['rpo_seconds'] / 3600:.0f} h {kept}"


def _verdict(stage: Stage, directory: Path) -> int:
    held = stage.claims - len(stage.failures)
    stage.console.print(f"\n[bold]{held} of {stage.claims} claims held[/bold] in {stage.seconds:.0f} s of play.")
    for failure in stage.failures:
        stage.console.print(f"  [red]✗[/red] {failure}")
    if stage.failures:
        stage.console.print(f"  Everything is left in {directory} to look at.")
    return 1 if stage.failures else 0


if __name__ == "__main__":
    sys.exit(main())
