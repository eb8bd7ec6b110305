"""What people do in the lab's vCenter, through its API: power, moves, new VMs, folders, tags.

Every method waits for its task and raises the task's fault. These calls are made by the lab's administrator, not by
the account that Backstay uses, so that events tell who did what.
"""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

from pyVmomi import SoapStubAdapter, vim

from tests.lab.process import VcenterProcess, client_context

T = TypeVar("T")


class Inventory:
    process: VcenterProcess
    host: str
    port: int
    admin: str
    password: str
    ca_file: Path

    def __init__(self) -> None:
        self._si: Any = None
        self._tags: dict[tuple[str, str], str] = {}
        self._categories: dict[str, str] = {}

    def connect(self, user: str | None = None, password: str | None = None) -> Any:
        """A new session with verified TLS: a `vim.ServiceInstance`. End it with `disconnect`, or use `session`."""
        stub = SoapStubAdapter(
            host=self.host, port=self.port, version="vim.version.v7_0_3_0", path="/sdk",
            sslContext=client_context(self.ca_file), httpConnectionTimeout=60,
        )  # fmt: skip
        si = vim.ServiceInstance("ServiceInstance", stub)
        try:
            manager: Any = si.content.sessionManager
            manager.Login(user or self.admin, self.password if password is None else password, None)
        except BaseException:
            stub.DropConnections()
            raise
        return si

    @staticmethod
    def disconnect(si: Any) -> None:
        """Log out, and close the sockets, which pyVmomi leaves to the garbage collector."""
        with suppress(vim.fault.NotAuthenticated, OSError, HTTPException):
            si.content.sessionManager.Logout()
        si._stub.DropConnections()

    @contextmanager
    def session(self, user: str | None = None) -> Iterator[Any]:
        si = self.connect(user)
        try:
            yield si
        finally:
            self.disconnect(si)

    def close_session(self) -> None:
        if self._si is not None:
            self._si._stub.DropConnections()
            self._si = None

    def _act(self, action: Callable[[Any], T]) -> T:
        """Run with the administrator's session; log in again when the lab has ended it."""
        for attempt in range(3):
            try:
                if self._si is None:
                    self._si = self.connect()
                return action(self._si)
            except (vim.fault.NotAuthenticated, OSError, HTTPException):
                self.close_session()
                if attempt == 2:
                    raise
                time.sleep(0.1 * attempt)
        raise AssertionError("unreachable")

    def find(self, kind: Any, which: str) -> Any:
        """The managed object of this name or moref."""

        def search(si: Any) -> Any:
            view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [kind], True)
            try:
                for each in view.view:
                    if each._moId == which or each.name == which:
                        return each
            finally:
                view.Destroy()
            raise KeyError(f"{kind.__name__} {which}")

        return self._act(search)

    def moref(self, which: str) -> str:
        """The moref of the VM with this name or moref."""
        for each in self.process.order("/machines"):
            if which in (each["moref"], each["name"]):
                return str(each["moref"])
        raise KeyError(which)

    def machine(self, which: str) -> Any:
        """The VM as pyVmomi has it, by a session that is alive now."""
        moref = self.moref(which)

        def read(si: Any) -> Any:
            vm = vim.VirtualMachine(moref, si._stub)
            if not vm.name:
                raise KeyError(which)
            return vm

        return self._act(read)

    def finish(self, start: Callable[[], Any], timeout: float = 120) -> Any:
        """Start a task and wait for it; its result, or its fault raised."""
        task = self._act(lambda _: start())
        deadline = time.monotonic() + timeout
        while True:
            info = self._act(lambda _: task.info)
            if info.state == vim.TaskInfo.State.success:
                return info.result
            if info.state == vim.TaskInfo.State.error:
                raise info.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{info.descriptionId} of {info.entityName} is still {info.state}")
            time.sleep(0.005)

    # Power and place

    def power_on(self, which: str) -> None:
        self.finish(lambda: self.machine(which).PowerOnVM_Task())

    def power_off(self, which: str) -> None:
        self.finish(lambda: self.machine(which).PowerOffVM_Task())

    def suspend(self, which: str) -> None:
        self.finish(lambda: self.machine(which).SuspendVM_Task())

    def host_for(self, which: str, host: str | None = None) -> Any:
        """The host with this name or moref, or another host of the VM's cluster than the VM's own."""
        if host is not None:
            return self.find(vim.HostSystem, host)

        def other(_: Any) -> Any:
            own = self.machine(which).runtime.host
            return next(each for each in own.parent.host if each._moId != own._moId)

        return self._act(other)

    def migrate(self, which: str, host: str | None = None) -> str:
        """vMotion, as a person starts it; the name of the new host."""
        target = self.host_for(which, host)
        self.finish(lambda: self.machine(which).MigrateVM_Task(host=target, priority="defaultPriority"))
        return str(target.name)

    def relocate(self, which: str, datastore: str, *, host: str | None = None) -> None:
        """Move the VM's files to another datastore, and the VM to another host when one is named."""
        spec = vim.vm.RelocateSpec(datastore=self.find(vim.Datastore, datastore))
        if host is not None:
            spec.host = self.host_for(which, host)
        self.finish(lambda: self.machine(which).RelocateVM_Task(spec))

    def relocate_disk(self, which: str, disk: int, datastore: str) -> None:
        """Move one disk alone, which no event names."""
        devices = self._act(lambda _: self.machine(which).config.hardware.device)
        device = [d for d in devices if isinstance(d, vim.vm.device.VirtualDisk)][disk]
        locator = vim.vm.RelocateSpec.DiskLocator(diskId=device.key, datastore=self.find(vim.Datastore, datastore))
        self.finish(lambda: self.machine(which).RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])))

    # Life and death

    def create_vm(
        self, name: str, *, disks: Sequence[int] = (16 * 1024 * 1024,), folder: str | None = None,
        datastore: str = "fast-1", on: bool = False,
    ) -> str:  # fmt: skip
        """A new VM with empty disks; its moref."""
        controller = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
        changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)]
        for unit, size in enumerate(disks):
            backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{datastore}] {name}/{name}{f'_{unit}' if unit else ''}.vmdk",
                diskMode="persistent",
                thinProvisioned=True,
            )
            disk = vim.vm.device.VirtualDisk(
                key=-10 - unit, controllerKey=-1, unitNumber=unit, capacityInKB=size // 1024, capacityInBytes=size,
                backing=backing,
            )  # fmt: skip
            changes.append(vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk))
        spec = vim.vm.ConfigSpec(
            name=name, guestId="debian10_64Guest", numCPUs=1, memoryMB=512, deviceChange=changes,
            files=vim.vm.FileInfo(vmPathName=f"[{datastore}]"),
        )  # fmt: skip
        where = self.folder(folder) if folder else self._act(lambda si: self._datacenter(si).vmFolder)
        pool = self._act(lambda si: self._clusters(si)[0].resourcePool)
        made = self.finish(lambda: where.CreateVM_Task(config=spec, pool=pool))
        if on:
            self.finish(lambda: made.PowerOnVM_Task())
        return str(made._moId)

    def clone_vm(self, which: str, name: str, *, folder: str | None = None, on: bool = False) -> str:
        """A full clone; its moref."""
        where = self.folder(folder) if folder else self._act(lambda _: self.machine(which).parent)
        spec = vim.vm.CloneSpec(location=vim.vm.RelocateSpec(), powerOn=on, template=False)
        made = self.finish(lambda: self.machine(which).CloneVM_Task(folder=where, name=name, spec=spec))
        if on:
            self.finish(lambda: made.PowerOnVM_Task())
        return str(made._moId)

    def remove_vm(self, which: str) -> None:
        """Power off if need be, and delete from disk."""
        if self._act(lambda _: self.machine(which).runtime.powerState) == "poweredOn":
            self.power_off(which)
        self.finish(lambda: self.machine(which).Destroy_Task())

    def unregister(self, which: str) -> str:
        """Take the VM out of the inventory, keep its files; the path to register it by."""
        machine = self.machine(which)
        path = str(self._act(lambda _: machine.config.files.vmPathName))
        self._act(lambda _: machine.UnregisterVM())
        return path

    def register(self, path: str, name: str | None = None) -> str:
        """Register a VM again: a new moref, the same identity."""
        folder = self._act(lambda si: self._datacenter(si).vmFolder)
        pool = self._act(lambda si: self._clusters(si)[0].resourcePool)
        made = self.finish(lambda: folder.RegisterVM_Task(path=path, name=name, asTemplate=False, pool=pool))
        return str(made._moId)

    def rename(self, which: str, name: str) -> None:
        self.finish(lambda: self.machine(which).Rename_Task(name))

    def reconfigure(self, which: str, **changes: object) -> None:
        """ReconfigVM_Task with these fields of ConfigSpec."""
        self.finish(lambda: self.machine(which).ReconfigVM_Task(vim.vm.ConfigSpec(**changes)))

    def set_tracking(self, which: str, on: bool) -> None:
        self.reconfigure(which, changeTrackingEnabled=on)

    def add_disk(self, which: str, size: int, *, mode: str = "persistent") -> None:
        """A new empty disk, named by vCenter."""
        devices = self._act(lambda _: self.machine(which).config.hardware.device)
        controller = next(d for d in devices if isinstance(d, vim.vm.device.VirtualSCSIController))
        used = {d.unitNumber for d in devices if d.controllerKey == controller.key}
        unit = next(n for n in range(16) if n not in used and n != 7)
        home = self._act(lambda _: self.machine(which).config.files.vmPathName)
        name = home.removesuffix(".vmx") + f"_{unit}.vmdk"
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=name, diskMode=mode, thinProvisioned=True)
        disk = vim.vm.device.VirtualDisk(
            key=-1, controllerKey=controller.key, unitNumber=unit, capacityInKB=size // 1024, capacityInBytes=size,
            backing=backing,
        )  # fmt: skip
        change = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
        self.reconfigure(which, deviceChange=[change])

    def extend_disk(self, which: str, disk: int, size: int) -> None:
        """Make a disk larger while the VM runs."""
        devices = self._act(lambda _: self.machine(which).config.hardware.device)
        device = [d for d in devices if isinstance(d, vim.vm.device.VirtualDisk)][disk]
        device.capacityInBytes, device.capacityInKB = size, size // 1024
        self.reconfigure(which, deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="edit", device=device)])

    def snapshot(self, which: str, name: str = "by hand") -> str:
        """A snapshot that a person takes; its moref."""
        made = self.finish(lambda: self.machine(which).CreateSnapshotEx_Task(name=name, description="", memory=False))
        return str(made._moId)

    def remove_snapshot(self, snapshot: str) -> None:
        self.finish(
            lambda: self._act(lambda si: vim.vm.Snapshot(snapshot, si._stub).RemoveSnapshot_Task(removeChildren=False))
        )

    def revert(self, snapshot: str) -> None:
        """Go back to a snapshot."""
        self.finish(lambda: self._act(lambda si: vim.vm.Snapshot(snapshot, si._stub).RevertToSnapshot_Task()))

    # Folders, tags, attributes

    def _datacenter(self, si: Any) -> Any:
        return next(each for each in si.content.rootFolder.childEntity if isinstance(each, vim.Datacenter))

    def _clusters(self, si: Any) -> list[Any]:
        return [
            each for each in self._datacenter(si).hostFolder.childEntity if isinstance(each, vim.ClusterComputeResource)
        ]

    def folder(self, path: str) -> Any:
        """The VM folder of this path, made when missing."""

        def walk(si: Any) -> Any:
            at = self._datacenter(si).vmFolder
            for part in filter(None, path.split("/")):
                found = [c for c in at.childEntity if isinstance(c, vim.Folder) and c.name == part]
                at = found[0] if found else at.CreateFolder(part)
            return at

        return self._act(walk)

    def move_to_folder(self, which: str, path: str) -> None:
        folder = self.folder(path)
        self.finish(lambda: folder.MoveIntoFolder_Task([self.machine(which)]))

    def add_role(self, name: str, privileges: Sequence[str]) -> None:
        """Make a role; vCenter refuses privileges that it does not know."""
        self._act(lambda si: si.content.authorizationManager.AddAuthorizationRole(name=name, privIds=list(privileges)))

    def set_attribute(self, which: str, name: str, value: str) -> None:
        """Set a custom attribute, defined when it is new."""

        def apply(si: Any) -> None:
            manager = si.content.customFieldsManager
            known = {field.name: field.key for field in manager.field}
            key = known.get(name)
            if key is None:
                key = manager.AddCustomFieldDef(name=name, moType=vim.VirtualMachine).key
            manager.SetField(entity=self.machine(which), key=key, value=value)

        self._act(apply)

    def tag(self, which: str, category: str, name: str) -> None:
        """Attach a tag, made with its category when new."""
        moref = self.moref(which)
        session = self.rest("POST", "/api/session")
        key = (category, name)
        if key not in self._tags:
            if category not in self._categories:
                spec = {"name": category, "description": "", "cardinality": "MULTIPLE", "associable_types": []}
                self._categories[category] = self.rest("POST", "/api/cis/tagging/category", spec, session)
            spec = {"name": name, "description": "", "category_id": self._categories[category]}
            self._tags[key] = self.rest("POST", "/api/cis/tagging/tag", spec, session)
        path = f"/api/cis/tagging/tag-association/{self._tags[key]}?action=attach"
        self.rest("POST", path, {"object_id": {"id": moref, "type": "VirtualMachine"}}, session)
        self.rest("DELETE", "/api/session", session=session)

    def rest(self, method: str, path: str, body: object | None = None, session: str = "") -> Any:
        """A call of the REST API by the administrator; without a session, with name and password."""
        request = Request(f"https://{self.host}:{self.port}{path}", method=method)
        if session:
            request.add_header("vmware-api-session-id", session)
        else:
            credentials = b64encode(f"{self.admin}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urlopen(request, data=data, timeout=30, context=client_context(self.ca_file)) as answer:
            text = answer.read()
        return json.loads(text) if text else None
