package simulator

import (
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// outOfReach is the fault of a move to a host that does not see one of the VM's disks, hot-added ones among them.
func outOfReach(vm *VirtualMachine, host *HostSystem) types.BaseMethodFault {
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		var p object.DatastorePath
		if b == nil || !p.FromString(b.FileName) {
			continue
		}
		ds := datastoreNamed(p.Datastore)
		if ds == nil || mountedOn(ds, host) {
			continue
		}
		label := ""
		if info := device.GetVirtualDevice().DeviceInfo; info != nil {
			label = info.GetDescription().Label
		}
		unseen := &types.InaccessibleDatastore{}
		ref := ds.Self
		unseen.Datastore, unseen.Name = &ref, ds.Name
		fault := &types.CannotAccessVmDisk{Fault: types.LocalizedMethodFault{Fault: unseen, LocalizedMessage: "the host does not see " + ds.Name}}
		fault.Device, fault.Backing = label, b.FileName
		return fault
	}
	return nil
}

func mountedOn(ds *Datastore, host *HostSystem) bool {
	for _, mount := range ds.Host {
		if mount.Key == host.Self {
			return true
		}
	}
	return false
}
