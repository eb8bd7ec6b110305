package simulator

import (
	"fmt"

	"github.com/vmware/govmomi/vim25/types"
)

// Change tracking of a running VM begins at its next stun, where the setting TrackingStarts asks for that: "stun" is
// that of a snapshot's creation before its change ids are given, "late" the one after it, as some versions seem to do.
// A VM that is powered off needs none.
func (vm *VirtualMachine) startTracking(d *disk) {
	if lab.settings.get().TrackingStarts == "" || vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
		d.setTracking(true)
		return
	}
	d.setTracking(false)
	d.Lock()
	d.awaitsStun = true
	d.Unlock()
}

// stunned is called whenever the VM stands still for a moment.
func (vm *VirtualMachine) stunned() {
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil || !vm.ownDisk(device) {
			continue
		}
		if d := diskOf(b.FileName); d != nil {
			d.Lock()
			waiting := d.awaitsStun
			d.awaitsStun = false
			d.Unlock()
			if waiting {
				d.setTracking(true)
			}
		}
	}
}

// forget leaves changes out of an answer, as defective versions did.
func forget(changed []bool) {
	if every := lab.settings.get().ForgetEvery; every > 0 {
		for i := 0; i < len(changed); i += every {
			changed[i] = false
		}
	}
}

// resized tells of a disk's new size, as vCenter's event does.
func resized(vm *VirtualMachine, changed *types.VirtualDisk) string {
	for _, device := range vm.Config.Hardware.Device {
		d, ok := device.(*types.VirtualDisk)
		if ok && d.Key == changed.Key && getDiskSize(d) != getDiskSize(changed) {
			return fmt.Sprintf("config.hardware.device(%d).capacityInKB: %d -> %d; ", d.Key, getDiskSize(d)/1024, getDiskSize(changed)/1024)
		}
	}
	return ""
}
