# mypy: ignore-errors
"""Looks at a vCenter and at restored bytes beside everything of Backstay's: `python -I reader.py`.

It imports the standard library and pyVmomi, nothing of this project, and runs as a process of its own. It reads orders
as lines of JSON and answers each with one line; what goes wrong is answered as {"error": sentence}.

    {"do": "login", "host": …, "port": …, "user": …, "password": …, "ca_file": …}
    {"do": "inventory"}                every VM with its snapshots, disks and methods that are disabled
    {"do": "move", "moref": …}         vMotion to another host of its cluster: {"refused": sentence or ""}
    {"do": "same", "one": …, "other": …}   whether two files hold the same bytes, by SHA-256
    {"do": "modules"}                  the names of all that this process has imported
"""

import hashlib
import json
import ssl
import sys
import time
from pathlib import Path

from pyVmomi import SoapStubAdapter, vim, vmodl

PATHS = ["name", "config", "snapshot", "runtime", "disabledMethod"]
PIECE = 1 << 20


class Reader:
    """One login."""

    def __init__(self) -> None:
        self.service = None

    def login(self, order):
        context = ssl.create_default_context(cafile=order["ca_file"])
        stub = SoapStubAdapter(
            host=order["host"], port=order["port"], version="vim.version.v7_0_3_0", path="/sdk", sslContext=context
        )
        self.service = vim.ServiceInstance("ServiceInstance", stub)
        self.service.content.sessionManager.Login(order["user"], order["password"], None)
        return {}

    def inventory(self, order):
        content = self.service.content
        view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
        collector = vmodl.query.PropertyCollector
        through = collector.TraversalSpec(name="all", type=vim.view.ContainerView, path="view", skip=False)
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[through])],
            propSet=[collector.PropertySpec(type=vim.VirtualMachine, pathSet=PATHS)],
        )
        found = content.propertyCollector.RetrieveContents([spec])
        view.DestroyView()
        return {"vms": [told(one.obj._moId, {p.name: p.val for p in one.propSet}) for one in found]}

    def move(self, order):
        vm = vim.VirtualMachine(order["moref"], self.service._stub)
        own = vm.runtime.host
        target = next(host for host in own.parent.host if host._moId != own._moId)
        task = vm.MigrateVM_Task(host=target, priority="defaultPriority")
        while True:
            info = task.info
            if info.state == "success":
                return {"refused": ""}
            if info.state == "error":
                return {"refused": type(info.error).__name__}
            time.sleep(0.01)

    def same(self, order):
        return {"same": digest(order["one"]) == digest(order["other"])}

    def modules(self, order):
        return {"modules": sorted({name.partition(".")[0] for name in sys.modules})}


def told(moref, properties):
    """A VM as plain values."""
    config, snapshot = properties["config"], properties.get("snapshot")
    devices = config.hardware.device
    disks = [device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)]
    return {
        "moref": moref,
        "name": properties["name"],
        "template": bool(config.template),
        "snapshots": [one.name for one in trees(snapshot.rootSnapshotList if snapshot else ())],
        "disks": [getattr(disk.backing, "fileName", "") for disk in disks],
        "needs_consolidation": bool(properties["runtime"].consolidationNeeded),
        "disabled": sorted(str(method) for method in properties.get("disabledMethod") or ()),
    }


def trees(nodes):
    for node in nodes or ():
        yield node
        yield from trees(node.childSnapshotList)


def digest(path):
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.digest()


def main() -> None:
    reader = Reader()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(reader, order["do"])(order)
        except (vmodl.MethodFault, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
