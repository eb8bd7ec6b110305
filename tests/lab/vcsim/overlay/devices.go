package simulator

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// attachment is a disk of one VM that another VM holds: hot-add.
type attachment struct {
	by     types.ManagedObjectReference
	file   string
	node   string
	target string
}

type attachmentTable struct {
	sync.Mutex
	all []*attachment
}

var attachments = &attachmentTable{}

func (a *attachmentTable) foreign(by types.ManagedObjectReference, file string) bool {
	a.Lock()
	defer a.Unlock()
	for _, x := range a.all {
		if x.by == by && x.file == file {
			return true
		}
	}
	return false
}

// holds names the first of the snapshot's files that some VM has attached.
func (a *attachmentTable) holds(s *VirtualMachineSnapshot) string {
	for _, device := range s.Config.Hardware.Device {
		if b := flatBacking(device); b != nil && a.attached(b.FileName) {
			return b.FileName
		}
	}
	return ""
}

func (a *attachmentTable) holdsVM(vm *VirtualMachine) string {
	found := ""
	vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
		for link := b; link != nil; link = link.Parent {
			if a.attached(link.FileName) {
				found = link.FileName
			}
		}
	})
	return found
}

func (a *attachmentTable) attached(file string) bool {
	a.Lock()
	defer a.Unlock()
	for _, x := range a.all {
		if x.file == file {
			return true
		}
	}
	return false
}

// attach makes the device node appear a moment later, as the guest's kernel and udev need one.
func (a *attachmentTable) attach(x *attachment) {
	a.Lock()
	a.all = append(a.all, x)
	a.Unlock()
	delay := time.Duration(lab.settings.get().DeviceDelayMS) * time.Millisecond
	time.AfterFunc(delay, func() {
		a.Lock()
		defer a.Unlock()
		for _, held := range a.all {
			if held == x {
				_ = os.Symlink(x.target, x.node)
			}
		}
	})
}

func (a *attachmentTable) detach(by types.ManagedObjectReference, file string) {
	a.Lock()
	defer a.Unlock()
	for i, x := range a.all {
		if x.by == by && x.file == file {
			a.all = append(append([]*attachment(nil), a.all[:i]...), a.all[i+1:]...)
			_ = os.Remove(x.node)
			return
		}
	}
}

// deviceNode is where a Linux guest with disk.EnableUUID shows the disk.
func deviceNode(id string) string {
	return filepath.Join(lab.devices, "wwn-0x"+strings.ToLower(strings.ReplaceAll(id, "-", "")))
}

// owner finds the VM whose disk a file is, and the snapshot that froze it; no snapshot means that the guest writes it.
func owner(file string) (*VirtualMachine, *VirtualMachineSnapshot) {
	for _, e := range Map.All("VirtualMachine") {
		vm := e.(*VirtualMachine)
		for _, s := range vm.snapshots() {
			for _, device := range s.Config.Hardware.Device {
				if b := flatBacking(device); b != nil && b.FileName == file {
					return vm, s
				}
			}
		}
		for _, device := range vm.Config.Hardware.Device {
			if b := flatBacking(device); b != nil && b.FileName == file && !attachments.foreign(vm.Self, file) {
				return vm, nil
			}
		}
	}
	return nil, nil
}

// createDisk stands in for the simulator's creation of disk files: new disks get a flat file of their full size, and a
// disk that exists already shows its size and identity.
func createDisk(vm *VirtualMachine, device *types.VirtualDisk, op types.VirtualDeviceConfigSpecFileOperation, req *types.CreateVirtualDisk_Task) types.BaseMethodFault {
	b := flatBacking(device)
	if b == nil {
		if op == "" {
			return nil
		}
		return vdmCreateVirtualDisk(op, req)
	}
	if b.FileName == "" {
		b.FileName = req.Name
	}
	if op != "" {
		if fault := vdmCreateVirtualDisk(op, req); fault != nil {
			return fault
		}
		if op == types.VirtualDeviceConfigSpecFileOperationReplace {
			b.Uuid = ""
		}
		capacity := getDiskSize(device)
		d := addDisk(b.FileName, capacity, b.Uuid)
		if err := os.Truncate(d.Flat, capacity); err != nil {
			return &types.FileFault{File: b.FileName}
		}
		if isTrue(vm.Config.ChangeTrackingEnabled) {
			d.setTracking(true)
		}
		describe(device, d)
		return nil
	}
	d := diskOf(b.FileName)
	if d == nil {
		return &types.FileNotFound{FileFault: types.FileFault{File: b.FileName}}
	}
	home, snapshot := owner(b.FileName)
	if home == nil || home == vm {
		if size := getDiskSize(device); size > d.Capacity {
			d.Capacity = size
			_ = os.Truncate(d.Flat, size)
		}
		describe(device, d)
		return nil
	}
	target := d.Flat
	if snapshot != nil {
		target = d.Flat + "." + snapshot.Self.Value
	} else if home.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		return &types.FileLocked{FileFault: types.FileFault{File: b.FileName}}
	}
	describe(device, d)
	attachments.attach(&attachment{by: vm.Self, file: b.FileName, node: deviceNode(d.UUID), target: target})
	return nil
}

func describe(device *types.VirtualDisk, d *disk) {
	device.CapacityInBytes = d.Capacity
	device.CapacityInKB = d.Capacity / 1024
	flatBacking(device).Uuid = d.UUID
}

// releaseDisk is called before a device is taken out of a VM's configuration.
func releaseDisk(vm *VirtualMachine, device types.BaseVirtualDevice, destroy bool) {
	b := flatBacking(device)
	if b == nil {
		return
	}
	if attachments.foreign(vm.Self, b.FileName) {
		attachments.detach(vm.Self, b.FileName)
		return
	}
	if destroy {
		forgetDisk(flatOf(b.FileName))
	}
}

// cloneDevices are the devices that a clone gets: with identities of its own.
func cloneDevices(vm *VirtualMachine) []types.BaseVirtualDevice {
	devices := copyDevices(vm.Config.Hardware.Device)
	var kept []types.BaseVirtualDevice
	for i, device := range devices {
		if b := flatBacking(device); b != nil {
			if !vm.ownDisk(vm.Config.Hardware.Device[i]) {
				continue
			}
			b.Uuid, b.ChangeId, b.Parent = "", "", nil
		}
		if card, ok := device.(types.BaseVirtualEthernetCard); ok {
			card.GetVirtualEthernetCard().MacAddress = ""
		}
		kept = append(kept, device)
	}
	return kept
}

// copyContents fills a clone's disks from the source's: from its snapshot's where the clone is made from one.
func copyContents(source, clone *VirtualMachine, from *types.ManagedObjectReference) {
	var originals, copies []string
	for _, device := range source.Config.Hardware.Device {
		if b := flatBacking(device); b != nil && source.ownDisk(device) {
			originals = append(originals, b.FileName)
		}
	}
	for _, device := range clone.Config.Hardware.Device {
		if b := flatBacking(device); b != nil {
			copies = append(copies, b.FileName)
		}
	}
	for i := range copies {
		if i >= len(originals) {
			return
		}
		src, dst := diskOf(originals[i]), diskOf(copies[i])
		if src == nil || dst == nil {
			continue
		}
		file := src.Flat
		if from != nil {
			file += "." + from.Value
		}
		_ = copyFile(file, dst.Flat, dst.Capacity)
	}
}
