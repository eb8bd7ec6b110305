package simulator

import (
	"fmt"
	"os"
	"path"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// standStill writes what a host writes into the log of a VM that goes on after so many milliseconds. The lab's guest
// does not stand still for it.
func (vm *VirtualMachine) standStill(ms int) {
	if vm.powered() {
		vm.writeLog("vcpu-0", fmt.Sprintf("Checkpoint_Unstun: vm stopped for %d us", ms*1000))
	}
}

func (vm *VirtualMachine) writeLog(thread, text string) {
	if vm.log == "" {
		return
	}
	f, err := os.OpenFile(vm.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0600)
	if err != nil {
		return // the VM's folder is gone
	}
	defer f.Close()
	_, _ = fmt.Fprintf(f, "%s| %s| I005: %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), thread, text)
}

// beginLog is what a new process of a VM does, as it starts and as it takes over from another host: the log so far
// gets a number, and a new one begins.
func (vm *VirtualMachine) beginLog() {
	if vm.log == "" {
		return
	}
	for n := 1; ; n++ {
		kept := path.Join(path.Dir(vm.log), fmt.Sprintf("vmware-%d.log", n))
		if _, err := os.Stat(kept); err == nil {
			continue
		}
		_ = os.Rename(vm.log, kept)
		break
	}
	vm.writeLog("vmx", fmt.Sprintf("Log for VMware ESX pid=%d version=7.0.3 build=build-0 option=Release", time.Now().UnixNano()%100000000))
}

// takenOver is the end of a running VM's vMotion, at its new host.
func (vm *VirtualMachine) takenOver() {
	if vm.powered() {
		vm.beginLog()
		vm.standStill(lab.settings.get().StunMS)
	}
}

// logFollows begins the log of a VM that is started or resumed. Called before the state of the VM changes.
func (vm *VirtualMachine) logFollows(state types.VirtualMachinePowerState) {
	if state == types.VirtualMachinePowerStatePoweredOn && vm.Runtime.PowerState != state {
		vm.beginLog()
	}
}
