package simulator

import (
	"fmt"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// KindSpec says what is unusual about a machine: what keeps snapshots from being made of it, or limits them.
type KindSpec struct {
	VApp           string `json:"vapp"` // the VM is in this vApp of its pool, and has no folder then
	Encrypted      bool   `json:"encrypted"`
	VTPM           bool   `json:"vtpm"`
	Linked         bool   `json:"linked"`      // its disks are deltas of another VM's disks
	Passthrough    bool   `json:"passthrough"` // a PCI device of the host
	VirtualRaw     int    `json:"virtual_mappings"`
	SharedBus      bool   `json:"shared_bus"`
	FaultTolerance bool   `json:"fault_tolerance"`
	Connection     string `json:"connection"`
	Question       string `json:"question"`
	Adapter        string `json:"adapter"` // what its first disk hangs on: "", ide, sata, nvme
	FreeSlots      *int   `json:"free_slots"`
	NoDiskUUIDs    bool   `json:"no_disk_uuids"`
	VssWriters     bool   `json:"vss_writers"` // they take part, and leave a manifest
	BareManifest   bool   `json:"bare_manifest"` // of file systems alone: no application was asked
	ToolsVersion   string `json:"tools_version"`
	SuspendMemory  bool   `json:"suspend_memory"` // its host snapshots it suspended only with the memory
}

// writers has the VMs whose VSS takes part in a quiesced snapshot, and whether it freezes file systems alone.
var writers sync.Map

// become makes an ordinary machine the kind that its spec says. Nobody looks at it yet.
func (vm *VirtualMachine) become(spec *MachineSpec) error {
	kind := spec.KindSpec
	yes := types.NewBool(true)
	vm.Capability.DiskOnlySnapshotOnSuspendedVMSupported = types.NewBool(!kind.SuspendMemory)
	vm.Config.Flags.DiskUuidEnabled = types.NewBool(!kind.NoDiskUUIDs)
	vm.Guest.ToolsVersion = kind.ToolsVersion
	if kind.VssWriters {
		writers.Store(vm.Self, kind.BareManifest)
	}
	if kind.Encrypted || kind.VTPM {
		vm.Config.KeyId = &types.CryptoKeyId{KeyId: "key-1", ProviderId: &types.KeyProviderId{Id: "provider-1"}}
		vm.Runtime.CryptoState = "unlocked"
	}
	if kind.Encrypted {
		for _, device := range vm.Config.Hardware.Device {
			if b := flatBacking(device); b != nil {
				b.KeyId = vm.Config.KeyId
			}
		}
	}
	vm.adapt(&kind)
	if kind.FaultTolerance {
		vm.Runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateRunning
	}
	if kind.Connection != "" {
		vm.Runtime.ConnectionState = types.VirtualMachineConnectionState(kind.Connection)
	}
	if kind.Question != "" {
		vm.Runtime.Question = &types.VirtualMachineQuestionInfo{Id: "1", Text: kind.Question, Choice: types.ChoiceOption{
			OptionType: types.OptionType{ValueIsReadonly: yes},
			ChoiceInfo: []types.BaseElementDescription{
				&types.ElementDescription{Key: "0", Description: types.Description{Label: "OK", Summary: "OK"}},
			},
		}}
	}
	if kind.VApp != "" {
		return vm.joinVApp(kind.VApp)
	}
	return nil
}

// adapt gives the machine the devices of its kind.
func (vm *VirtualMachine) adapt(kind *KindSpec) {
	var scsi *types.VirtualSCSIController
	first := true
	for _, device := range vm.Config.Hardware.Device {
		if c, ok := device.(types.BaseVirtualSCSIController); ok && scsi == nil {
			scsi = c.GetVirtualSCSIController()
			if kind.SharedBus {
				scsi.SharedBus = types.VirtualSCSISharingPhysicalSharing
			}
		}
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if b := flatBacking(device); b != nil && kind.Linked {
			b.Parent = &types.VirtualDiskFlatVer2BackingInfo{
				DiskMode:                     string(types.VirtualDiskModePersistent),
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[fast-1] golden/golden.vmdk"},
			}
		}
		if first && kind.Adapter != "" {
			disk.ControllerKey = vm.otherController(kind.Adapter)
		}
		first = false
	}
	add := func(key int32, device types.BaseVirtualDevice, label string) {
		d := device.GetVirtualDevice()
		d.Key, d.DeviceInfo = key, &types.Description{Label: label, Summary: label}
		vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, device)
	}
	if kind.VTPM {
		add(11000, &types.VirtualTPM{}, "Virtual TPM")
	}
	if kind.Passthrough {
		add(13000, &types.VirtualPCIPassthrough{VirtualDevice: types.VirtualDevice{
			Backing: &types.VirtualPCIPassthroughDeviceBackingInfo{
				VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "accelerator"},
				Id:                             "0000:3b:00.0", DeviceId: "1db4", SystemId: "host-1", VendorId: 4318,
			},
		}}, "PCI device 0")
	}
	for n := 0; n < kind.VirtualRaw; n++ {
		unit := int32(4 + n)
		add(2100+int32(n), &types.VirtualDisk{
			VirtualDevice: types.VirtualDevice{ControllerKey: scsi.Key, UnitNumber: &unit,
				Backing: &types.VirtualDiskRawDiskMappingVer1BackingInfo{
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: fmt.Sprintf("[fast-1] %s/raw_%d.vmdk", vm.Name, n)},
					CompatibilityMode:            string(types.VirtualDiskCompatibilityModeVirtualMode),
					DiskMode:                     string(types.VirtualDiskModePersistent),
				}},
			CapacityInBytes: 1 << 20, CapacityInKB: 1 << 10,
		}, fmt.Sprintf("Mapped disk %d", n+1))
	}
	if kind.FreeSlots != nil {
		for n := 15 - *kind.FreeSlots - vm.diskCount(scsi.Key); n > 0; n-- {
			unit := int32(20 + n)
			add(2200+int32(n), &types.VirtualSCSIPassthrough{
				VirtualDevice: types.VirtualDevice{ControllerKey: scsi.Key, UnitNumber: &unit},
			}, fmt.Sprintf("SCSI device %d", n))
		}
	}
}

func (vm *VirtualMachine) diskCount(controller int32) int {
	n := 0
	for _, device := range vm.Config.Hardware.Device {
		if _, ok := device.(*types.VirtualDisk); ok && device.GetVirtualDevice().ControllerKey == controller {
			n++
		}
	}
	return n
}

func (vm *VirtualMachine) otherController(adapter string) int32 {
	var device types.BaseVirtualDevice
	var key int32
	switch adapter {
	case "ide":
		key, device = 210, &types.VirtualIDEController{}
	case "sata":
		key, device = 15000, &types.VirtualAHCIController{}
	default:
		key, device = 31000, &types.VirtualNVMEController{}
	}
	d := device.GetVirtualDevice()
	d.Key, d.DeviceInfo = key, &types.Description{Label: adapter, Summary: adapter}
	vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, device)
	return key
}

// joinVApp moves the VM out of its folder, as far as it can tell, and into a vApp of its pool.
func (vm *VirtualMachine) joinVApp(name string) error {
	pool := Map.Get(*vm.ResourcePool).(*ResourcePool)
	folder := *vm.Parent
	res := pool.CreateVApp(&types.CreateVApp{
		This: pool.Self, Name: name, ResSpec: types.DefaultResourceConfigSpec(), VmFolder: &folder,
	})
	if res.Fault() != nil {
		return fmt.Errorf("vApp %s: %s", name, res.Fault().String)
	}
	ref := res.(*methods.CreateVAppBody).Res.Returnval
	vapp := Map.Get(ref).(*VirtualApp)
	vapp.ParentFolder = &folder
	vm.ParentVApp, vm.Parent, vm.ResourcePool = &ref, nil, &ref
	return nil
}

// unfitKind refuses a VM on whose SCSI bus others write too, and a running one that uses a device of its host.
func (vm *VirtualMachine) unfitKind(device types.BaseVirtualDevice) types.BaseMethodFault {
	refused := func(reason string) types.BaseMethodFault {
		cause := &types.DeviceNotSupported{Device: device.GetVirtualDevice().DeviceInfo.GetDescription().Label, Reason: reason}
		return &types.SnapshotIncompatibleDeviceInVm{Fault: types.LocalizedMethodFault{Fault: cause, LocalizedMessage: reason}}
	}
	switch d := device.(type) {
	case *types.VirtualPCIPassthrough:
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			return refused("PCI passthrough")
		}
	case types.BaseVirtualSCSIController:
		if bus := d.GetVirtualSCSIController().SharedBus; bus == types.VirtualSCSISharingPhysicalSharing || bus == types.VirtualSCSISharingVirtualSharing {
			return refused("SCSI bus sharing")
		}
	}
	return nil
}

// manner is how a snapshot was asked for. Its limits are those of the API.
type manner struct {
	memory  bool
	quiesce bool
	spec    types.BaseVirtualMachineGuestQuiesceSpec
}

func (m *manner) minutes() int32 {
	if m.spec == nil {
		return 0
	}
	return m.spec.GetVirtualMachineGuestQuiesceSpec().Timeout
}

func (m *manner) unfit() types.BaseMethodFault {
	if minutes := m.minutes(); minutes != 0 && (minutes < 5 || minutes > 240) {
		return &types.InvalidArgument{InvalidProperty: "quiesceSpec.timeout"}
	}
	return nil
}

// holdsMemory tells whether the memory goes into the snapshot: asked for, or unavoidable.
func (vm *VirtualMachine) holdsMemory(m *manner) bool {
	suspended := vm.Runtime.PowerState == types.VirtualMachinePowerStateSuspended
	running := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	return (m.memory && running) || (suspended && !isTrue(vm.Capability.DiskOnlySnapshotOnSuspendedVMSupported))
}

// manifest is the path of what VSS writers left, where the application level was asked for and they took part.
func (vm *VirtualMachine) manifest(m *manner, title string) string {
	_, vss := m.spec.(*types.VirtualMachineWindowsQuiesceSpec)
	bare, there := writers.Load(vm.Self)
	if !vss || !there || !vm.toolsRunning() {
		return ""
	}
	return vm.leaveManifest(bare.(bool))
}
