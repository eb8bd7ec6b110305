package simulator

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func changeID(track string, seq uint32) string {
	return fmt.Sprintf("%s/%d", track, seq)
}

func trackingFault(key, text string) *soap.Fault {
	fault := new(types.FileFault)
	fault.FaultMessage = []types.LocalizableMessage{{Key: key, Message: text}}
	return Fault(text, fault)
}

func invalid(property string) *soap.Fault {
	return Fault("A specified parameter was not correct: "+property, &types.InvalidArgument{InvalidProperty: property})
}

// findDisk looks a device up in the snapshot's configuration, or in the VM's when there is no snapshot.
func (vm *VirtualMachine) findDisk(snapshot *types.ManagedObjectReference, key int32) (*types.VirtualDisk, *soap.Fault) {
	devices := vm.Config.Hardware.Device
	if snapshot != nil {
		s, ok := Map.Get(*snapshot).(*VirtualMachineSnapshot)
		if !ok || s.Vm != vm.Self {
			return nil, Fault("the snapshot is gone", new(types.NotFound))
		}
		devices = s.Config.Hardware.Device
	}
	for _, device := range devices {
		if d, ok := device.(*types.VirtualDisk); ok && d.Key == key {
			return d, nil
		}
	}
	return nil, invalid("deviceKey")
}

// stateOf finds what the snapshot froze of a disk; without a snapshot, the state of a powered-off VM's disk now.
func (vm *VirtualMachine) stateOf(snapshot *types.ManagedObjectReference, d *disk) (*frozenDisk, *soap.Fault) {
	if snapshot != nil {
		d.Lock()
		defer d.Unlock()
		if state, ok := d.frozen[*snapshot]; ok {
			return state, nil
		}
		return nil, trackingFault("vim.hostd.vmsvc.cbt.cannotGetChanges", "Cannot get changes: the disk is not part of the snapshot")
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return nil, invalid("snapshot")
	}
	f, err := lockFlat(d.Flat)
	if err != nil {
		return nil, Fault(err.Error(), &types.FileFault{File: d.Flat})
	}
	defer f.Close()
	state, err := d.freeze(f, d.Flat+".now")
	if err != nil {
		return nil, Fault(err.Error(), &types.FileFault{File: d.Flat})
	}
	return state, nil
}

// changedGrains tells which grains the answer covers.
func changedGrains(d *disk, state *frozenDisk, id string) ([]bool, *soap.Fault) {
	changed := make([]bool, grains(d.Capacity))
	if id == "*" {
		switch lab.settings.get().Star {
		case "whole":
			for i := range changed {
				changed[i] = true
			}
		case "fault":
			return nil, trackingFault("vim.hostd.vmsvc.cbt.noEpoch", "Cannot get the allocated areas")
		default:
			copy(changed, state.used)
		}
		return changed, nil
	}
	at := strings.LastIndexByte(id, '/')
	if at < 0 {
		return nil, invalid("changeId")
	}
	seq, err := strconv.ParseUint(id[at+1:], 10, 32)
	if err != nil || id[:at] != state.track || uint32(seq) > state.seq {
		return nil, invalid("changeId")
	}
	for i, last := range state.last {
		changed[i] = last > uint32(seq)
	}
	forget(changed)
	if more := lab.settings.get().SupersetGrains; more > 0 {
		widened := make([]bool, len(changed))
		for i, hit := range changed {
			for j := i - more; hit && j <= i+more; j++ {
				if j >= 0 && j < len(widened) {
					widened[j] = true
				}
			}
		}
		changed = widened
	}
	return changed, nil
}

// QueryChangedDiskAreas describes a window of the disk: at most so many areas, and how far they reach. A window may be
// empty although later ones are not.
func (vm *VirtualMachine) QueryChangedDiskAreas(ctx *Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := new(methods.QueryChangedDiskAreasBody)
	device, fault := vm.findDisk(req.Snapshot, req.DeviceKey)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	capacity := getDiskSize(device)
	if req.StartOffset < 0 || req.StartOffset >= capacity {
		body.Fault_ = invalid("startOffset")
		return body
	}
	backing, ok := device.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	var d *disk
	if ok {
		d = diskOf(backing.FileName)
	}
	if d == nil {
		body.Fault_ = trackingFault("vim.hostd.vmsvc.cbt.noTrack", "Change tracking is not active on this disk")
		return body
	}
	state, fault := vm.stateOf(req.Snapshot, d)
	if fault == nil && state.track == "" {
		fault = trackingFault("vim.hostd.vmsvc.cbt.noTrack", "Change tracking is not active on this disk")
	}
	var changed []bool
	if fault == nil {
		changed, fault = changedGrains(d, state, req.ChangeId)
	}
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	info := window(changed, req.StartOffset, capacity)
	body.Res = &types.QueryChangedDiskAreasResponse{Returnval: info}
	return body
}

// window merges neighbouring grains into areas, from start to where the answer is full.
func window(changed []bool, start, capacity int64) types.DiskChangeInfo {
	settings := lab.settings.get()
	info := types.DiskChangeInfo{StartOffset: start}
	end := func(i int) int64 {
		if e := int64(i) * grain; e < capacity {
			return e
		}
		return capacity
	}
	i := int(start / grain)
	first := i
	for i < len(changed) && !changed[i] {
		i++
	}
	// An answer that says "nothing here" before the end of the disk: a client that stops at it loses data.
	if gap := i - first; gap > 0 && i < len(changed) && settings.EmptyPageEvery > 0 && first%settings.EmptyPageEvery == 0 {
		info.Length = end(i) - start
		return info
	}
	for i < len(changed) && len(info.ChangedArea) < settings.PageAreas {
		from := i
		for i < len(changed) && changed[i] {
			i++
		}
		offset := int64(from) * grain
		if offset < start {
			offset = start
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: offset, Length: end(i) - offset})
		if len(info.ChangedArea) == settings.PageAreas {
			info.Length = end(i) - start
			return info
		}
		for i < len(changed) && !changed[i] {
			i++
		}
	}
	info.Length = capacity - start
	return info
}
