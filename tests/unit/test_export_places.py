"""Which disk an address of an export lease is for, by its key as vCenters in the field write it."""

from __future__ import annotations

import pytest

from connectors.vsphere.export import place


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("/vm-13010/ParaVirtualSCSIController0:0", ("scsi", 0, 0)),
        ("/vm-13011/VirtualBusLogicController1:2", ("scsi", 1, 2)),
        ("/vm-13012/VirtualLsiLogicController0:15", ("scsi", 0, 15)),
        ("/10/VirtualLsiLogicSASController3:1", ("scsi", 3, 1)),
        ("/vm-13767/VirtualAHCIController0:1", ("sata", 0, 1)),
        ("/vm-5678/VirtualIDEController1:0", ("ide", 1, 0)),
        ("/vm-2468/VirtualNVMEController0:0", ("nvme", 0, 0)),
        ("/vm-54321/VirtualUSBController0:0", None),
        ("/vm-16/nvram", None),
        ("", None),
    ],
)
def test_a_key_names_bus_controller_and_unit_of_a_disk(key: str, found: tuple[str, int, int] | None) -> None:
    assert place(key) == found
