package simulator

import (
	"bytes"
	"io"
	"os"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// bootTime is how long a guest takes until its Tools run, where vCenter learns of them only then.
const bootTime = 300 * time.Millisecond

// guestFollows starts and ends the guest's heartbeat with the VM. Whether a VM that was made through the API has Tools
// is not in its configuration but on its first disk: vCenter learns it when the guest has started.
func (vm *VirtualMachine) guestFollows(state types.VirtualMachinePowerState) {
	if state != types.VirtualMachinePowerStatePoweredOn {
		vm.beat(types.ManagedEntityStatusGray)
		return
	}
	if vm.Guest != nil && vm.Guest.ToolsVersionStatus2 != "" {
		vm.beat(types.ManagedEntityStatusGreen)
		return
	}
	if !vm.boots() {
		return
	}
	time.AfterFunc(bootTime, func() {
		Map.WithLock(vm, func() {
			if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
				return
			}
			if vm.Guest == nil {
				vm.Guest = &types.GuestInfo{}
			}
			vm.Guest.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
			vm.Guest.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
			vm.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
			touch(vm, "guest")
			vm.beat(types.ManagedEntityStatusGreen)
		})
	})
}

func (vm *VirtualMachine) beat(status types.ManagedEntityStatus) {
	vm.GuestHeartbeatStatus = status
	touch(vm, "guestHeartbeatStatus")
}

// boots tells whether there is anything at the beginning of the first disk.
func (vm *VirtualMachine) boots() bool {
	for _, device := range vm.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		backing, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if !ok {
			return false
		}
		file, err := os.Open(flatOf(backing.GetVirtualDeviceFileBackingInfo().FileName))
		if err != nil {
			return false
		}
		defer file.Close()
		start := make([]byte, grain)
		n, err := io.ReadFull(file, start)
		if err != nil && err != io.ErrUnexpectedEOF {
			return false
		}
		return !bytes.Equal(start[:n], make([]byte, n))
	}
	return false
}
