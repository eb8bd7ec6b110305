"""backstay vcenter clean NAME"""

from __future__ import annotations

import asyncio
from typing import Annotated

from connectors.shown import Put, Wanted
from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json, Parameter
from engine.cli.output import printable, say, show, show_json
from engine.config import Config, find, load
from engine.failures import BadInput, Exit
from policies.units import counted


def vcenter_clean(
    vcenter: Annotated[str, Parameter(help="By its name in the configuration.")],
    /,
    *,
    yes: Annotated[bool, Parameter(help="Take it away; without, only show it, and end with 3.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Take away what Backstay shows in a vCenter: its custom attributes, the tasks that still run, its extension.

    For when Backstay leaves a vCenter. What another engine shows there is of the same attributes and extension, and
    goes, too. Restore points, snapshots and VMs are not touched; the attributes' values and the texts of past events
    and tasks are lost.
    """
    loaded = load(config or find())
    if vcenter not in loaded.vcenter:
        known = ", ".join(loaded.vcenter) or "none"
        raise BadInput(f"there is no vCenter {vcenter} in the configuration", where="NAME", hint=f"there are: {known}")
    shows = Wanted(**loaded.vcenter[vcenter].show.model_dump())
    there, left = asyncio.run(_clean(vcenter, loaded, yes))
    if json:
        gone = {"attributes": list(there.attributes), "tasks": there.tasks, "extension": there.extension}
        show_json({"vcenter": vcenter, "found": gone, "removed": yes and bool(there)})
    else:
        for line in _lines(there):
            show(printable(line))
    if shows:
        say(printable(f"An engine with this configuration puts it there again: set [vcenter.{vcenter}.show] to false."))
    if not there:
        say("There is nothing of Backstay's in this vCenter.")
        return Exit.DONE
    if not yes:
        say("Nothing was taken away; --yes does it.")
        return Exit.PARTIAL
    say("Something came back meanwhile." if left else "It is taken away.")
    return Exit.PARTIAL if left else Exit.DONE


def _lines(there: Put) -> list[str]:
    lines = [f'custom attribute "{name}", with its values on all VMs' for name in there.attributes]
    if there.tasks:
        lines.append(f"{counted(there.tasks, 'task')} shown as running, to end as an error")
    return [*lines, *(["extension io.backstay"] if there.extension else [])]


async def _clean(name: str, config: Config, yes: bool) -> tuple[Put, Put]:
    """What was there, and what is there now."""
    from engine.connecting import connect

    hypervisor = await connect(name, config.vcenter[name], config)
    try:
        there = await hypervisor.board.there()
        if yes and there:
            await hypervisor.board.clean()
            return there, await hypervisor.board.there()
        return there, there
    finally:
        await hypervisor.aclose()
