"""A vCenter to work against: `with start_lab(directory) as lab:`.

The lab runs VMware's API simulator with what a backup needs (see REALITY.md), holds the VMs' disks as sparse files,
and plays the people and guests around it. Everything here is synchronous; call it from a thread where a loop runs.
"""

import json
import os
import random
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.lab import images
from tests.lab.images import GRAIN
from tests.lab.inventory import Inventory
from tests.lab.machines import MIB, Machine, company
from tests.lab.process import VcenterProcess, make_certificates
from tests.lab.records import Frozen, FrozenDisk, LabDisk, LabEvent, LabVm, moment

MOVES = ("MigrateVM_Task", "RelocateVM_Task")
"""The methods by which a VM is moved."""


class Lab(Inventory):
    """A running lab. VMs are named by their name or moref; disks by their index within the VM."""

    def __init__(self, root: Path, process: VcenterProcess, facts: Mapping[str, Any]) -> None:
        self.root = root
        self.process = process
        self.host, port = process.address.rsplit(":", 1)
        self.port = int(port)
        self.url = f"https://{process.address}/sdk"
        self.hosts_port = process.hosts_port
        self.user: str = facts["user"]
        self.admin: str = facts["admin"]
        self.viewer: str = facts["viewer"]
        self.password: str = facts["password"]
        self.ca_file = Path(facts["ca_file"])
        self.thumbprint: str = facts["thumbprint"]
        self.instance_uuid: str = facts["instance_uuid"]
        self.device_folder = Path(facts["device_folder"])
        self._known: dict[str, LabVm] = {}
        super().__init__()

    # What is there

    def vms(self) -> list[LabVm]:
        found = [
            LabVm(
                **{k: v for k, v in each.items() if k not in ("disks", "snapshots")},
                snapshots=tuple(each["snapshots"]),
                disks=tuple(LabDisk(**{**disk, "flat": Path(disk["flat"])}) for disk in each["disks"]),
            )
            for each in self.process.order("/machines")
        ]
        found.sort(key=lambda vm: vm.name)
        self._known = {vm.moref: vm for vm in found} | {vm.name: vm for vm in found}
        return found

    def vm(self, which: str) -> LabVm:
        self.vms()
        return self._known[which]

    def flat(self, which: str, disk: int = 0) -> Path:
        """The file that the guest writes."""
        if which not in self._known or not self._known[which].disks[disk].flat.exists():
            self.vms()
        return self._known[which].disks[disk].flat

    def log_of(self, which: str) -> Path:
        """What the VM's host writes beside it."""
        return self.flat(which).with_name("vmware.log")

    def event_log(self) -> list[LabEvent]:
        lines = (self.root / "events.jsonl").read_text().splitlines()
        raw = [json.loads(line) for line in lines]
        return [LabEvent(**{**each, "time": moment(each["time"])}) for each in raw]

    def frozen(self, which: str | None = None) -> list[Frozen]:
        """What was frozen, oldest first; of one VM (moref or name) or of all."""
        found = []
        for record in (self.root / "frozen").glob("*/snapshot.json"):
            raw = json.loads(record.read_text())
            if which in (None, raw["vm"], raw["vm_name"]):
                disks = tuple(FrozenDisk(**{**d, "image": Path(d["image"])}) for d in raw.pop("disks") or ())
                found.append(Frozen(**{**raw, "created": moment(raw["created"])}, disks=disks))
        return sorted(found, key=lambda each: each.created)

    def frozen_copy(self, snapshot: str, key: int = 0) -> Path:
        """The image that a snapshot froze of the disk with this device key (0: its first disk)."""
        for each in self.frozen():
            if each.snapshot == snapshot:
                return next(d.image for d in each.disks if key in (0, d.key))
        raise KeyError(snapshot)

    # What guests do

    def write_as_guest(self, which: str, disk: int, offset: int, data: bytes) -> None:
        for _ in range(10):  # the disk may move to another datastore between finding and locking it
            with suppress(FileNotFoundError):
                images.write(self.flat(which, disk), [(offset, data)])
                return
        raise FileNotFoundError(which)

    def write_random_grains(self, which: str, disk: int = 0, *, share: float, seed: int = 0) -> list[tuple[int, int]]:
        """Overwrite so large a share of the disk's 64 KiB grains, anywhere; the merged extents that were written."""
        flat = self.flat(which, disk)
        chance = random.Random(seed)
        count = flat.stat().st_size // GRAIN
        chosen = sorted(chance.sample(range(count), max(1, round(count * share))))
        images.write(flat, ((grain * GRAIN, chance.randbytes(GRAIN)) for grain in chosen))
        extents: list[tuple[int, int]] = []
        for grain in chosen:
            offset = grain * GRAIN
            if extents and sum(extents[-1]) == offset:
                extents[-1] = (extents[-1][0], extents[-1][1] + GRAIN)
            else:
                extents.append((offset, GRAIN))
        return extents

    def read_guest(self, which: str, disk: int, offset: int, length: int) -> bytes:
        with self.flat(which, disk).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write_guest_file(self, which: str, disk: int, name: str, data: bytes) -> None:
        """Write a file through the disk's ext4, which stays consistent."""
        flat = self.flat(which, disk)
        with images.guest_lock(flat):
            images.write_file(flat, name, data)

    @contextmanager
    def busy_guest(self, which: str, disk: int = 0, *, seed: int = 0) -> Iterator[None]:
        """A guest that overwrites grains of its disk for as long as the block lasts."""
        done = threading.Event()
        chance = random.Random(seed)
        grains = self.flat(which, disk).stat().st_size // GRAIN

        def write() -> None:
            while not done.is_set():
                self.write_as_guest(which, disk, chance.randrange(grains) * GRAIN, chance.randbytes(GRAIN))
                done.wait(0.002)

        guest = threading.Thread(target=write, name=f"guest-{which}")
        guest.start()
        try:
            yield
        finally:
            done.set()
            guest.join()

    # What goes wrong

    def settings(self, **changes: object) -> dict[str, Any]:
        """Change the lab's manners (state.go: Settings) and return them all."""
        answer: dict[str, Any] = self.process.order("/settings", changes)
        return answer

    def inject(
        self,
        method: str,
        fault: str = "",
        *,
        times: int = 1,
        in_task: bool = False,
        delay_seconds: float = 0,
        drop: bool = False,
        keys: Sequence[str] = (),
        text: str = "injected by the lab",
        fields: Mapping[str, object] | None = None,
        vm: str = "",
        user: str = "",
    ) -> None:
        """Let the next calls of an API method fail, wait, or lose their answer (`drop`: carried out all the same).

        `fault` is a type such as "FileLocked", `fields` its Go fields; with `in_task` the call succeeds and its task
        fails. times=0 means until `heal`. With `user` only calls of that account are meant, but tasks of anybody.
        """
        rule = {"method": method, "fault": fault, "times": times, "in_task": in_task, "drop": drop, "text": text}
        rule |= {"delay_ms": round(delay_seconds * 1000), "keys": list(keys), "fields": dict(fields or {}), "vm": vm}
        rule["user"] = user
        self.process.order("/faults", rule)

    @contextmanager
    def nbd_fault(self, **order: int) -> Iterator[None]:
        """Orders to the nbdkit stand-in for the length of the block: error_at, hang_at, delay_ms, times."""
        path = self.root / "nbd-faults.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(order))
        fresh.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def heal(self) -> None:
        self.process.order("/faults/clear")

    def calls(self) -> dict[str, int]:
        """How often each API method was called so far."""
        answer: dict[str, int] = self.process.order("/calls")
        return answer

    def kill_sessions(self) -> int:
        """End all sessions: the next call of each gets NotAuthenticated. How many there were."""
        ended: int = self.process.order("/sessions/kill")
        return ended

    def outage(self, seconds: float) -> None:
        """Break all connections, and every new one for so long. Sessions survive."""
        self.process.order("/outage", {"seconds": seconds})

    @contextmanager
    def down(self, *, sessions: bool = True) -> Iterator[None]:
        """vCenter does not answer for the length of the block; with `sessions` these are lost too, as in a restart."""
        self.process.order("/outage", {"seconds": 3600, "sessions": sessions})
        try:
            yield
        finally:
            self.process.order("/outage", {"seconds": 0})

    def restart(self, seconds: float = 0.5) -> None:
        """What a restart of vCenter's service does: an outage, and all sessions are gone. Inventory and events stay."""
        self.process.order("/outage", {"seconds": seconds, "sessions": True})

    def post_event(self, kind: str, which: str, *, user: str = "", age_seconds: int = 0, count: int = 1) -> None:
        """Post events of any type for a VM; with an age, as a host does that comes back late."""
        order = {"type": kind, "vm": self.vm(which).moref, "user": user, "age_seconds": age_seconds, "count": count}
        self.process.order("/events/post", order)

    def roll_back_events(self, key: int) -> None:
        """Restore vCenter's database: events after this key never were, and keys are used again."""
        self.process.order("/events/key", {"roll_back_to": key})

    def next_event_key(self, key: int) -> None:
        self.process.order("/events/key", {"next": key})

    def drs_move(self, which: str, host: str | None = None) -> str:
        """Let DRS move the VM, to the host or to another of its cluster; the name of the new host."""
        vm = self.vm(which)
        target = self.host_for(vm.moref, host)
        self.process.order("/drs", {"VM": vm.moref, "Host": target._moId})
        return str(target.name)

    def lose_power(self, which: str, *, starts: bool = False) -> None:
        """Let the VM's host fail, for this VM alone, without an event; `starts`: and start it again at once."""
        self.process.order("/power/lost", {"VM": self.vm(which).moref, "Starts": starts})

    def hide_datastore(self, name: str, host: str) -> None:
        """Unmount a datastore from one host."""
        target = self.find(vim.HostSystem, host)
        self.process.order("/datastores/hide", {"Datastore": name, "Host": target._moId})

    def surroundings(self, **order: object) -> None:
        """Change what is around VMs: `user` with `denied` privileges, a `datastore`'s `kind`, `edition`, `version`."""
        self.process.order("/surroundings", order)

    def room(self, datastore: str, *, free: int, capacity: int = 1 << 40, shown: bool = False) -> None:
        """How large a datastore is and what is free on it; seen when it is refreshed, or at once when `shown`."""
        order = {"Datastore": datastore, "Capacity": capacity, "Free": free, "Shown": shown}
        self.process.order("/datastores/room", order)

    def record_calls(self, user: str = "", *, end_at: int = 0, lose: bool = False) -> None:
        """Number the calls of this account from 1, and end its session at one of them.

        With `lose` that call is carried out all the same, but its answer is lost. Repetitions count as one.
        """
        self.process.order("/recording", {"user": user, "at": end_at, "lose": lose})

    def recorded_calls(self) -> list[str]:
        """The calls since record_calls: the method, what it is called on, and the properties that it reads."""
        answer: list[str] = self.process.order("/recorded")
        return answer

    def leases(self) -> dict[str, Any]:
        """The export leases that are held now, and how many were completed, aborted and timed out so far."""
        answer: dict[str, Any] = self.process.order("/leases")
        return answer

    def disable_methods(self, which: str, source: str, *methods: str, on: bool = False) -> None:
        """Another product switches these methods of the VM off, or `on` again."""
        order = {"vm": self.vm(which).moref, "source": source, "methods": list(methods or MOVES), "on": on}
        self.process.order("/methods", order)

    def disabled_methods(self, which: str) -> dict[str, str]:
        """Which methods of the VM are switched off, and by whom: what vCenter itself tells nobody."""
        told: dict[str, dict[str, str]] = self.process.order("/methods", {})
        return told.get(self.vm(which).moref, {})

    def need_consolidation(self, which: str) -> None:
        self.process.order("/consolidation", {"VM": self.vm(which).moref})

    def stop(self) -> None:
        self.close_session()
        self.process.stop()

    def facts(self) -> dict[str, Any]:
        """How to reach the lab, for other programs. The password is in it."""
        return {
            "url": self.url, "host": self.host, "port": self.port, "user": self.user, "password": self.password,
            "admin": self.admin, "viewer": self.viewer, "ca_file": str(self.ca_file), "thumbprint": self.thumbprint,
            "instance_uuid": self.instance_uuid, "root": str(self.root), "device_folder": str(self.device_folder),
            "control": self.process.control, "pid": self.process.pid,
            "vddk_plugin": str(Path(__file__).parent / "nbdkit" / "vddk_standin.py"),
        }  # fmt: skip


@contextmanager
def start_lab(
    root: Path,
    *,
    vms: int = 3,
    disks_per_vm: int | None = None,
    disk_bytes: int = 64 * MIB,
    clusters: int = 1,
    hosts: int = 3,
    datastores: Sequence[str] = ("fast-1", "bulk-1"),
    content: bool = True,
    tracking: bool = False,
    tools: bool = True,
    extra: Sequence[Machine] = (),
    serve_files: bool = False,
    settings: Mapping[str, object] | None = None,
    device_folder: Path | None = None,
    password: str = "lab-secret-7",
    verbose: bool = False,
) -> Iterator[Lab]:
    """Start a lab below `root` (made when missing) and stop it at the end of the block, also when that fails.

    `hosts` is per cluster. With `content` each disk carries an ext4 file system; without, it is empty and costs
    nothing, so that a thousand VMs start in seconds. `extra` adds VMs described one by one. With `serve_files` the
    hosts are named by addresses of loopback, at which they serve their /folder (Lab.hosts_port).
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    certificates = make_certificates(root)
    plan = company(vms, disks=disks_per_vm, size=disk_bytes, hosts=hosts, clusters=clusters, datastores=datastores,
                    tracking=tracking, tools=tools, content=content) + list(extra)  # fmt: skip
    facts = {
        "root": str(root), "user": "backup@vsphere.local", "admin": "administrator@vsphere.local",
        "viewer": "look@vsphere.local", "password": password,
        "ca_file": str(certificates.ca), "thumbprint": certificates.thumbprint, "instance_uuid": str(uuid.uuid4()),
        "device_folder": str(device_folder or root / "devices"),
    }  # fmt: skip
    record = root / "lab.json"
    record.touch(mode=0o600)
    record.write_text(json.dumps(facts))
    specification = facts | {
        "devices": facts["device_folder"], "certificate": str(certificates.certificate), "key": str(certificates.key),
        "clusters": clusters, "hosts": hosts, "datastores": list(datastores), "verbose": verbose,
        "serve_files": serve_files, "host": {k: str(v) for k, v in asdict(certificates.host).items()},
        "machines": [{k: v for k, v in asdict(m).items() if k != "content"} for m in plan],
    }  # fmt: skip
    lab = Lab(root, VcenterProcess(root, specification), facts)
    try:
        for datastore in datastores:
            lab.room(datastore, free=1 << 39, shown=True)
        if settings:
            lab.settings(**settings)
        filled = {m.name for m in plan if m.content}
        for vm in lab.vms() if filled else ():
            for n, disk in enumerate(vm.disks if vm.name in filled else ()):
                images.fill(disk.flat, disk.capacity_bytes, f"{vm.name}/{n}")
        yield lab
    finally:
        lab.stop()


__all__ = ["MIB", "Frozen", "FrozenDisk", "Lab", "LabDisk", "LabEvent", "LabVm", "Machine", "start_lab"]
