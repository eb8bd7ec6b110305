"""`make demo`: the main job from nothing to a compared restore, on a simulated vCenter. Exit 0 only if all held."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

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
    play.refuse,
)


def main() -> int:
    """Play every scene; 0 when every claim held, 1 when one did not or the play could not go on."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave lab and engine running, and say where they are")
    options = parser.parse_args()
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
        if not options.keep and not stage.failures:
            shutil.rmtree(directory, ignore_errors=True)
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
        stage.say(f"vCenter {world.lab.url} as {world.lab.user}, password in {world.directory / 'password'}")
        stage.say(f"export BACKSTAY_CONFIG={world.directory / 'backstay.toml'} and use backstay; Ctrl-C ends it all")
        signal.pause()


def _table(stage: Stage, world: World) -> None:
    points = world.points()
    table = Table(title="At a glance", title_justify="left", title_style="bold")
    for column in ("VM", "policy", "restore points", "read", "stored", "ratio", "RPO"):
        table.add_column(column, justify="left" if column in ("VM", "policy", "RPO") else "right")
    coverage = {each["vm"]: each for each in world.backstay("status", "--json", expect=(0, 3)).json()["vms"]}
    for name in sorted({point["vm"] for point in points}):
        own = [point for point in points if point["vm"] == name]
        read, stored = sum(p["read_bytes"] for p in own), sum(p["stored_bytes"] for p in own)
        table.add_row(
            name, own[-1]["policy"], str(len(own)), play.mib(read), play.mib(stored),
            f"{read / max(1, stored):.1f}", str(coverage.get(name, {}).get("rpo_sentence", "")),
        )  # fmt: skip
    stage.console.print(table)
    status = world.backstay("status", "--json", expect=(0, 3)).json()
    stage.say(f"metrics: {status['metrics']}")
    stage.say(f"API: {status['api']}")


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
