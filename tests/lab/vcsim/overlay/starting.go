package simulator

import (
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// started is how long ago those VMs were started that run when the lab opens.
const started = time.Hour

// bootFollows keeps when the VM was started, and whether it was switched off in an orderly way: both by a person and by
// its guest, as vCenter's HA would start it again otherwise. Called before the state of the VM changes.
func (vm *VirtualMachine) bootFollows(state types.VirtualMachinePowerState) {
	switch state {
	case types.VirtualMachinePowerStatePoweredOff:
		vm.Runtime.BootTime, vm.Runtime.CleanPowerOff = nil, types.NewBool(true)
	case types.VirtualMachinePowerStatePoweredOn:
		at := time.Now()
		if vm.Runtime.PowerState == state {
			at = at.Add(-started)
		}
		if vm.Runtime.PowerState != types.VirtualMachinePowerStateSuspended || vm.Runtime.BootTime == nil {
			vm.Runtime.BootTime = &at
		}
		vm.Runtime.CleanPowerOff = nil
	default:
		vm.Runtime.CleanPowerOff = nil
	}
	touch(vm, "runtime.bootTime", "runtime.cleanPowerOff")
}

// lossOrder has the host of a VM fail, for this VM alone: no event tells of it. It may be started again by its host.
type lossOrder struct {
	VM     string
	Starts bool
}

func (o *lossOrder) carryOut() (int, interface{}) {
	vm, ok := Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: o.VM}).(*VirtualMachine)
	if !ok {
		return http.StatusNotFound, "no such VM"
	}
	Map.WithLock(vm, func() {
		if o.Starts {
			now := time.Now()
			vm.Runtime.BootTime = &now
			touch(vm, "runtime.bootTime")
			return
		}
		off := types.VirtualMachinePowerStatePoweredOff
		vm.toolsFollow(off)
		vm.Runtime.CleanPowerOff = types.NewBool(false)
		Map.Update(vm, []types.PropertyChange{
			{Name: "runtime.powerState", Val: off},
			{Name: "summary.runtime.powerState", Val: off},
		})
		touch(vm, "runtime.cleanPowerOff")
	})
	return http.StatusOK, nil
}
