"""What a person is told of VMs that are half restored, in sentences."""

from __future__ import annotations

from connectors.hypervisor import MarkedVm
from engine.parts import Parts
from policies.facts import Address

_OPTION = "its option backstay.restoring"


def problems(parts: Parts) -> list[str]:
    """Each VM that waits for its restore, known by the state or by nothing but the VM's own mark."""
    found = [
        f"{one.name} is half restored from {one.point}: do not power it on, run the same restore again"
        for one in parts.crew.half_restored
        if _stands(parts, Address(one.vcenter, one.moref))
    ]
    return found + [
        only_marked(one, parts.crew.engine) for one in parts.crew.only_marked if _stands(parts, one.address)
    ]


def only_marked(vm: MarkedVm, engine: str) -> str:
    """What is to be done with a half-restored VM of which no journal is here. Pure."""
    if vm.safety:
        over = f"revert it to its snapshot {vm.safety} and remove that, or remove {_OPTION} if you know it to be whole"
    elif vm.disk:
        over = f"remove the disk that was added to it for {vm.disk}, and {_OPTION}"
    else:
        over = f"delete it if that restore made it, else remove {_OPTION} once you know it to be whole"
    give_up = f"or to give up {over}"
    if vm.engine == engine:
        return (
            f"{vm.name} is half restored from {vm.point}, and how far is not known here any more: do not power it on,"
            f" run the same restore again, which compares everything, {give_up}"
        )
    return (
        f"{vm.name} is half restored from {vm.point} by the engine {vm.engine}: do not power it on, let that one"
        f" finish; where there is none any more, run the same restore from here, {give_up}"
    )


def _stands(parts: Parts, address: Address) -> bool:
    return not parts.world.inventory_known or address in parts.world.standing_in(address.vcenter)
