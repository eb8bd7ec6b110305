package simulator

import (
	"os"
	"reflect"
	"sync"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Settings are the lab's manners; they can be changed while it runs.
type Settings struct {
	PageAreas        int    `json:"page_areas"`       // most areas in one answer of QueryChangedDiskAreas
	PageObjects      int    `json:"page_objects"`     // most objects in one answer of a property collector; 0: all
	EmptyPageEvery   int    `json:"empty_page_every"` // a gap that begins at a multiple of so many grains is an empty page; 0: never
	SupersetGrains   int    `json:"superset_grains"`  // grains reported around each changed one
	Star             string `json:"star"`             // "*" answers "allocated", "whole" or "fault"
	DeviceDelayMS    int    `json:"device_delay_ms"`  // from the end of the hot-add to the device's appearance
	SnapshotDelayMS  int    `json:"snapshot_delay_ms"`
	RemovalDelayMS   int    `json:"removal_delay_ms"`
	MoveDelayMS      int    `json:"move_delay_ms"`
	StunMS           int    `json:"stun_ms"`           // for how long a VM stands still as its snapshot is made, and as it is moved
	RemovalStunMS    int    `json:"removal_stun_ms"`   // and as its snapshot is removed, or its disks are merged
	LeaseSeconds     int    `json:"lease_seconds"`     // after so long without progress a lease times out; 0: 300
	LeaveDeltas      int    `json:"leave_deltas"`      // so many snapshot removals leave the VM in need of consolidation
	TrackingStarts   string `json:"tracking_starts"`   // "": at once; "stun": at the next stun; "late": after the next snapshot's ids
	ForgetEvery      int    `json:"forget_every"`      // so often a changed grain is left out of the answer, by its number; 0: never
	KeepTracking     bool   `json:"keep_tracking"`     // a moved disk keeps its change-tracking uuid
	OldREST          bool   `json:"old_rest"`          // only /rest, as before vCenter 7
	LinkFrozen       bool   `json:"link_frozen"`       // freeze by a hard link: at once, but the guest must not write meanwhile
	KeepFrozen       bool   `json:"keep_frozen"`       // keep a copy of each frozen disk after the snapshot is gone
	LogsLocked       bool   `json:"logs_locked"`       // vCenter asks for logs of running VMs at hosts that find them locked
	TicketThumbprint string `json:"ticket_thumbprint"` // what tickets tell instead of the host's; "none": nothing
}

type settingsBox struct {
	sync.Mutex
	now Settings
}

func (b *settingsBox) get() Settings {
	b.Lock()
	defer b.Unlock()
	return b.now
}

func (b *settingsBox) change(f func(*Settings)) Settings {
	b.Lock()
	defer b.Unlock()
	f(&b.now)
	return b.now
}

type labState struct {
	root     string
	devices  string
	viewer   string // a third one, which may only look
	sha1     string // of the certificate that the lab shows
	user     string
	password string
	admin    string // a second account, with the same password, for what people do
	settings settingsBox
	ready    bool
	roots    map[string]string     // folder of each datastore, by name
	stores   map[string]*Datastore // fixed once the lab is open
}

var lab = &labState{
	settings: settingsBox{now: Settings{
		PageAreas: 2000, PageObjects: 10, EmptyPageEvery: 3, Star: "allocated", DeviceDelayMS: 20, StunMS: 150, RemovalStunMS: 80, KeepFrozen: true,
	}},
	roots: map[string]string{}, stores: map[string]*Datastore{},
}

func (l *labState) datastore(name string) string { return l.roots[name] }

func (l *labState) frozenDir(snapshot types.ManagedObjectReference) string {
	return l.root + "/frozen/" + snapshot.Value
}

func ensureDir(dir string) {
	if err := os.MkdirAll(dir, 0700); err != nil {
		panic(err)
	}
}

// touch tells the property collectors that these properties of the object may have new values.
func touch(obj mo.Reference, paths ...string) {
	changes := make([]types.PropertyChange, len(paths))
	for i, p := range paths {
		changes[i] = types.PropertyChange{Name: p, Op: types.PropertyChangeOpAssign}
	}
	val := getManagedObject(obj).Addr().Interface().(mo.Reference)
	Map.applyHandlers(func(o RegisterObject) { o.UpdateObject(val, changes) })
}

// prepare gives a new VM what vCenter shows for every VM and the simulator leaves out.
func prepare(vm *VirtualMachine) {
	no, yes := types.NewBool(false), types.NewBool(true)
	vm.Runtime.ConsolidationNeeded = no
	vm.Config.ChangeTrackingEnabled = types.NewBool(false)
	vm.Config.ChangeVersion = "1"
	vm.Capability.SnapshotOperationsSupported = true
	vm.Capability.MultipleSnapshotsSupported = true
	vm.Capability.QuiescedSnapshotsSupported = true
	vm.Capability.ChangeTrackingSupported = yes
	vm.Capability.DiskOnlySnapshotOnSuspendedVMSupported = yes
	vm.Capability.DiskSharesSupported = true
}

// copyDevices copies devices so far that the copies' backings can change without the originals.
func copyDevices(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	copies := make([]types.BaseVirtualDevice, len(devices))
	for i, device := range devices {
		original := reflect.ValueOf(device).Elem()
		duplicate := reflect.New(original.Type())
		duplicate.Elem().Set(original)
		copies[i] = duplicate.Interface().(types.BaseVirtualDevice)
		if d, ok := copies[i].(*types.VirtualDisk); ok {
			if b, flat := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); flat {
				d.Backing = copyBacking(b)
			}
		}
	}
	return copies
}

func copyBacking(b *types.VirtualDiskFlatVer2BackingInfo) *types.VirtualDiskFlatVer2BackingInfo {
	c := *b
	if b.Parent != nil {
		c.Parent = copyBacking(b.Parent)
	}
	return &c
}

// flatBacking is nil for disks that the lab holds no bytes of, such as raw device mappings.
func flatBacking(device types.BaseVirtualDevice) *types.VirtualDiskFlatVer2BackingInfo {
	if d, ok := device.(*types.VirtualDisk); ok {
		if b, flat := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); flat {
			return b
		}
	}
	return nil
}

// ownDisk tells whether the disk's home is the VM, not another VM that it is hot-added from.
func (vm *VirtualMachine) ownDisk(device types.BaseVirtualDevice) bool {
	b := flatBacking(device)
	return b != nil && !attachments.foreign(vm.Self, b.FileName)
}

func independent(b *types.VirtualDiskFlatVer2BackingInfo) bool {
	switch types.VirtualDiskMode(b.DiskMode) {
	case types.VirtualDiskModeIndependent_persistent, types.VirtualDiskModeIndependent_nonpersistent:
		return true
	}
	return false
}
