"""What a doctor finds: each thing that was looked at, how it stands, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from connectors.diagnosis import Diagnosis, Gap, NbdTools, ProxyReport
from connectors.hypervisor import DatastoreSpace
from connectors.privileges import PURPOSES, ROLES, Purpose
from engine.failures import Exit
from engine.headroom import Marks, blocked
from engine.looking import Foreseen, unreadable
from engine.units import show_size
from engine.ways import in_writing, none_writes
from policies.facts import Vm
from policies.units import counted

Level = Literal["ok", "note", "problem", "unreachable"]
"""Fine; worth knowing; something would not work; nothing could be asked."""

CERTIFICATE_SOON = timedelta(days=30)
"""A certificate that ends so soon is told: time enough for somebody to renew it."""

CLOCK_NOTED, CLOCK_WRONG = timedelta(seconds=30), timedelta(minutes=10)
"""From the second on the engine removes nothing by age: see docs/runbook.md."""

STATE_LEAST_BYTES = 256 << 20
"""With less beside it, the engine's state may not grow by a day's journal."""

SCRATCH_LEAST_BYTES = 64 << 20
"""Sockets, pipes and small files lie there."""

REPOSITORY_LEAST_BYTES = 2 << 30
"""A small increment needs that much, packs that are written anew included."""

MAKING = "VirtualMachine.Inventory.Create"
"""Who has it nowhere was not given the role for restores, which may be meant."""

NAMED = 3
"""So many of the objects that lack something are named; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `where` is a vCenter's name, or empty for this machine; `do` what to do."""

    where: str
    check: str
    level: Level
    said: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate, as far as its holder has to look after it."""

    fingerprint: str
    issuer: str
    since: datetime
    until: datetime


def exit_of(findings: Iterable[Finding]) -> Exit:
    """0 when all is fine, 3 when something would not work, 6 when a vCenter, the bus or a store cannot be asked."""
    levels = {one.level for one in findings}
    if "unreachable" in levels:
        return Exit.UNREACHABLE
    return Exit.PARTIAL if "problem" in levels else Exit.DONE


def certificate(where: str, shown: Certificate, now: datetime) -> Finding:
    """Whether the certificate is valid now, and for how long still."""
    days = (shown.until - now).days
    dates = f"valid {shown.since:%Y-%m-%d} to {shown.until:%Y-%m-%d}"
    if now < shown.since:
        return Finding(
            where, "certificate", "problem", f"not valid yet: {dates}", "compare this machine's clock with vCenter's"
        )
    if now > shown.until:
        return Finding(
            where, "certificate", "problem", f"it has expired: {dates}", "renew vCenter's machine certificate"
        )
    if shown.until - now < CERTIFICATE_SOON:
        return Finding(
            where,
            "certificate",
            "note",
            f"{counted(days, 'day')} left: {dates}",
            "renew vCenter's machine certificate; a pinned one has to be put into ca_file anew then",
        )
    return Finding(where, "certificate", "ok", f"{dates}, {counted(days, 'day')} left, issued by {shown.issuer}")


def clock(where: str, skew_seconds: float) -> Finding:
    """Whether both clocks tell the same time."""
    apart = timedelta(seconds=abs(skew_seconds))
    said = f"vCenter's clock is {apart.total_seconds():.0f} s {'before' if skew_seconds > 0 else 'behind'} ours"
    do = "let both take the time from the same NTP servers"
    if apart > CLOCK_WRONG:
        return Finding(where, "clock", "problem", f"{said}: no restore point expires while that is so", do)
    return Finding(where, "clock", "note", said, do) if apart > CLOCK_NOTED else Finding(where, "clock", "ok", said)


def product(where: str, found: Diagnosis, user: str) -> Finding:
    """The login, and what answered."""
    if found.api_type != "VirtualCenter":
        return Finding(
            where,
            "login",
            "note",
            f"as {user} at {found.product}, which is a single host",
            "name the vCenter that manages it, if there is one: a managed host is not to be asked directly",
        )
    return Finding(where, "login", "ok", f"as {user} at {found.product}")


def privileges(where: str, found: Diagnosis, transports: Sequence[str], user: str) -> Iterator[Finding]:
    """A finding for each purpose that lacks a privilege, or one that says that none does."""
    asked = [purpose for purpose in PURPOSES if not purpose.transport or purpose.transport in transports]
    lacking = [(purpose, gaps) for purpose in asked if (gaps := _gaps_of(purpose, found.gaps))]
    none_at_all = any(gap.privilege == MAKING and len(gap.names) == gap.asked for gap in found.gaps)
    if none_at_all:
        yield Finding(
            where,
            "privileges for restores",
            "note",
            f"{user} may make no VM anywhere: none can be restored with this account",
            f"give it the role {ROLES['restore']} instead (backstay doctor --role), or restore with another account",
        )
    for purpose, gaps in lacking:
        if none_at_all and purpose.role == "restore":
            continue
        yield Finding(
            where,
            f"privileges for {purpose.name}",
            "problem" if purpose.needed else "note",
            f"{'; '.join(_lack(gap) for gap in gaps)}. Without them {purpose.without}",
            f"add them to the role of {user}, or make the role {ROLES[purpose.role]} anew: backstay doctor --role",
        )
    if not lacking:
        yield Finding(where, "privileges", "ok", f"{user} has all that {counted(len(asked), 'purpose')} need")


def _gaps_of(purpose: Purpose, gaps: Sequence[Gap]) -> list[Gap]:
    return [gap for gap in gaps if gap.place == purpose.place and gap.privilege in purpose.privileges]


def _lack(gap: Gap) -> str:
    if len(gap.names) == gap.asked and gap.asked > 1:
        return f"{gap.privilege} lacks on all {gap.asked}"
    rest = len(gap.names) - NAMED
    return f"{gap.privilege} lacks on {', '.join(gap.names[:NAMED])}" + (f" and {rest} more" if rest > 0 else "")


def tracking(where: str, vms: Sequence[Vm]) -> Finding:
    """On how many VMs changed block tracking is on, can be switched on, waits for a snapshot to go, or never comes."""
    able = [vm for vm in vms if not vm.refusal]
    on = sum(vm.tracking_enabled for vm in able)
    never = [vm.name for vm in able if not vm.tracking_supported]
    waiting = [vm.name for vm in able if vm.tracking_supported and not vm.tracking_enabled and vm.snapshots]
    later = len(able) - on - len(never) - len(waiting)
    parts = [f"on for {on} of {counted(len(able), 'VM')}"]
    parts += [f"{later} {'gets' if later == 1 else 'get'} it at the first backup"] if later else []
    parts += [f"{len(waiting)} not while they have snapshots ({_some(waiting)})"] if waiting else []
    parts += [f"{len(never)} cannot have it ({_some(never)}): they are read in full"] if never else []
    level: Level = "note" if waiting or never else "ok"
    return Finding(where, "change tracking", level, ", ".join(parts), "remove old snapshots" if waiting else "")


def machines(where: str, vms: Sequence[Vm]) -> Finding:
    """How many VMs can be protected at all."""
    refused = [vm.name for vm in vms if vm.refusal]
    if not refused:
        return Finding(where, "VMs", "ok", f"{counted(len(vms), 'VM')}, none is refused")
    said = f"{len(refused)} of {counted(len(vms), 'VM')} cannot be protected as they are ({_some(refused)})"
    return Finding(where, "VMs", "note", said, "see why: backstay look")


def disks(where: str, vms: Sequence[Vm], ways: Mapping[tuple[str, int], Foreseen]) -> Iterator[Finding]:
    """A finding for each reason why no transport reaches some disks, or one that says how they are reached."""
    reasons = unreadable([vm for vm in vms if not vm.refusal], ways)
    for said in reasons:
        yield Finding(where, "ways to disks", "problem", said, "set one of these transports up: docs/transports.md")
    if not reasons:
        used: dict[str, int] = {}
        for way in ways.values():
            used[way.transport] = used.get(way.transport, 0) + 1
        said = ", ".join(f"{counted(count, 'disk')} by {name}" for name, count in sorted(used.items()) if name)
        yield Finding(where, "ways to disks", "ok", said or "there are none")
        if any(used) and (why := none_writes(filter(None, used))):
            yield Finding(
                where,
                "ways to disks",
                "note",
                f"{why}: a restore makes a new VM or goes to files"
                if in_writing(used)
                else f"{why}: restores go to files, not into vCenter",
                "set hot-add or NBD up before you need it: docs/transports.md",
            )


def hot_add(where: str, proxy: ProxyReport) -> Iterator[Finding]:
    """Whether disks can be attached to the VM that this engine runs in."""
    if proxy.trouble:
        do = (
            ""
            if "switched off" in proxy.trouble
            else "see Hot-add in docs/transports.md; without it the other transports are used"
        )
        yield Finding(where, "hot-add", "note", f"not here: {proxy.trouble}", do)
        return
    free = f"{counted(proxy.free_places, 'free place')} on {', '.join(proxy.controllers)}"
    attached = f", {counted(proxy.attached, 'disk')} attached now" if proxy.attached else ""
    edition = f"; {proxy.edition}" if proxy.edition else ""
    yield Finding(where, "hot-add", "ok", f"{proxy.name}: {free}{attached}{edition}")
    if proxy.tells_uuids is None:
        yield Finding(
            where,
            "hot-add",
            "note",
            f"{proxy.name} has no disk.EnableUUID, so its guest may not be told which disk is which",
            "set disk.EnableUUID = TRUE in its advanced settings, and power it off and on",
        )
    if proxy.moved_by:
        yield Finding(
            where,
            "hot-add",
            "note",
            f"DRS of {proxy.moved_by} may move {proxy.name} while it holds disks of other VMs, which a VM must not be",
            f"give {proxy.name} an override in {proxy.moved_by} (Configure, VM Overrides): DRS automation level Manual",
        )
    if proxy.unseen:
        yield Finding(
            where,
            "hot-add",
            "note",
            f"its host does not see {', '.join(proxy.unseen)}: disks there go another way",
            "mount them on the hosts that the proxy may run on",
        )


def nbd(tools: NbdTools) -> Finding:
    """Whether nbdkit and VDDK are here and work together."""
    if tools.trouble:
        return Finding("", "nbdkit and VDDK", "note", f"NBD cannot be used: {tools.trouble}", tools.hint)
    return Finding("", "nbdkit and VDDK", "ok", f"{tools.nbdkit} with {tools.library}")


def hosts(where: str, asked: int, unreachable: Mapping[str, str], *, port: int = 902, way: str = "NBD") -> Finding:
    """Whether the ESXi hosts answer at the port from which this way reads."""
    if not unreachable:
        return Finding(where, "ESXi hosts", "ok", f"{counted(asked, 'host')} can be reached on TCP {port}")
    named = "; ".join(f"{name}: {why}" for name, why in list(unreachable.items())[:NAMED])
    rest = f" and {len(unreachable) - NAMED} more" if len(unreachable) > NAMED else ""
    return Finding(
        where,
        "ESXi hosts",
        "problem",
        f"{len(unreachable)} of {counted(asked, 'host')} do not answer on TCP {port}, so {way} reads nothing there"
        f" ({named}{rest})",
        f"let this machine resolve the hosts' names, and open TCP {port} to them",
    )


def datastores(where: str, spaces: Sequence[DatastoreSpace], marks: Marks) -> Iterator[Finding]:
    """A finding for each datastore on which no snapshot is begun, or one that says that there is none such."""
    full = blocked(spaces, marks)
    for said in full.values():
        yield Finding(where, "datastores", "problem", said, "free space there; its VMs are not backed up meanwhile")
    if not full:
        yield Finding(where, "datastores", "ok", f"{counted(len(spaces), 'datastore')} with room for snapshots")


def space(check: str, place: str, free_bytes: int, least_bytes: int) -> Finding:
    """Whether a directory of this machine has room."""
    said = f"{place}: {show_size(free_bytes)} free"
    if free_bytes < least_bytes:
        return Finding("", check, "problem", said, f"free space there; {show_size(least_bytes)} is the least")
    return Finding("", check, "ok", said)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
