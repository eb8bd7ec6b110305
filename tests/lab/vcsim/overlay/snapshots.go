package simulator

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func (vm *VirtualMachine) CreateSnapshotTask(ctx *Context, req *types.CreateSnapshot_Task) soap.HasFault {
	task := CreateTask(vm, "createSnapshot", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		return vm.takeSnapshot(ctx, req.Name, req.Description, &manner{memory: req.Memory, quiesce: req.Quiesce})
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: task.Run()}}
}

func (vm *VirtualMachine) CreateSnapshotExTask(ctx *Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	task := CreateTask(vm, "createSnapshotEx", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		return vm.takeSnapshot(ctx, req.Name, req.Description, &manner{req.Memory, req.QuiesceSpec != nil, req.QuiesceSpec})
	})
	return &methods.CreateSnapshotEx_TaskBody{Res: &types.CreateSnapshotEx_TaskResponse{Returnval: task.Run()}}
}

// toolsRunning decides whether quiescing happens: without it vCenter takes the snapshot all the same and says nothing.
func (vm *VirtualMachine) toolsRunning() bool {
	return vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && vm.Guest != nil &&
		vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
}

type keptDisk struct {
	Key      int32  `json:"key"`
	Label    string `json:"label"`
	UUID     string `json:"uuid"`
	File     string `json:"file"`
	Capacity int64  `json:"capacity_bytes"`
	ChangeID string `json:"change_id"`
	Image    string `json:"image"`
}

type keptSnapshot struct {
	Snapshot    string     `json:"snapshot"`
	VM          string     `json:"vm"`
	Name        string     `json:"vm_name"`
	Title       string     `json:"name"`
	Description string     `json:"description"`
	Created     time.Time  `json:"created"`
	Quiesced    bool       `json:"quiesced"`
	Memory      bool       `json:"memory"`
	Minutes     int32      `json:"quiesce_minutes"`
	Disks       []keptDisk `json:"disks"`
}

// takeSnapshot freezes the VM's disks at one moment. The files that the snapshot's configuration names stay as they
// are; the guest goes on in delta disks, as the live configuration shows.
func (vm *VirtualMachine) takeSnapshot(ctx *Context, name, description string, how *manner) (types.AnyType, types.BaseMethodFault) {
	if vm.Config.Template {
		return nil, new(types.NotSupported)
	}
	if name == "" {
		return nil, &types.InvalidName{Name: name}
	}
	if fault := vm.unfit(); fault != nil {
		return nil, fault
	}
	if fault := how.unfit(); fault != nil {
		return nil, fault
	}
	snapshot := &VirtualMachineSnapshot{}
	snapshot.Vm = vm.Reference()
	snapshot.Config = *vm.Config
	snapshot.Config.Hardware.Device = copyDevices(vm.Config.Hardware.Device)
	snapshot.Self = Map.newReference(snapshot)
	quiesced := how.quiesce && vm.toolsRunning()
	kept := keptSnapshot{
		Snapshot: snapshot.Self.Value, VM: vm.Self.Value, Name: vm.Name, Title: name, Description: description,
		Created: time.Now().UTC(), Quiesced: quiesced, Memory: vm.holdsMemory(how), Minutes: how.minutes(),
	}
	if lab.settings.get().TrackingStarts == "stun" {
		vm.stunned()
	}
	if fault := vm.freezeDisks(snapshot, &kept); fault != nil {
		return nil, fault
	}
	vm.stunned()
	vm.standStill(lab.settings.get().StunMS)
	keepRecord(snapshot.Self, &kept)
	Map.Put(snapshot)

	entry := types.VirtualMachineSnapshotTree{
		Snapshot: snapshot.Self, Vm: vm.Self, Name: name, Description: description, Id: atomic.AddInt32(&vm.sid, 1),
		CreateTime: kept.Created, State: types.VirtualMachinePowerStatePoweredOff, Quiesced: quiesced, ReplaySupported: types.NewBool(false),
		BackupManifest: vm.manifest(how, name),
	}
	if kept.Memory {
		entry.State = vm.Runtime.PowerState
	}
	info := &types.VirtualMachineSnapshotInfo{CurrentSnapshot: &snapshot.Self}
	if vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot == nil {
		info.RootSnapshotList = []types.VirtualMachineSnapshotTree{entry}
	} else {
		info.RootSnapshotList = graft(vm.Snapshot.RootSnapshotList, *vm.Snapshot.CurrentSnapshot, entry)
		if parent, ok := Map.Get(*vm.Snapshot.CurrentSnapshot).(*VirtualMachineSnapshot); ok {
			parent.ChildSnapshot = append(parent.ChildSnapshot, snapshot.Self)
		}
	}
	vm.Snapshot = info
	vm.branch(snapshot)
	snapshot.createSnapshotFiles()
	vm.snapshotChanged()
	return snapshot.Self, nil
}

// unfit refuses a VM whose disks other VMs write too.
func (vm *VirtualMachine) unfit() types.BaseMethodFault {
	for _, device := range vm.Config.Hardware.Device {
		if fault := vm.unfitKind(device); fault != nil {
			return fault
		}
		b := flatBacking(device)
		if b != nil && b.Sharing == string(types.VirtualDiskSharingSharingMultiWriter) && !independent(b) {
			cause := &types.DeviceNotSupported{Device: device.GetVirtualDevice().DeviceInfo.GetDescription().Label, Reason: "multiwriter"}
			return &types.SnapshotIncompatibleDeviceInVm{Fault: types.LocalizedMethodFault{Fault: cause, LocalizedMessage: "shared disk"}}
		}
	}
	return nil
}

func (vm *VirtualMachine) snapshotChanged() {
	vm.RootSnapshot = nil
	if vm.Snapshot != nil {
		for _, s := range vm.Snapshot.RootSnapshotList {
			vm.RootSnapshot = append(vm.RootSnapshot, s.Snapshot)
		}
	}
	vm.bumpVersion()
	touch(vm, "snapshot", "rootSnapshot", "config.hardware.device", "config.changeVersion", "layout", "layoutEx", "runtime.consolidationNeeded", "storage")
}

func (vm *VirtualMachine) bumpVersion() {
	vm.Config.ChangeVersion = time.Now().UTC().Format(time.RFC3339Nano)
	vm.Config.Modified = time.Now().UTC()
}

func (vm *VirtualMachine) freezeDisks(snapshot *VirtualMachineSnapshot, kept *keptSnapshot) types.BaseMethodFault {
	var backings []*types.VirtualDiskFlatVer2BackingInfo
	var devices []*types.VirtualDisk
	var all []*disk
	for _, device := range snapshot.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil || independent(b) || !vm.ownDisk(device) {
			continue
		}
		d := diskOf(b.FileName)
		if d == nil {
			return &types.FileNotFound{FileFault: types.FileFault{File: b.FileName}}
		}
		backings, devices, all = append(backings, b), append(devices, device.(*types.VirtualDisk)), append(all, d)
	}
	files, err := lockFlats(all)
	if err != nil {
		return &types.FileFault{File: err.Error()}
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for i, d := range all {
		image := d.Flat + "." + snapshot.Self.Value
		state, err := d.freeze(files[i], image)
		if err != nil {
			return &types.FileFault{File: err.Error()}
		}
		d.Lock()
		d.frozen[snapshot.Self] = state
		d.Unlock()
		backings[i].ChangeId = ""
		if state.track != "" {
			backings[i].ChangeId = changeID(state.track, state.seq)
		}
		kept.Disks = append(kept.Disks, keptDisk{
			Key: devices[i].Key, Label: devices[i].DeviceInfo.GetDescription().Label, UUID: backings[i].Uuid,
			File: backings[i].FileName, Capacity: d.Capacity, ChangeID: backings[i].ChangeId, Image: image,
		})
	}
	return nil
}

// keepRecord keeps the frozen disks under a second name, which outlives the snapshot.
func keepRecord(snapshot types.ManagedObjectReference, kept *keptSnapshot) {
	dir := lab.frozenDir(snapshot)
	ensureDir(dir)
	if lab.settings.get().KeepFrozen {
		for i := range kept.Disks {
			image := filepath.Join(dir, fmt.Sprintf("%d.img", kept.Disks[i].Key))
			if err := os.Link(kept.Disks[i].Image, image); err == nil {
				kept.Disks[i].Image = image
			}
		}
	}
	text, err := json.Marshal(kept)
	if err != nil {
		panic(err)
	}
	name := filepath.Join(dir, "snapshot.json")
	_ = os.WriteFile(name+".new", text, 0600)
	_ = os.Rename(name+".new", name)
}

func (v *VirtualMachineSnapshot) RemoveSnapshotTask(ctx *Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	task := CreateTask(Map.Get(v.Vm), "removeSnapshot", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		vm := Map.Get(v.Vm).(*VirtualMachine)
		if Map.Get(v.Self) == nil || vm.Snapshot == nil {
			return nil, &types.ManagedObjectNotFound{Obj: v.Self}
		}
		doomed := []types.ManagedObjectReference{v.Self}
		if entry := findSnapshotInTree(vm.Snapshot.RootSnapshotList, v.Self); req.RemoveChildren && entry != nil {
			doomed = append(doomed, allSnapshotsInTree(entry.ChildSnapshotList)...)
		}
		return nil, vm.dropSnapshots(ctx, doomed)
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: task.Run()}}
}

func (vm *VirtualMachine) RemoveAllSnapshotsTask(ctx *Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	task := CreateTask(vm, "removeAllSnapshots", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		if vm.Snapshot == nil {
			return nil, nil
		}
		return nil, vm.dropSnapshots(ctx, allSnapshotsInTree(vm.Snapshot.RootSnapshotList))
	})
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{Returnval: task.Run()}}
}

// dropSnapshots refuses while another VM holds one of the disks: their files cannot be merged then.
func (vm *VirtualMachine) dropSnapshots(ctx *Context, doomed []types.ManagedObjectReference) types.BaseMethodFault {
	for _, ref := range doomed {
		s, ok := Map.Get(ref).(*VirtualMachineSnapshot)
		if !ok {
			continue
		}
		if name := attachments.holds(s); name != "" {
			return &types.FileLocked{FileFault: types.FileFault{File: name}}
		}
	}
	for i := len(doomed) - 1; i >= 0; i-- {
		s, ok := Map.Get(doomed[i]).(*VirtualMachineSnapshot)
		if !ok {
			continue
		}
		parent := findParentSnapshotInTree(vm.Snapshot.RootSnapshotList, s.Self)
		info := &types.VirtualMachineSnapshotInfo{
			CurrentSnapshot:  vm.Snapshot.CurrentSnapshot,
			RootSnapshotList: removeSnapshotInTree(graft(vm.Snapshot.RootSnapshotList, types.ManagedObjectReference{}, types.VirtualMachineSnapshotTree{}), s.Self, false),
		}
		if info.CurrentSnapshot != nil && *info.CurrentSnapshot == s.Self {
			info.CurrentSnapshot = parent
		}
		left := false
		lab.settings.change(func(now *Settings) {
			if left = now.LeaveDeltas > 0; left {
				now.LeaveDeltas--
			}
		})
		s.removeSnapshotFiles(ctx)
		if left {
			vm.Runtime.ConsolidationNeeded = types.NewBool(true)
		}
		vm.Snapshot = info
		if len(info.RootSnapshotList) == 0 {
			vm.Snapshot = nil
		}
		if !left {
			vm.merge(s)
		}
		vm.standStill(lab.settings.get().RemovalStunMS)
		forgetFrozen(s)
		Map.Remove(s.Self)
	}
	vm.snapshotChanged()
	return nil
}

func forgetFrozen(s *VirtualMachineSnapshot) {
	for _, device := range s.Config.Hardware.Device {
		if b := flatBacking(device); b != nil {
			if d := diskOf(b.FileName); d != nil {
				d.Lock()
				delete(d.frozen, s.Self)
				d.Unlock()
				_ = os.Remove(d.Flat + "." + s.Self.Value)
			}
		}
	}
	if !lab.settings.get().KeepFrozen {
		_ = os.RemoveAll(lab.frozenDir(s.Self))
	}
}

func (vm *VirtualMachine) ConsolidateVMDisksTask(ctx *Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	task := CreateTask(vm, "consolidateDisks", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		if name := attachments.holdsVM(vm); name != "" {
			return nil, &types.FileLocked{FileFault: types.FileFault{File: name}}
		}
		vm.Runtime.ConsolidationNeeded = types.NewBool(false)
		if vm.Snapshot == nil {
			devices := copyDevices(vm.Config.Hardware.Device)
			for _, device := range devices {
				if b := flatBacking(device); b != nil && vm.ownDisk(device) {
					b.FileName, b.Parent = deltaName.ReplaceAllString(b.FileName, ".vmdk"), nil
				}
			}
			vm.Config.Hardware.Device = devices
		}
		vm.standStill(lab.settings.get().RemovalStunMS)
		vm.snapshotChanged()
		return nil, nil
	})
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: task.Run()}}
}

// RevertToSnapshotTask brings the frozen bytes back. The sequence of the change ids goes back with them.
func (v *VirtualMachineSnapshot) RevertToSnapshotTask(ctx *Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	task := CreateTask(Map.Get(v.Vm), "revertToSnapshot", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		vm := Map.Get(v.Vm).(*VirtualMachine)
		for _, device := range v.Config.Hardware.Device {
			b := flatBacking(device)
			if b == nil || diskOf(b.FileName) == nil {
				continue
			}
			d := diskOf(b.FileName)
			if err := copyFile(d.Flat+"."+v.Self.Value, d.Flat, d.Capacity); err != nil {
				return nil, &types.FileFault{File: err.Error()}
			}
			d.Lock()
			if state, ok := d.frozen[v.Self]; ok && state.track == d.track && state.track != "" {
				d.seq, d.last = state.seq, state.last
			}
			d.Unlock()
		}
		vm.Snapshot = &types.VirtualMachineSnapshotInfo{CurrentSnapshot: &v.Self, RootSnapshotList: vm.Snapshot.RootSnapshotList}
		vm.snapshotChanged()
		return nil, nil
	})
	return &methods.RevertToSnapshot_TaskBody{Res: &types.RevertToSnapshot_TaskResponse{Returnval: task.Run()}}
}
