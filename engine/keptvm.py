"""What a restore point keeps of its VM beside the disks, as people and programs are shown it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from connectors.errors import Rejected
from storage.errors import Damaged

if TYPE_CHECKING:
    from policies.facts import PointId
    from storage.repository import Repository


def summary_of(repository: Repository, point: PointId) -> Mapping[str, Any]:
    """The summary, empty where the restore point keeps none; what cannot be read is told in `missing`."""
    from connectors.kept_vm import unpack

    try:
        return unpack(repository.configuration(point)).summary
    except (Damaged, Rejected) as error:
        return {"missing": {"configuration": str(error)}}


def shown(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The summary in lines of a name and words."""
    if not summary:
        return
    yield "place", " ".join(f"{k.replace('_', ' ')} {summary[k]};" for k in _PLACES if summary.get(k)).rstrip(";")
    yield "hardware", ", ".join(_hardware(summary))
    for card in summary.get("cards", ()):
        on = card["network"] or card["portgroup_key"] or "no network"
        yield "network", f"{card['label']} on {on}, {card['mac']}{'' if card['starts_connected'] else ', disconnected'}"
    yield "tags", ", ".join(summary.get("tags", ()))
    yield "attributes", ", ".join(f"{k}={v}" for k, v in summary.get("attributes", {}).items())
    yield "storage", _storage(summary)
    for what, why in summary.get("missing", {}).items():
        yield f"no {what}"[:12], str(why)


def _storage(summary: Mapping[str, Any]) -> str:
    """The storage policies, in one word where all that is of the VM has the same."""
    home = str(summary.get("storage_policy") or "")
    disks = {str(d.get("label")): str(d.get("storage_policy") or "") for d in summary.get("disks", ())}
    if set(disks.values()) <= {home}:
        return home
    others = (f"{label} {name or 'none'}" for label, name in disks.items())
    return ", ".join((f"home {home or 'none'}", *others))


_PLACES = ("datacenter", "folder", "cluster", "host", "resource_pool")


def _hardware(summary: Mapping[str, Any]) -> Iterator[str]:
    if "cpus" not in summary:
        return
    yield f"{summary['cpus']} CPUs"
    yield f"{summary['memory_bytes'] >> 20} MiB"
    yield from (str(summary[k]) for k in ("hardware_version", "firmware", "guest_os") if summary.get(k))
