"""Looks at one vCenter and at this machine as a doctor does. Reads only; what it means is for engine.findings."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509

from connectors.diagnosis import Diagnosis, NbdTools
from connectors.hypervisor import DatastoreSpace
from engine import findings
from engine.failures import FAMILIES, verdict
from engine.findings import REPOSITORY_LEAST_BYTES, SCRATCH_LEAST_BYTES, STATE_LEAST_BYTES, Certificate, Finding
from engine.headroom import Marks
from engine.looking import Foreseen
from engine.trust import fetch_certificate
from policies.facts import Vm

HOSTS_AT_ONCE = 32
HOST_SECONDS = 5.0
"""How long an ESXi host may take to accept a connection."""

VDDK_PORT, EXPORT_PORT = 902, 443
"""Where ESXi hosts give disks away to VDDK, and what is exported."""


class Patient(Protocol):
    """A vCenter that answers a doctor's questions."""

    async def diagnose(self) -> Diagnosis:
        """What it is, and what the account may and can do in it."""
        ...

    async def inventory(self) -> Sequence[Vm]:
        """Every VM now."""
        ...

    async def predictions(self, vms: Sequence[Vm]) -> Mapping[tuple[str, int], Foreseen]:
        """By (moRef, disk key)."""
        ...

    async def space(self) -> Sequence[DatastoreSpace]:
        """How full all datastores are."""
        ...


def read_certificate(host: str, port: int) -> Certificate:
    """What the server shows, whoever vouches for it; NotReachable when it does not answer. Blocking."""
    shown = fetch_certificate(host, port)
    parsed = x509.load_der_x509_certificate(ssl.PEM_cert_to_DER_cert(shown.pem))
    return Certificate(
        fingerprint=shown.fingerprint,
        issuer=parsed.issuer.rfc4514_string(),
        since=parsed.not_valid_before_utc,
        until=parsed.not_valid_after_utc,
    )


async def examine(
    where: str,
    patient: Patient,
    *,
    user: str,
    transports: Sequence[str],
    marks: Marks,
    tools: NbdTools | None,
    vddk: bool,
) -> list[Finding]:
    """Everything about one vCenter that is logged in to. `vddk`: disks are read by VMware's own library, from hosts."""
    told = await patient.diagnose()
    vms = await patient.inventory()
    found = [findings.product(where, told, user), findings.clock(where, told.skew_seconds)]
    found += findings.privileges(where, told, transports, user)
    found += [findings.machines(where, vms), findings.tracking(where, vms)]
    ways = await patient.predictions(vms)
    found += findings.disks(where, vms, ways)
    if told.proxy is not None:
        found += findings.hot_add(where, told.proxy)
    if tools is not None and not tools.trouble and vddk:
        found.append(findings.hosts(where, len(told.hosts), await unreachable(told.hosts, VDDK_PORT)))
    if any(way.transport == "export" for way in ways.values()):
        dumb = await unreachable(told.hosts, EXPORT_PORT)
        found.append(findings.hosts(where, len(told.hosts), dumb, port=EXPORT_PORT, way="export"))
    found += findings.datastores(where, await patient.space(), marks)
    return found


async def unreachable(names: Iterable[str], port: int) -> dict[str, str]:
    """The hosts whose name is not resolved or that accept no connection, each with the reason, in their order."""
    places = asyncio.Semaphore(HOSTS_AT_ONCE)

    async def ask(name: str) -> str:
        async with places:
            try:
                async with asyncio.timeout(HOST_SECONDS):
                    _, writer = await asyncio.open_connection(name, port)
            except TimeoutError:
                return f"no answer within {HOST_SECONDS:g} s"
            except (OSError, UnicodeError) as error:
                return getattr(error, "strerror", None) or str(error)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return ""

    asked = list(names)
    async with asyncio.TaskGroup() as group:
        answers = [group.create_task(ask(name)) for name in asked]
    return {name: why for name, answer in zip(asked, answers, strict=True) if (why := answer.result())}


def certificate_finding(where: str, host: str, port: int) -> Iterator[Finding]:
    """The certificate's dates; nothing where the server does not answer, which the login tells."""
    with suppress(*FAMILIES):
        yield findings.certificate(where, read_certificate(host, port), datetime.now(UTC))


def refused(where: str, check: str, error: Exception) -> Finding:
    """An error of one of FAMILIES as a finding."""
    judged = verdict(error)
    level: findings.Level = "unreachable" if judged.exit_code == 6 else "problem"
    what = getattr(error, "what", "") or judged.sentence
    place = getattr(error, "where", "")
    return Finding(where, check, level, f"{place}: {what}" if place else what, getattr(error, "hint", ""))


def directories(state_dir: Path, scratch: Path, repositories: Sequence[Path]) -> Iterator[Finding]:
    """Room for the engine's state, for short-lived files, and for restore points in directories."""
    for check, place, least in (
        ("state directory", state_dir, STATE_LEAST_BYTES),
        ("scratch directory", scratch, SCRATCH_LEAST_BYTES),
        *(("repository directory", place, REPOSITORY_LEAST_BYTES) for place in repositories),
    ):
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("", check, "problem", f"{place}: this user may not write there", "change its owner or mode")
            continue
        held = os.statvfs(there)
        yield findings.space(check, str(place), held.f_bavail * held.f_frsize, least)
