"""A whole day: the lab and the engine are set up, the script is played, and what it came to is reckoned."""

from __future__ import annotations

import time
from pathlib import Path

from tests.acceptance.day.reckoning import Reckoning, proxy_of, reading, reckon
from tests.acceptance.day.script import APART, PROXY, STORES, machines, script
from tests.acceptance.day.world import World, say
from tests.acceptance.engine_process import engine_for
from tests.lab.vcenter import start_lab

POLICIES = """
schema = 1

[policy.everything]
rpo = "{goal}"
select.all = ["*"]
select.none = ["name:backstay-proxy"]
consistency = {{ want = "crash", fallback = "crash" }}
retention = {{ keep_last = 4, keep_daily = 7, min_good = 2 }}

[[policy.everything.trigger]]
on = ["vm.migrated", "vm.relocated"]
settle = "1s"
cooldown = "5s"

[[policy.everything.trigger]]
on = ["vm.powered_off", "vm.suspended", "vm.reconfigured"]
settle = "1s"
cooldown = "3s"

[policy.network]
priority = 5
select.any = ["name:app-*", "name:big-far", "name:db-held", "name:new-*"]
transports = ["nbd"]

[policy.exported]
priority = 5
select.any = ["name:big-out"]
transports = ["export"]

[policy.off]
priority = 5
select.any = ["name:big-off"]
transports = ["https"]

[policy.web]
priority = 5
select.all = ["name:web-*"]
on_migrate = "requeue"

[policy.databases]
priority = 10
select.all = ["name:db-*"]
consistency = {{ want = "filesystem", fallback = "crash" }}
retention = {{ keep_last = 6 }}
on_migrate = "block"

[[policy.databases.trigger]]
on = "vm.migrated"
cause = "drs"
"""

TIMERS = """
reconcile = "20s"
retention = "5s"
reclaim = "15s"
"""

LIMITS = "total = 4\nper_host = 4\nstarts_per_minute = 6000"
"""A day of minutes has the runs of hours."""


def play(directory: Path, *, seed: int, vms: int, seconds: float) -> Reckoning:
    """One day below a directory; what is wrong in the end is in the reckoning."""
    began = time.monotonic()
    say(f"a day of {seconds:.0f} s with {vms} VMs, seed {seed}, below {directory}")
    # Longer than the day: what happens leads to runs, the goal to a first one of each VM and to one in the evening.
    goal = f"{round(seconds / 30) + 1}m"
    with start_lab(
        directory / "lab", vms=0, hosts=3, datastores=STORES, extra=(*machines(vms), PROXY),
    ) as lab:  # fmt: skip
        lab.settings(lease_seconds=5)  # as short as the day: a killed engine's export ends by itself
        for machine in APART:
            lab.write_random_grains(machine.name, 0, share=0.8, seed=seed)
        with reading() as reader:
            facts = lab.facts()
            login = {key: facts[key] for key in ("host", "port", "password", "ca_file")}
            reader.ask("login", user=facts["admin"], **login)
            morning = proxy_of(reader.ask("inventory")["vms"])
        before = {event.key for event in lab.event_log()}
        with engine_for(
            lab, directory / "engine", POLICIES.format(goal=goal), order=("hotadd", "nbd"), proxy=PROXY.name,
            timers=TIMERS,
        ) as engine:  # fmt: skip
            engine.config.write_text(engine.config.read_text().replace("total = 2", LIMITS))
            engine.start()
            say(f"{time.monotonic() - began:6.1f} s  the engine follows; the day begins")
            world = World(lab, engine)
            world.play(script(seed, vms, seconds))
            say(f"{time.monotonic() - began:6.1f} s  evening")
            world.settle(seconds=max(15.0, seconds))
            say(f"{time.monotonic() - began:6.1f} s  reckoning")
            found = reckon(world, before, morning, vms, directory / "restored")
    told = ", ".join(f"{count} {what}" for what, count in world.refused.most_common())
    done = f"{world.kills} kills, moved while read: {dict(world.moved)}, refused: {told}"
    say(f"{time.monotonic() - began:6.1f} s  {done}")
    return found
