"""The vCenter connector is what the engine asks for, by structure alone."""

from connectors.vsphere.hypervisor import VCenter
from engine.ports import Hypervisor


def as_the_engine_sees_it(vcenter: VCenter) -> Hypervisor:
    """mypy proves the claim: each method fits its declaration in the engine's ports."""
    return vcenter


def test_the_vcenter_connector_has_every_method_of_the_engines_protocol() -> None:
    wanted = {name for name in vars(Hypervisor) if not name.startswith("_")}
    assert wanted
    assert wanted <= set(dir(VCenter))
