package simulator

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// MachineSpec describes one VM that is there when the lab opens.
type MachineSpec struct {
	Name        string  `json:"name"`
	Folder      string  `json:"folder"`  // below the datacenter's VM folder; made when missing
	Cluster     int     `json:"cluster"` // index
	Host        int     `json:"host"`    // index within the cluster
	Pool        string  `json:"pool"`    // below the cluster's root pool; made when missing
	Datastore   string  `json:"datastore"`
	Disks       []int64 `json:"disks"`        // bytes
	Independent []int   `json:"independent"`  // indices into Disks
	MultiWriter []int   `json:"multi_writer"` // likewise
	RawMappings int     `json:"raw_mappings"`
	Power       string  `json:"power"` // on, off, suspended
	Tools       bool    `json:"tools"`
	Tracking    bool    `json:"tracking"`
	Template    bool    `json:"template"`
	GuestID     string  `json:"guest_id"`
	KindSpec
}

// LabSpec is what the lab is made from.
type LabSpec struct {
	Root       string        `json:"root"`
	Devices    string        `json:"devices"`
	User       string        `json:"user"`
	Password   string        `json:"password"`
	Admin      string        `json:"admin"`
	Viewer     string        `json:"viewer"`
	InstanceID string        `json:"instance_uuid"`
	Thumbprint string        `json:"thumbprint"`
	Datastores []string      `json:"datastores"`
	Machines   []MachineSpec `json:"machines"`
	Settings   *Settings     `json:"settings"`
	ServeFiles bool          `json:"serve_files"` // hosts are named by addresses at which they serve files
}

// Populate fills the model's empty clusters, and opens the lab's event log.
func Populate(spec *LabSpec) error {
	internalContext.Map = Map
	lab.root, lab.devices, lab.admin, lab.viewer = spec.Root, spec.Devices, spec.Admin, spec.Viewer
	lab.user, lab.password, lab.sha1 = spec.User, spec.Password, spec.Thumbprint
	if spec.Settings != nil {
		lab.settings.change(func(now *Settings) { *now = *spec.Settings })
	}
	ensureDir(lab.devices)
	s := Map.Get(vim25.ServiceInstance).(*ServiceInstance)
	s.Content.About.InstanceUuid = spec.InstanceID
	s.Content.About.FullName = "VMware vCenter Server 7.0.3 (simulated)"
	s.Content.About.Version, s.Content.About.ApiVersion = "7.0.3", "7.0.3.0"
	events, err := os.OpenFile(filepath.Join(lab.root, "events.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0600)
	if err != nil {
		return err
	}
	em := Map.EventManager()
	em.log = events
	for _, event := range em.events {
		em.record(event)
	}
	for i, name := range spec.Datastores {
		if err := addDatastore(i, name); err != nil {
			return err
		}
	}
	if spec.ServeFiles {
		addressHosts()
	}
	p := &population{folders: map[string]*Folder{}, pools: map[string]types.ManagedObjectReference{}}
	p.survey()
	for i := range spec.Machines {
		if err := p.add(&spec.Machines[i]); err != nil {
			return fmt.Errorf("%s: %s", spec.Machines[i].Name, err)
		}
	}
	lab.ready = true
	return nil
}

// addDatastore mounts one folder on all hosts, as shared storage is.
func addDatastore(i int, name string) error {
	dir := filepath.Join(lab.root, "datastores", name)
	ensureDir(dir)
	lab.roots[name] = dir
	var first *Datastore
	for _, e := range Map.All("HostSystem") {
		host := e.(*HostSystem)
		system := Map.Get(*host.ConfigManager.DatastoreSystem).(*HostDatastoreSystem)
		if first == nil {
			first = &Datastore{}
			first.Name = name
			first.Self.Value = fmt.Sprintf("datastore-%d", 1000+i)
			volume := uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)).String()
			first.Info = &types.VmfsDatastoreInfo{
				DatastoreInfo: types.DatastoreInfo{Name: name, Url: dir},
				Vmfs:          &types.HostVmfsVolume{Uuid: volume, HostFileSystemVolume: types.HostFileSystemVolume{Type: "VMFS", Name: name}},
			}
			first.Summary.Type = "VMFS"
			first.Summary.Accessible = true
			first.Summary.MaintenanceMode = string(types.DatastoreSummaryMaintenanceModeStateNormal)
			first.Summary.MultipleHostAccess = types.NewBool(true)
			if fault := system.add(internalContext, first); fault != nil {
				return fmt.Errorf("datastore %s: %s", name, fault.String)
			}
			first.Summary.Url = "ds:///vmfs/volumes/" + volume + "/"
		} else {
			system.Datastore = append(system.Datastore, first.Self)
			system.Host.Datastore = system.Datastore
			parent := hostParent(system.Host)
			Map.AddReference(parent, &parent.Datastore, first.Self)
		}
		first.Host = append(first.Host, types.DatastoreHostMount{
			Key: host.Self,
			MountInfo: types.HostMountInfo{
				AccessMode: string(types.HostMountModeReadWrite), Mounted: types.NewBool(true), Accessible: types.NewBool(true),
			},
		})
	}
	if first != nil {
		lab.stores[name] = first
		_ = first.RefreshDatastore(&types.RefreshDatastore{This: first.Self})
		first.Summary.Capacity, first.Summary.FreeSpace = 64<<40, 48<<40
		first.Info.GetDatastoreInfo().FreeSpace = first.Summary.FreeSpace
	}
	return nil
}

// unmount hides a datastore from one host.
func unmount(ds *Datastore, host *HostSystem) {
	system := Map.Get(*host.ConfigManager.DatastoreSystem).(*HostDatastoreSystem)
	Map.WithLock(host, func() {
		RemoveReference(&system.Datastore, ds.Self)
		host.Datastore = append([]types.ManagedObjectReference(nil), system.Datastore...)
	})
	Map.WithLock(ds, func() {
		kept := []types.DatastoreHostMount{}
		for _, mount := range ds.Host {
			if mount.Key != host.Self {
				kept = append(kept, mount)
			}
		}
		ds.Host = kept
	})
	touch(host, "datastore")
	touch(ds, "host")
}

type population struct {
	root     *Folder
	clusters []*ClusterComputeResource
	folders  map[string]*Folder
	pools    map[string]types.ManagedObjectReference
}

func (p *population) survey() {
	dc := Map.Any("Datacenter").(*Datacenter)
	p.root = Map.Get(dc.VmFolder).(*Folder)
	for _, ref := range Map.Get(dc.HostFolder).(*Folder).ChildEntity {
		if c, ok := Map.Get(ref).(*ClusterComputeResource); ok {
			p.clusters = append(p.clusters, c)
			if config, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx); ok {
				config.DrsConfig.Enabled = types.NewBool(true)
				config.DrsConfig.DefaultVmBehavior = types.DrsBehaviorFullyAutomated
			}
		}
	}
}

func (p *population) folder(name string) (*Folder, error) {
	at, seen := p.root, ""
	for _, part := range strings.Split(name, "/") {
		if part == "" {
			continue
		}
		seen += "/" + part
		next := p.folders[seen]
		if next == nil {
			res := at.CreateFolder(internalContext, &types.CreateFolder{This: at.Self, Name: part})
			if res.Fault() != nil {
				return nil, fmt.Errorf("folder %s: %s", seen, res.Fault().String)
			}
			next = Map.Get(res.(*methods.CreateFolderBody).Res.Returnval).(*Folder)
			p.folders[seen] = next
		}
		at = next
	}
	return at, nil
}

func (p *population) pool(c *ClusterComputeResource, name string) (types.ManagedObjectReference, error) {
	if name == "" {
		return *c.ResourcePool, nil
	}
	key := c.Self.Value + "/" + name
	if ref, ok := p.pools[key]; ok {
		return ref, nil
	}
	parent := Map.Get(*c.ResourcePool).(*ResourcePool)
	res := parent.CreateResourcePool(&types.CreateResourcePool{This: parent.Self, Name: name, Spec: types.DefaultResourceConfigSpec()})
	if res.Fault() != nil {
		return types.ManagedObjectReference{}, fmt.Errorf("pool %s: %s", name, res.Fault().String)
	}
	p.pools[key] = res.(*methods.CreateResourcePoolBody).Res.Returnval
	return p.pools[key], nil
}

func (p *population) add(spec *MachineSpec) error {
	if spec.Cluster >= len(p.clusters) {
		return fmt.Errorf("there are only %d clusters", len(p.clusters))
	}
	cluster := p.clusters[spec.Cluster]
	folder, err := p.folder(spec.Folder)
	if err != nil {
		return err
	}
	pool, err := p.pool(cluster, spec.Pool)
	if err != nil {
		return err
	}
	host := cluster.Host[spec.Host%len(cluster.Host)]
	res := folder.CreateVMTask(internalContext, &types.CreateVM_Task{
		This: folder.Self, Config: machineConfig(spec), Pool: pool, Host: &host,
	})
	task := Map.Get(res.(*methods.CreateVM_TaskBody).Res.Returnval).(*Task)
	if task.Info.Error != nil {
		return fmt.Errorf("%T", task.Info.Error.Fault)
	}
	vm := Map.Get(task.Info.Result.(types.ManagedObjectReference)).(*VirtualMachine)
	vm.Config.Template, vm.Summary.Config.Template = spec.Template, spec.Template
	if spec.Tracking {
		vm.Config.ChangeTrackingEnabled = types.NewBool(true)
		vm.setTracking(true)
	}
	vm.power(spec.Power, spec.Tools)
	return vm.become(spec)
}

// power sets the state that the VM had before the lab opened: no event tells of it.
func (vm *VirtualMachine) power(state string, tools bool) {
	vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff
	switch state {
	case "on":
		vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOn
	case "suspended":
		vm.Runtime.PowerState = types.VirtualMachinePowerStateSuspended
	}
	vm.Summary.Runtime.PowerState = vm.Runtime.PowerState
	if tools {
		vm.Guest.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
	}
	vm.toolsFollow(vm.Runtime.PowerState)
}

// toolsFollow starts and ends the Tools with the guest, where they are installed. Power writes the configuration file.
func (vm *VirtualMachine) toolsFollow(state types.VirtualMachinePowerState) {
	vm.bumpVersion()
	vm.bootFollows(state)
	vm.logFollows(state)
	touch(vm, "config.changeVersion")
	if vm.Guest == nil || vm.Guest.ToolsVersionStatus2 == "" {
		return
	}
	vm.Guest.ToolsStatus = types.VirtualMachineToolsStatusToolsNotRunning
	vm.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
	if state == types.VirtualMachinePowerStatePoweredOn {
		vm.Guest.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
		vm.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	}
	vm.Summary.Guest.ToolsStatus = vm.Guest.ToolsStatus
	vm.Summary.Guest.ToolsRunningStatus = vm.Guest.ToolsRunningStatus
	touch(vm, "guest", "summary.guest")
}

func machineConfig(spec *MachineSpec) types.VirtualMachineConfigSpec {
	guest := spec.GuestID
	if guest == "" {
		guest = string(types.VirtualMachineGuestOsIdentifierDebian10_64Guest)
	}
	config := types.VirtualMachineConfigSpec{
		Name: spec.Name, GuestId: guest, NumCPUs: 2, MemoryMB: 2048,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + spec.Datastore + "]"},
		Uuid:  uuid.New().String(), InstanceUuid: uuid.New().String(),
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "disk.EnableUUID", Value: "TRUE"}},
	}
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		log.Panic(err)
	}
	card := esx.EthernetCard
	devices = append(devices, scsi)
	for i, size := range spec.Disks {
		mode := string(types.VirtualDiskModePersistent)
		for _, n := range spec.Independent {
			if n == i {
				mode = string(types.VirtualDiskModeIndependent_persistent)
			}
		}
		sharing := string(types.VirtualDiskSharingSharingNone)
		for _, n := range spec.MultiWriter {
			if n == i {
				sharing = string(types.VirtualDiskSharingSharingMultiWriter)
			}
		}
		devices = append(devices, newDisk(scsi, i, size, &types.VirtualDiskFlatVer2BackingInfo{
			DiskMode: mode, Sharing: sharing, ThinProvisioned: types.NewBool(true),
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: diskName(spec, i)},
		}))
	}
	for n := 0; n < spec.RawMappings; n++ {
		i := len(spec.Disks) + n
		devices = append(devices, newDisk(scsi, i, 1<<30, &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			CompatibilityMode: string(types.VirtualDiskCompatibilityModePhysicalMode), DiskMode: string(types.VirtualDiskModeIndependent_persistent),
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: diskName(spec, i)},
		}))
	}
	devices = append(devices, &card)
	config.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		log.Panic(err)
	}
	return config
}

func diskName(spec *MachineSpec, i int) string {
	name := spec.Name
	if i > 0 {
		name = fmt.Sprintf("%s_%d", spec.Name, i)
	}
	return fmt.Sprintf("[%s] %s/%s.vmdk", spec.Datastore, spec.Name, name)
}

func newDisk(scsi types.BaseVirtualDevice, i int, size int64, backing types.BaseVirtualDeviceBackingInfo) *types.VirtualDisk {
	unit := int32(i)
	if unit >= 7 { // 7 is the controller itself
		unit++
	}
	return &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{
			Key: -int32(100 + i), ControllerKey: scsi.GetVirtualDevice().Key, UnitNumber: &unit, Backing: backing,
			DeviceInfo: &types.Description{Label: fmt.Sprintf("Hard disk %d", i+1), Summary: fmt.Sprintf("%d KB", size/1024)},
		},
		CapacityInBytes: size, CapacityInKB: size / 1024,
	}
}

// keepField replaces the value of a custom attribute, where the simulator adds a second one.
func keepField(values []types.BaseCustomFieldValue, value types.BaseCustomFieldValue) []types.BaseCustomFieldValue {
	kept := []types.BaseCustomFieldValue{}
	for _, v := range values {
		if v.GetCustomFieldValue().Key != value.GetCustomFieldValue().Key {
			kept = append(kept, v)
		}
	}
	return append(kept, value)
}

// keepOption sets an extraConfig key, and takes it away when its value is empty.
func keepOption(options []types.BaseOptionValue, option types.BaseOptionValue) []types.BaseOptionValue {
	kept := []types.BaseOptionValue{}
	for _, o := range options {
		if o.GetOptionValue().Key != option.GetOptionValue().Key {
			kept = append(kept, o)
		}
	}
	if text, ok := option.GetOptionValue().Value.(string); ok && text == "" {
		return kept
	}
	return append(kept, option)
}

func touchFields(ref types.ManagedObjectReference) {
	if obj, ok := Map.Get(ref).(mo.Entity); ok {
		touch(obj, "customValue", "value")
	}
}
