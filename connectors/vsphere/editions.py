"""Which editions of vSphere let a disk be attached to a running VM, and who says so. Data and pure rules.

`ROWS` is the whole table; docs/transports.md shows it. Where no row speaks, nothing is known: hot-add is then tried,
and what vCenter answers decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.vsphere.transport_settings import HotAddWish

_VDDK_50 = "VDDK 5.0 release notes, licensing"
_VDDK_LATEST = "Virtual Disk API guide, capabilities of library calls"

SOURCES = {
    _VDDK_50: "SCSI HotAdd is enabled only for Enterprise and higher; in vSphere 4.1 for Advanced too",
    _VDDK_LATEST: "until ESXi 5.1, HotAdd was available only with vSphere Enterprise edition and higher",
}
"""What the sources say, in short."""

EDITIONS = {
    "essentials": "Essentials",
    "essentialsPlus": "Essentials Plus",
    "standard": "Standard",
    "advanced": "Advanced",
    "enterprise": "Enterprise",
    "enterprisePlus": "Enterprise Plus",
    "eval": "Evaluation",
}
"""Editions by the word that stands in a licence's key, such as `esx.enterprisePlus.cpuPackage`."""

_FREE_OF_LIMITS = ("enterprise", "enterprisePlus", "eval")
_SMALLER = ("essentials", "essentialsPlus", "standard")


@dataclass(frozen=True, slots=True)
class Row:
    """Whether an edition has hot-add from one version of ESXi on and before another, and the source."""

    since: tuple[int, int]
    before: tuple[int, int] | None
    edition: str
    allowed: bool
    source: str


ROWS = (
    *(Row((4, 0), (5, 1), edition, True, _VDDK_50) for edition in _FREE_OF_LIMITS),
    Row((4, 0), (5, 0), "advanced", True, _VDDK_50),
    *(Row((4, 0), (5, 1), edition, False, _VDDK_50) for edition in _SMALLER),
    *(Row((5, 1), (6, 0), edition, True, _VDDK_LATEST) for edition in _SMALLER),
    *(Row((5, 1), None, edition, True, _VDDK_LATEST) for edition in _FREE_OF_LIMITS),
)
"""Advanced was sold until vSphere 5. From 5.1 on VMware tells of no limit any more; nothing is known of the smaller
editions from 6.0 on, nor of what is sold by subscription today."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether hot-add may be tried, and the sentence about it; `known` where a row of the table speaks."""

    tried: bool = True
    known: bool = False
    said: str = ""


def edition_of(key: str) -> str:
    """The word of EDITIONS in a licence's key; empty when it is none of them."""
    words = {word.lower(): word for word in EDITIONS}
    return next((words[part] for part in key.lower().split(".") if part in words), "")


def version_of(text: str) -> tuple[int, int] | None:
    """(major, minor) of a version such as "7.0.3"; None when it is none."""
    parts = text.split(".")
    if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def row_for(version: tuple[int, int], edition: str) -> Row | None:
    """The row that speaks about this version and edition."""
    for row in ROWS:
        if row.edition == edition and row.since <= version and (row.before is None or version < row.before):
            return row
    return None


def judge(wish: HotAddWish, version: str, licence_key: str) -> Verdict:
    """Whether disks are hot-added on a host of this version under this licence."""
    if wish == "never":
        return Verdict(False, True, 'hot-add is switched off: the configuration says hotadd = "never"')
    if wish == "always":
        return Verdict(True, True, 'the configuration says hotadd = "always", whatever the edition')
    number, edition = version_of(version), edition_of(licence_key)
    row = row_for(number, edition) if number is not None and edition else None
    if row is None:
        what = EDITIONS.get(edition) or licence_key or "of an edition that is not told"
        return Verdict(True, False, f"nothing is known of hot-add in vSphere {version or '?'} {what}, so it is tried")
    said = f"vSphere {version} {EDITIONS[edition]} {'has' if row.allowed else 'does not have'} hot-add ({row.source})"
    return Verdict(row.allowed, True, said)
