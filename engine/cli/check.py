"""backstay check"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json
from engine.cli.output import say, show_json, show_table
from engine.cli.reach import utc_now
from engine.client import Engine
from engine.config import Config, find, load
from engine.credentials import Secret
from engine.failures import FAMILIES, BadInput, Exit, NotReachable, verdict
from engine.looking import unreadable
from engine.sections import Bus, VCenter
from engine.stores import RepositorySection
from engine.units import show_size
from policies.linting import lint
from policies.loading import load as load_policies
from policies.naming import unknown_names
from policies.units import counted
from storage.errors import Locked
from storage.repository import open_repository


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; exit_code 0 when all is well."""

    check: str
    exit_code: int
    said: str


def check(*, config: ConfigFile = None, json: Json = False) -> int:
    """Check that everything is ready for the engine: secrets, policies, repository, copies, vCenters, transports, bus.

    Ends with the exit code of the first thing that is not.
    """
    place = config or find()
    loaded = load(place)
    found = [Finding("configuration", 0, str(place))]
    found += [_try(name, work) for name, work in _checks(loaded)]
    if json:
        show_json(found)
    else:
        show_table(
            ("CHECK", "", "FOUND"), [(one.check, "ok" if not one.exit_code else "FAILED", one.said) for one in found]
        )
    worst = next((one for one in found if one.exit_code), None)
    if worst is not None:
        say(f"Not ready: {worst.check}.")
        return worst.exit_code
    return Exit.DONE


def _try(name: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(name, 0, work())
    except FAMILIES as error:
        judged = verdict(error)
        return Finding(name, int(judged.exit_code), judged.sentence)


def _checks(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    yield from local_checks(config)
    if "nbd" in config.transport.order:
        yield "transport nbd", partial(_nbd, config)
    for name, vcenter in config.vcenter.items():
        yield f"vcenter {name}", partial(_vcenter, name, vcenter, config)
    if config.bus is not None:
        yield "bus", partial(check_bus, config.bus)


def local_checks(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    """What needs no vCenter and no bus: each returns what it found as a sentence, or raises one of FAMILIES."""
    for place, secret in _secrets(config):
        yield f"secret {place}", partial(_secret, secret)
    yield "policies", partial(_policies, config)
    yield "repository", partial(_repository, config, config.repository)
    for name, further in config.repositories.items():
        yield f"repository {name}", partial(_repository, config, further)
    for name, section in config.copies.items():
        yield f"copy {name}", partial(_repository, config, section)
    yield "engine", partial(_engine, config)


def _secrets(config: Config) -> Iterator[tuple[str, Secret]]:
    for name, vcenter in config.vcenter.items():
        yield f"vcenter.{name}.password", vcenter.password
    for name, target in config.notify.items():
        yield from ((f"notify.{name}.{key}", secret) for key, secret in target.secrets().items())
    named = {"repository.passphrase": config.repository.passphrase, "api.token": config.api.token}
    if config.bus is not None:
        named |= {"bus.password": config.bus.password, "bus.token": config.bus.token}
    yield from ((name, secret) for name, secret in named.items() if secret is not None)


def _secret(secret: Secret) -> str:
    secret.read()
    return str(secret)


def _policies(config: Config) -> str:
    folder = config.policies
    policies = load_policies(folder)
    unknown = unknown_names(policies, targets=config.notify, destinations=config.repositories, copies=config.copies)
    for said in unknown:
        raise BadInput(said, where=str(folder), hint="add it, or correct the policy")
    advice = lint(policies)
    return "; ".join([f"{counted(len(policies.policies), 'policy')} in {folder}", *(str(one) for one in advice)])


def _repository(config: Config, section: RepositorySection) -> str:
    place, passphrase = section.place(config.state_dir), section.passphrase
    try:
        with open_repository(
            place,
            passphrase=passphrase.read if passphrase is not None else None,
            must_be_encrypted=passphrase is not None,
            now=utc_now,
            owner="backstay check",
        ) as repository:
            sizes = repository.sizes()
    except Locked:
        if Engine(config.socket).listens():
            return f"{place}: the engine has it"
        raise
    free = f", {show_size(sizes.free_bytes)} free" if sizes.free_bytes is not None else ""
    return f"{place}: {counted(sizes.points, 'restore point')}{free}"


def _engine(config: Config) -> str:
    engine = Engine(config.socket)
    if not engine.listens():
        return "none runs"
    health = engine.get("/v1/status")
    troubles = "; ".join(health["problems"])
    return f"pid {health['engine']['pid']}" + (f": {troubles}" if troubles else "")


def _nbd(config: Config) -> str:
    program = config.transport.nbdkit[0]
    found = shutil.which(program)
    if found is None:
        raise BadInput(f"{program} is not installed", where="transport.nbdkit", hint="install nbdkit")
    libdir = config.transport.libdir
    if libdir is not None and not libdir.is_dir():
        raise BadInput("there is no such folder", where=f"transport.libdir {libdir}", hint="VDDK is VMware's download")
    return f"{found}, VDDK in {libdir}" if libdir is not None else f"{found}, no VDDK configured (transport.libdir)"


def _vcenter(name: str, vcenter: VCenter, config: Config) -> str:
    return asyncio.run(_looked_at(name, vcenter, config))


async def _looked_at(name: str, vcenter: VCenter, config: Config) -> str:
    from engine.connecting import connect

    hypervisor = await connect(name, vcenter, config)
    try:
        vms = await hypervisor.inventory()
        without = unreadable(vms, await hypervisor.predictions(vms))
    finally:
        await hypervisor.aclose()
    if without:
        raise NotReachable(without[0], where=counted(len(vms), "VM"), hint=f"all of it: backstay look {name}")
    refused = sum(bool(vm.refusal) for vm in vms)
    return counted(len(vms), "VM") + (
        f", {refused} of which cannot be protected; see: backstay look {name}" if refused else ""
    )


def check_bus(bus: Bus) -> str:
    """Whether a server lets the engine in. Nothing is read, written or made there."""
    from connectors.nats_client import try_login
    from connectors.nats_login import read_login
    from engine.connecting import bus_settings

    settings = bus_settings(bus)
    read_login(settings)
    if not any(_accepts(server) for server in bus.servers):
        raise NotReachable("no server accepts connections", where=", ".join(bus.servers))
    return f"logged in at {asyncio.run(try_login(settings))}"


def _accepts(server: str) -> bool:
    address = server.rpartition("://")[2]
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "4222")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), 10):
            return True
    except (OSError, ValueError):
        return False
