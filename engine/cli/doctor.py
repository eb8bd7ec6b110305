"""backstay doctor [VCENTER]"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from connectors.diagnosis import NbdTools
from engine.cli.check import check_bus, local_checks
from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json, Parameter
from engine.cli.output import printable, say, show, show_json, show_table
from engine.config import Config, find, load
from engine.doctoring import certificate_finding, directories, examine, refused
from engine.failures import FAMILIES, BadInput, Exit
from engine.findings import Finding, exit_of, nbd
from engine.headroom import Marks
from engine.roles import roles
from engine.sections import VCenter
from policies.loading import load as load_policies
from policies.units import counted

WORDS = {"ok": "ok", "note": "note", "problem": "PROBLEM", "unreachable": "UNREACHABLE"}


def doctor(
    vcenter: str | None = None,
    /,
    *,
    role: Annotated[
        bool, Parameter(help="Write the minimal vCenter roles and the lines that create them; look at nothing.")
    ] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Examine this machine and the vCenters: what works, what would not, and what to do about it. Changes nothing.

    Login, certificate, each privilege, clock, change tracking, hot-add, nbdkit and VDDK, ways to every disk, ESXi
    hosts, free space, repository, copies, bus. Ends with 3 when something would not work, with 6 when a vCenter, the
    bus or a store cannot be reached or refuses the login.

    Parameters
    ----------
    vcenter
        Only this one, by its name in the configuration.
    """
    if role:
        return _write_roles(vcenter, config, json)
    loaded = load(config or find())
    chosen = _chosen(loaded, vcenter)
    found = asyncio.run(_examined(loaded, chosen))
    if json:
        show_json(found)
    else:
        _tell(found)
    return exit_of(found)


def _chosen(config: Config, name: str | None) -> dict[str, VCenter]:
    if name is None:
        return config.vcenter
    if name not in config.vcenter:
        known = ", ".join(config.vcenter) or "none"
        raise BadInput(f"there is no vCenter {name} in the configuration", where="vcenter", hint=f"there are: {known}")
    return {name: config.vcenter[name]}


async def _examined(config: Config, chosen: dict[str, VCenter]) -> list[Finding]:
    from engine.connecting import nbd_tools

    found = await asyncio.to_thread(lambda: list(_local(config)))
    tools: NbdTools | None = None
    ways = _ways(config)
    if "nbd" in ways:
        try:
            tools = await nbd_tools(config)
            found.append(nbd(tools))
        except FAMILIES as error:
            found.append(refused("", "nbdkit and VDDK", error))
    for name, vcenter in chosen.items():
        found += await _vcenter(name, vcenter, config, tools, ways)
    return found


def _ways(config: Config) -> tuple[str, ...]:
    """The transports that the configuration or a policy names."""
    named: list[str] = [*config.transport.order]
    with suppress(*FAMILIES):  # what is wrong with policies is told as a finding of its own
        named += [way for policy in load_policies(config.policies).policies for way in policy.transports]
    return tuple(dict.fromkeys(named))


def _local(config: Config) -> Iterator[Finding]:
    for name, work in local_checks(config):
        try:
            yield Finding("", name, "ok", work())
        except FAMILIES as error:
            yield refused("", name, error)
    sections = (config.repository, *config.repositories.values(), *config.copies.values())
    repositories = [section.path for section in sections if section.path]
    yield from directories(config.state_dir, Path(tempfile.gettempdir()), repositories)
    if config.bus is not None:
        try:
            yield Finding("", "bus", "ok", check_bus(config.bus))
        except FAMILIES as error:
            yield refused("", "bus", error)


async def _vcenter(
    name: str, vcenter: VCenter, config: Config, tools: NbdTools | None, ways: tuple[str, ...]
) -> list[Finding]:
    from engine.connecting import connect

    found = await asyncio.to_thread(lambda: list(certificate_finding(name, vcenter.host, vcenter.port)))
    try:
        hypervisor = await connect(name, vcenter, config)
    except FAMILIES as error:
        return [*found, refused(name, "login", error)]
    try:
        found += await examine(
            name,
            hypervisor,
            user=vcenter.user,
            transports=ways,
            marks=Marks(config.limits.datastore_free, config.limits.datastore_low),
            tools=tools,
            vddk=config.transport.plugin == ("vddk",),
        )
    except FAMILIES as error:
        found.append(refused(name, "examination", error))
    finally:
        await hypervisor.aclose()
    return found


def _tell(found: list[Finding]) -> None:
    show_table(
        ("WHERE", "CHECK", "", "FOUND"),
        [(one.where or "this machine", one.check, WORDS[one.level], one.said) for one in found],
    )
    for one in found:
        if one.level != "ok" and one.do:
            say(printable(f"{one.where + ': ' if one.where else ''}{one.check}: {one.do}"))
    wrong = sum(one.level in ("problem", "unreachable") for one in found)
    say(f"{counted(wrong, 'check')} of {len(found)} failed." if wrong else "Nothing is wrong.")


def _write_roles(vcenter: str | None, config: Path | None, json: bool) -> int:
    """The roles need no configuration; where there is one, its account is named in the lines."""
    users = {}
    if config is not None or find().exists():
        users = {one.user: None for one in _chosen(load(config or find()), vcenter).values()}
    made = roles(next(iter(users), ""))
    if json:
        show_json({"roles": made})
        return Exit.DONE
    for one in made:
        show(f"# {one.name}: {', '.join(one.purposes)}")
        for privilege in one.privileges:
            show(f"#   {privilege}")
        show("# PowerCLI")
        for line in one.powercli:
            show(line)
        show("# or govc")
        for line in one.govc:
            show(line)
        show("")
    say("Give an account the first role to back up, or the second one, which holds it, to restore too: never both.")
    return Exit.DONE
