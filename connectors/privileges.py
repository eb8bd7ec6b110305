"""The privileges of vCenter that Backstay's work needs: the one list that `doctor` checks, roles and documents are made
of. Data only.

Ids as in the API reference (each method's "Required Privileges") and the VDDK guide's list for backup.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["backup", "restore"]

Place = Literal["root", "vms", "proxy", "datastores", "folders", "pools", "networks"]
"""On what privileges are asked for: the root of the inventory, every VM, the VM that the engine runs in, every
datastore, the datacenters' VM folders, resource pools, networks."""

ROLES: dict[Role, str] = {"backup": "backstay-backup", "restore": "backstay-restore"}
"""What the two roles are called in vCenter."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """One thing that Backstay does, and what it needs for it.

    `without` ends the sentence "Without them ...". `needed` is false for what only adds to backups and restores.
    `transport` is the one that they are for, if they are for one.
    """

    name: str
    role: Role
    place: Place
    privileges: tuple[str, ...]
    without: str
    needed: bool = True
    transport: str = ""


def _vm(*names: str) -> tuple[str, ...]:
    return tuple(f"VirtualMachine.{name}" for name in names)


PURPOSES = (
    Purpose("inventory", "backup", "root", ("System.Anonymous", "System.View", "System.Read"), "no VM is seen"),
    Purpose("snapshots", "backup", "vms", _vm("State.CreateSnapshot", "State.RemoveSnapshot"), "no backup can be made"),
    Purpose(
        "change tracking",
        "backup",
        "vms",
        _vm("Config.ChangeTracking", "Provisioning.DiskRandomRead"),
        "every backup reads the whole disks",
    ),
    Purpose(
        "reading over NBD",
        "backup",
        "vms",
        _vm("Provisioning.DiskRandomRead", "Provisioning.GetVmFiles"),
        "disks are not read over NBD",
        transport="nbd",
    ),
    Purpose(
        "hot-add",
        "backup",
        "proxy",
        _vm(
            "Config.AddExistingDisk",
            "Config.AddNewDisk",
            "Config.RemoveDisk",
            "Config.Resource",
            "Config.Settings",
            "Config.EditDevice",
            "Config.AdvancedConfig",
        ),
        "disks are not hot-added",
        transport="hotadd",
    ),
    Purpose(
        "disks to hot-add",
        "backup",
        "vms",
        _vm("Config.AddExistingDisk"),
        "the disks of these VMs are not hot-added",
        transport="hotadd",
    ),
    Purpose(
        "hot-add from datastores",
        "backup",
        "datastores",
        ("Datastore.AllocateSpace",),
        "disks there are not hot-added",
        transport="hotadd",
    ),
    Purpose(
        "files of datastores",
        "backup",
        "datastores",
        ("Datastore.Browse", "Datastore.FileManagement"),
        "NVRAM is not kept, disks of powered-off VMs are not read over HTTPS, and the length of stuns is not known",
    ),
    Purpose(
        "exports",
        "backup",
        "vms",
        ("VApp.Export",),
        "disks are not exported",
        transport="export",
    ),
    Purpose(
        "editions",
        "backup",
        "root",
        ("Global.Licenses",),
        'hotadd = "auto" does not know the edition, and tries',
        needed=False,
    ),
    Purpose(
        "storage policies",
        "backup",
        "root",
        ("StorageProfile.View",),
        "restore points do not name the storage policies of their VMs, and a restored VM gets none",
        needed=False,
    ),
    Purpose(
        "holding moves back",
        "backup",
        "root",
        ("Global.DisableMethods", "Global.EnableMethods"),
        'on_migrate = "block" cannot keep a VM from moving, nor a restore a half-restored one from being switched on',
        needed=False,
    ),
    Purpose(
        "custom attributes",
        "backup",
        "root",
        ("Global.ManageCustomFields", "Global.SetCustomField"),
        "vCenter does not show the last restore point at a VM",
        needed=False,
    ),
    Purpose("events", "backup", "root", ("Global.LogEvent",), "vCenter's events do not tell of backups", needed=False),
    Purpose(
        "tasks",
        "backup",
        "root",
        ("Extension.Register", "Extension.Update", "Task.Create", "Task.Update"),
        "vCenter does not show runs as tasks",
        needed=False,
    ),
    Purpose(
        "encrypted VMs",
        "backup",
        "vms",
        ("Cryptographer.Access", "Cryptographer.AddDisk"),
        "disks of encrypted VMs are not read",
        needed=False,
    ),
    Purpose(
        "making VMs",
        "restore",
        "folders",
        _vm(
            "Inventory.Create",
            "Inventory.Register",
            "Inventory.Unregister",
            "Inventory.Delete",
            "Config.AddNewDisk",
            "Config.AddExistingDisk",
            "Config.AddRemoveDevice",
            "Config.AdvancedConfig",
            "Config.Annotation",
            "Config.ChangeTracking",
            "Config.CPUCount",
            "Config.EditDevice",
            "Config.Memory",
            "Config.Rename",
            "Config.Resource",
            "Config.Settings",
            "Interact.PowerOn",
            "Interact.PowerOff",
        ),
        "no VM can be restored",
    ),
    Purpose(
        "questions of trial VMs",
        "restore",
        "folders",
        _vm("Interact.AnswerQuestion"),
        "a question that vCenter asks when a trial VM is switched on is not answered",
        needed=False,
    ),
    Purpose(
        "writing over NBD",
        "restore",
        "folders",
        _vm("Provisioning.DiskRandomAccess", "Provisioning.PutVmFiles"),
        "disks are not written over NBD",
        transport="nbd",
    ),
    Purpose("imports", "restore", "pools", ("VApp.Import",), "VMs are not imported", transport="export"),
    Purpose(
        "space for VMs",
        "restore",
        "datastores",
        ("Datastore.AllocateSpace", "Datastore.FileManagement"),
        "no VM can be restored there",
    ),
    Purpose(
        "placing VMs", "restore", "pools", ("Resource.AssignVMToPool",), "no VM can be restored to these resource pools"
    ),
    Purpose("connecting VMs", "restore", "networks", ("Network.Assign",), "no VM is connected to these networks"),
    Purpose(
        "what belongs to VMs",
        "restore",
        "root",
        ("Folder.Create", "Global.SetCustomField", "InventoryService.Tagging.AttachTag"),
        "a restored VM lacks its folder, custom attributes or tags",
        needed=False,
    ),
)


def purposes_of(role: Role) -> tuple[Purpose, ...]:
    """What a role is for. The one for restores is for everything: on an object an account has one role at a time, and
    giving it a second takes the first away (API: AuthorizationManager.SetEntityPermissions).
    """
    return tuple(purpose for purpose in PURPOSES if role == "restore" or purpose.role == role)


def of_role(role: Role) -> tuple[str, ...]:
    """Every privilege of a role, once, sorted."""
    return tuple(sorted({one for purpose in purposes_of(role) for one in purpose.privileges}))


def at(place: Place) -> tuple[str, ...]:
    """Every privilege that is asked for on a place, once, sorted."""
    return tuple(sorted({one for purpose in PURPOSES if purpose.place == place for one in purpose.privileges}))
