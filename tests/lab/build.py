"""Builds the lab's vCenter from Debian's govmomi sources, the project's own Go, and a list of small edits.

The sources under /usr/share stay as they are: Go's overlay puts edited copies and new files in their place. Each
edit must hit exactly as often as it says, so that another govmomi version fails the build instead of the tests.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "vcsim"
GOPATH = Path("/usr/share/gocode")
SIMULATOR = GOPATH / "src/github.com/vmware/govmomi/simulator"


class LabUnavailable(RuntimeError):
    """The lab cannot be built here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `old` in one of the simulator's files. `times` is how often it must be there."""

    file: str
    old: str
    new: str
    times: int = 1


def _renamed(file: str, receiver: str, method: str, name: str) -> Edit:
    return Edit(file, f"func ({receiver}) {method}(", f"func ({receiver}) {name}(")


EDITS = (
    _renamed("virtual_machine.go", "vm *VirtualMachine", "event", "eventBase"),
    _renamed("virtual_machine.go", "o *VirtualMachine", "RenameTask", "renameBase"),
    _renamed("virtual_machine.go", "vm *VirtualMachine", "ReconfigVMTask", "reconfigBase"),
    _renamed("virtual_machine.go", "vm *VirtualMachine", "UnregisterVM", "unregisterBase"),
    _renamed("virtual_machine.go", "vm *VirtualMachine", "RelocateVMTask", "relocateBase"),
    _renamed("virtual_machine.go", "vm *VirtualMachine", "CreateSnapshotTask", "createSnapshotBase"),
    _renamed("virtual_machine.go", "vm *VirtualMachine", "RemoveAllSnapshotsTask", "removeAllSnapshotsBase"),
    Edit(
        "virtual_machine.go",
        "\tvm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff\n\tvm.Runtime.ConnectionState",
        "\tprepare(vm)\n\tvm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff\n\tvm.Runtime.ConnectionState",
    ),
    Edit(
        "virtual_machine.go",
        "diskBacking := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)\n",
        "diskBacking := flatBacking(disk)\n\t\tif diskBacking == nil {\n\t\t\tcontinue\n\t\t}\n",
    ),
    Edit(
        "virtual_machine.go",
        "err := vdmCreateVirtualDisk(spec.FileOperation, &",
        "err := createDisk(vm, x, spec.FileOperation, &",
    ),
    Edit(
        "virtual_machine.go",
        "\t\tdevices = append(devices[:i], devices[i+1:]...)\n\n\t\tswitch device := spec.Device.(type) {",
        "\t\tif spec.Operation == types.VirtualDeviceConfigSpecOperationRemove {\n"
        "\t\t\treleaseDisk(vm, d, spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy)\n\t\t}\n"
        "\t\tdevices = append(devices[:i], devices[i+1:]...)\n\n\t\tswitch device := spec.Device.(type) {",
    ),
    Edit(
        "virtual_machine.go",
        "f, err := os.Open(filepath.Clean(file))",
        "f, err := openRegistered(filepath.Clean(file))",
    ),
    Edit(
        "virtual_machine.go",
        "\t\tdevices := vm.Config.Hardware.Device\n\t\tfor _, device := range devices {\n\t\t\tvar fop",
        "\t\tdevices := cloneDevices(vm)\n\t\tfor _, device := range devices {\n\t\t\tvar fop",
    ),
    Edit(
        "virtual_machine.go",
        "\t\tres := Map.Get(req.Folder).(vmFolder).CreateVMTask(ctx,",
        "\t\tsuppressed.Store(req.Name, true)\n\t\tdefer suppressed.Delete(req.Name)\n"
        "\t\tres := Map.Get(req.Folder).(vmFolder).CreateVMTask(ctx,",
    ),
    Edit(
        "virtual_machine.go",
        "\t\tclone := Map.Get(ref).(*VirtualMachine)\n",
        "\t\tclone := Map.Get(ref).(*VirtualMachine)\n\t\tcopyContents(vm, clone, req.Spec.Snapshot)\n",
    ),
    _renamed("snapshot.go", "v *VirtualMachineSnapshot", "RemoveSnapshotTask", "removeSnapshotBase"),
    _renamed("snapshot.go", "v *VirtualMachineSnapshot", "RevertToSnapshotTask", "revertBase"),
    _renamed("folder.go", "f *Folder", "MoveIntoFolderTask", "moveIntoFolderBase"),
    _renamed("folder.go", "f *Folder", "RegisterVMTask", "registerBase"),
    _renamed("task.go", "t *Task", "Run", "runBase"),
    _renamed("property_filter.go", "f *PropertyFilter", "apply", "applyBase"),
    Edit("property_collector.go", "time.NewTicker(250 * time.Millisecond)", "time.NewTicker(updateTick)"),
    Edit("property_collector.go", "if !apply() {", "if !collectOnce() {", times=2),
    Edit(
        "property_collector.go",
        "pc.updates = nil // clear updates collected by the managed object CRUD listeners\n",
        "pc.updates = nil\n\t\t\tcollectOnce := collectOnce(updates, apply)\n",
    ),
    Edit(
        "property_collector.go",
        "\tbody.Res = &types.CreateFilterResponse{",
        "\tpc.filterCreated(filter.Self)\n\tbody.Res = &types.CreateFilterResponse{",
    ),
    Edit(
        "property_collector.go",
        "\tif len(obj.PropSet) == 0 {\n",
        "\tif len(obj.PropSet) == 0 && len(obj.MissingSet) == 0 {\n\t\tbody.Res = new(internal.FetchResponse)\n\t\treturn body\n\t}\n"
        "\tif len(obj.PropSet) == 0 {\n",
    ),
    Edit(
        "simulator.go",
        "\tvar args, res []reflect.Value\n",
        "\tif f := intercept(ctx, method, handler); f != nil {\n\t\treturn f\n\t}\n\tvar args, res []reflect.Value\n",
    ),
    Edit(
        "session_manager.go",
        "return req.UserName == user.Username() && req.Password == pass",
        "return (req.UserName == user.Username() || req.UserName == lab.admin || req.UserName == lab.viewer) && req.Password == pass",
    ),
    Edit("host_datastore_system.go", '\tds.Self.Value += "@" + folder.Self.Value\n', ""),
    Edit(
        "custom_fields_manager.go",
        "\t\tentity.CustomValue = append(entity.CustomValue, newValue)\n\t\tentity.Value = append(entity.Value, newValue)\n",
        "\t\tentity.CustomValue = keepField(entity.CustomValue, newValue)\n\t\tentity.Value = keepField(entity.Value, newValue)\n"
        "\t\ttouchFields(req.Entity)\n",
    ),
)

# The lab's own files, by the name that they have in package simulator.
REPLACED = {"events.go": "event_manager.go"}


def lab_directory() -> Path:
    """Where binaries, Go's cache and disk templates are kept: BACKSTAY_LAB_DIR, or .lab/ in the checkout."""
    return Path(os.environ.get("BACKSTAY_LAB_DIR") or HERE.parent.parent / ".lab").resolve()


def _edited() -> dict[str, str]:
    texts: dict[str, str] = {}
    for edit in EDITS:
        text = texts.get(edit.file)
        if text is None:
            text = (SIMULATOR / edit.file).read_text()
        found = text.count(edit.old)
        if found != edit.times:
            raise LabUnavailable(
                f"{SIMULATOR / edit.file}: {edit.old.strip()[:60]!r} is there {found} times, not {edit.times}; "
                "the lab is written for govmomi 0.24.2 (Debian 12)"
            )
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def _fingerprint(texts: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(name.encode() + b"\0" + texts[name].encode())
    for path in sorted(SOURCES.rglob("*.go")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def vcsim() -> Path:
    """The simulator's binary, built when its sources are new. Safe to call from several processes at once."""
    if shutil.which("go") is None or not SIMULATOR.is_dir():
        raise LabUnavailable(
            "the lab needs Go and govmomi's sources: apt-get install golang-go golang-github-vmware-govmomi-dev "
            "golang-github-google-uuid-dev (Debian 12)"
        )
    texts = _edited()
    directory = lab_directory()
    binary = directory / f"vcsim-{_fingerprint(texts)}"
    if binary.exists():
        return binary
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(texts, directory, binary)
    return binary


def _build(texts: dict[str, str], directory: Path, binary: Path) -> None:
    edited = directory / "edited"
    shutil.rmtree(edited, ignore_errors=True)
    edited.mkdir()
    replace: dict[str, str] = {}
    for name, text in texts.items():
        (edited / name).write_text(text)
        replace[str(SIMULATOR / name)] = str(edited / name)
    for path in sorted((SOURCES / "overlay").glob("*.go")):
        replace[str(SIMULATOR / REPLACED.get(path.name, f"lab_{path.name}"))] = str(path)
    overlay = directory / "overlay.json"
    overlay.write_text(json.dumps({"Replace": replace}))
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": os.environ.get("HOME", str(directory)),
        "GO111MODULE": "off",
        "GOPATH": str(GOPATH),
        "GOCACHE": str(directory / "gocache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    fresh = binary.with_suffix(".new")
    command = ["go", "build", "-overlay", str(overlay), "-o", str(fresh), "."]
    done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabUnavailable(f"go build failed:\n{done.stdout}{done.stderr}")
    fresh.rename(binary)
    for old in directory.glob("vcsim-*"):
        if old != binary and old.suffix == "":
            old.unlink(missing_ok=True)
