"""backstay look VCENTER"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from engine.cli.options import Config as ConfigFile
from engine.cli.options import Json, Parameter
from engine.cli.output import printable, say, show, show_json, show_table
from engine.cli.reach import utc_now
from engine.cli.visiting import configured, parse_address, password_source, read_authority, user_of
from engine.config import Config
from engine.connecting import connect
from engine.failures import BadInput, NotReachable
from engine.looking import look as look_at
from engine.sections import VCenter
from engine.stores import RepositorySection
from engine.trust import check_fingerprint, fetch_certificate, is_trusted
from engine.units import show_size
from policies.loading import load
from policies.policyset import PolicySet
from policies.units import counted, span


def look(
    vcenter: str,
    /,
    *,
    user: Annotated[str | None, Parameter(help="Account; reading is enough. Else BACKSTAY_VCENTER_USER.")] = None,
    password: Annotated[
        str | None, Parameter(help="file:, env: or command: of the password; else BACKSTAY_VCENTER_PASSWORD.")
    ] = None,
    ca_file: Annotated[Path | None, Parameter(help="Authority that signed the vCenter's certificate (PEM).")] = None,
    fingerprint: Annotated[str | None, Parameter(help="SHA-256 of the vCenter's certificate, instead.")] = None,
    policies: Annotated[Path | None, Parameter(help="Policies to try; else the configured or example ones.")] = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Look at a vCenter without touching it: what can be protected, what cannot and why.

    Needs an account that may read, no repository and no snapshot. Shows change tracking, other people's snapshots
    with their age, the consistency that a snapshot would reach now, the transport that each disk would take, and what
    policies would select.

    Parameters
    ----------
    vcenter
        Its name in the configuration, its host, or a URL.
    """
    login = {"--user": user, "--password": password, "--ca-file": ca_file, "--fingerprint": fingerprint}
    given = [option for option, value in login.items() if value is not None]
    known = configured(vcenter, config, by_address=not given)
    if known is not None and given:
        raise BadInput(
            f"{vcenter} is a name in the configuration, which says how to log in", where=given[0], hint="give its host"
        )
    chosen = policies or (known[1].policies if known is not None and known[1].policies.is_dir() else examples())
    tried = load(chosen) if chosen is not None else None
    if known is not None:
        found = asyncio.run(_look(vcenter, *known, tried))
    else:
        with _trusted(vcenter, ca_file, fingerprint) as authority:
            address = parse_address(vcenter)
            settings = VCenter(
                host=address.host,
                port=address.port,
                user=user_of(address, user),
                password=password_source(password),
                ca_file=authority,
            )
            nowhere = Config(schema=1, repository=RepositorySection(path=Path("/nonexistent")))
            found = asyncio.run(_look(vcenter, settings, nowhere, tried))
    if json:
        show_json(found)
    else:
        _tell(found, chosen)


def examples() -> Path | None:
    """The example policies, in an installation or in a checkout."""
    import policies as package

    root = Path(package.__file__ or ".").parent
    return next((place for place in (root / "examples", root.parent / "examples" / "policies") if place.is_dir()), None)


async def _look(name: str, vcenter: VCenter, config: Config, tried: PolicySet | None) -> dict[str, Any]:
    hypervisor = await connect(name, vcenter, config)
    try:
        return await look_at(hypervisor, tried, utc_now())
    finally:
        await hypervisor.aclose()


@contextmanager
def _trusted(vcenter: str, ca_file: Path | None, fingerprint: str | None) -> Iterator[Path | None]:
    """The authority to trust; for a fingerprint the server's own certificate, once it is the expected one."""
    if ca_file is not None and fingerprint is None:
        read_authority(ca_file)
        yield ca_file
        return
    address = parse_address(vcenter)
    certificate = fetch_certificate(address.host, address.port)
    if fingerprint is None:
        if not is_trusted(address.host, address.port):
            raise NotReachable(
                "the certificate is not trusted: no authority that this system knows vouches for it",
                where=f"{address.host}:{address.port}",
                hint=f"give --ca-file; or compare, and give --fingerprint {certificate.fingerprint}",
            )
        yield None
        return
    check_fingerprint(certificate, fingerprint, vcenter)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as kept:
        kept.write(certificate.pem)
        kept.flush()
        yield Path(kept.name)


def _tell(found: Mapping[str, Any], chosen: Path | None) -> None:
    show_table(
        ("VM", "POWER", "LEVEL", "DISK", "SIZE", "TRACKING", "TRANSPORT", "POLICIES", "REMARK"),
        [row for vm in found["vms"] for row in _lines(vm)],
        right=frozenset({"SIZE"}),
    )
    show("")
    for (level, why), vms in _levels(found).most_common():
        show(printable(f"{vms} of {counted(found['summary']['vms'], 'VM')} at most {level} consistent: {why}"))
    for reason, disks in _obstacles(found).most_common():
        show(printable(f"{disks} of {counted(found['summary']['disks'], 'disk')} not by {reason}"))
    for one in found["policies"]:
        show(printable(f"{one['policy']} would select {len(one['vms'])}: {_some(one['vms']) or 'none'}"))
    if chosen is not None:
        show(printable(f"selected by nothing: {_some(found['selected_by_none']) or 'none'}"))
    summary = found["summary"]
    say(
        f"{summary['protectable_vms']} of {counted(summary['vms'], 'VM')} and {summary['protectable_disks']} of"
        f" {counted(summary['disks'], 'disk')} ({show_size(summary['disk_bytes'])}) can be protected;"
        f" change tracking is on for {summary['tracking_on']},"
        f" {counted(summary['foreign_snapshots'], 'foreign snapshot')}."
    )
    if summary["without_transport"]:
        unreached = counted(summary["without_transport"], "disk")
        say(f"No transport reaches {unreached} from this machine yet: see the reasons above.")


def _depth(snapshot: Mapping[str, Any]) -> str:
    return f", number {snapshot['depth']} of a chain" if snapshot["depth"] > 1 else ""


def _lines(vm: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    remarks = [vm["refusal"]] if vm["refusal"] else []
    remarks += [
        f"snapshot {one['name']!r} is {span(timedelta(seconds=one['age_seconds']))} old{_depth(one)}"
        for one in vm["snapshots"]
    ]
    remarks += ["disks need consolidation"] if vm["consolidation_needed"] else []
    selected = ", ".join(vm["policies"])
    if not vm["disks"]:
        yield vm["vm"], vm["power"], vm["consistency"], "", "", vm["tracking"], "", selected, "; ".join(remarks)
    for number, disk in enumerate(vm["disks"]):
        own = [disk["why_not"]] if disk["why_not"] else []
        said = "; ".join([*(remarks if number == 0 else []), *own])
        size = show_size(disk["capacity_bytes"])
        way = disk["transport"] or "none"
        yield vm["vm"], vm["power"], vm["consistency"], disk["label"], size, vm["tracking"], way, selected, said


def _levels(found: Mapping[str, Any]) -> Counter[tuple[str, str]]:
    """Why snapshots of running guests would be less than application consistent, and of how many."""
    return Counter(
        (vm["consistency"], vm["consistency_why"])
        for vm in found["vms"]
        if vm["consistency_why"] and vm["consistency"] != "application"
    )


def _obstacles(found: Mapping[str, Any]) -> Counter[str]:
    """Why transports would not be taken, and for how many disks: mostly one reason for all."""
    return Counter(
        f"{one['transport']}: {one['reason']}"
        for vm in found["vms"]
        for disk in vm["disks"]
        for one in disk["fallbacks"]
    )


def _some(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
