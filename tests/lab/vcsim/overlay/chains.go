package simulator

import (
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// branch sends the guest's writes to new delta disks on top of the files that the snapshot holds.
func (vm *VirtualMachine) branch(snapshot *VirtualMachineSnapshot) {
	taken := map[string]bool{}
	vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
		for link := b; link != nil; link = link.Parent {
			taken[link.FileName] = true
		}
	})
	devices := copyDevices(vm.Config.Hardware.Device)
	for _, device := range devices {
		b := flatBacking(device)
		if b == nil || independent(b) || !vm.ownDisk(device) {
			continue
		}
		parent := copyBacking(b)
		parent.ChangeId = ""
		stem := strings.TrimSuffix(deltaName.ReplaceAllString(b.FileName, ".vmdk"), ".vmdk")
		for n := 1; ; n++ {
			name := fmt.Sprintf("%s-%06d.vmdk", stem, n)
			if !taken[name] {
				b.FileName = name
				break
			}
		}
		b.Parent, b.ChangeId = parent, ""
	}
	vm.Config.Hardware.Device = devices
}

// eachBacking visits the disks of the live VM and of all its snapshots.
func (vm *VirtualMachine) eachBacking(f func(*types.VirtualDiskFlatVer2BackingInfo)) {
	visit := func(devices []types.BaseVirtualDevice) {
		for _, device := range devices {
			if b := flatBacking(device); b != nil && vm.ownDisk(device) {
				f(b)
			}
		}
	}
	visit(vm.Config.Hardware.Device)
	for _, s := range vm.snapshots() {
		visit(s.Config.Hardware.Device)
	}
}

func (vm *VirtualMachine) snapshots() []*VirtualMachineSnapshot {
	var found []*VirtualMachineSnapshot
	if vm.Snapshot != nil {
		for _, ref := range allSnapshotsInTree(vm.Snapshot.RootSnapshotList) {
			if s, ok := Map.Get(ref).(*VirtualMachineSnapshot); ok {
				found = append(found, s)
			}
		}
	}
	return found
}

// graft adds a snapshot below another one in a copy of the tree.
func graft(tree []types.VirtualMachineSnapshotTree, below types.ManagedObjectReference, entry types.VirtualMachineSnapshotTree) []types.VirtualMachineSnapshotTree {
	copied := append([]types.VirtualMachineSnapshotTree(nil), tree...)
	for i := range copied {
		children := graft(copied[i].ChildSnapshotList, below, entry)
		if copied[i].Snapshot == below {
			children = append(children, entry)
		}
		copied[i].ChildSnapshotList = children
	}
	return copied
}

// merge folds the delta above each of the snapshot's disks into that disk.
func (vm *VirtualMachine) merge(s *VirtualMachineSnapshot) {
	vm.Config.Hardware.Device = copyDevices(vm.Config.Hardware.Device)
	for _, device := range s.Config.Hardware.Device {
		base := flatBacking(device)
		if base == nil || independent(base) {
			continue
		}
		names := map[string]bool{}
		vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
			for link := b; link != nil; link = link.Parent {
				if link.Parent != nil && link.Parent.FileName == base.FileName {
					names[link.FileName] = true
				}
			}
		})
		if len(names) != 1 {
			continue // branches: each keeps the file below
		}
		vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
			for link := b; link != nil; link = link.Parent {
				if names[link.FileName] {
					link.FileName, link.Parent = base.FileName, base.Parent
				}
			}
		})
	}
}
