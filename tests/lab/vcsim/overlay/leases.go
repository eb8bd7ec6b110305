package simulator

import (
	"fmt"
	"net/http"
	"path"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// HttpNfcLease stands in the place of the simulator's own: disks leave it as stream-optimised VMDKs, it takes a moment
// to be ready, keeps its VM as it is, and ends when nobody tells of progress.
type HttpNfcLease struct {
	mo.HttpNfcLease
	files   map[string]string // of the simulator's own imports
	disks   map[string]leasedDisk
	token   string
	until   time.Time
	over    bool
	imports bool
}

type leasedDisk struct {
	image    string
	capacity int64
}

const nfcPrefix = "/nfc/"

// nfcMethod is what fault rules call a request for a disk of a lease.
const nfcMethod = "GET /nfc"

// leaseReadyAfter is how long a lease is being initialized.
const leaseReadyAfter = 30 * time.Millisecond

type leaseBook struct {
	sync.Mutex
	held                         map[string]*HttpNfcLease // by token
	Completed, Aborted, TimedOut int
}

var leases = &leaseBook{held: map[string]*HttpNfcLease{}}

func (b *leaseBook) on(vm types.ManagedObjectReference) *HttpNfcLease {
	b.Lock()
	defer b.Unlock()
	for _, l := range b.held {
		if l.Info.Entity == vm {
			return l
		}
	}
	return nil
}

func (b *leaseBook) find(token string) *HttpNfcLease {
	b.Lock()
	defer b.Unlock()
	return b.held[token]
}

// end lets the VM go. It answers whether the lease was still held.
func (b *leaseBook) end(l *HttpNfcLease, count *int) bool {
	b.Lock()
	defer b.Unlock()
	if l.over {
		return false
	}
	l.over = true
	*count++
	delete(b.held, l.token)
	return true
}

type leaseView struct {
	VM      string `json:"vm"`
	State   string `json:"state"`
	Percent int32  `json:"percent"`
}

func (b *leaseBook) view() interface{} {
	b.Lock()
	defer b.Unlock()
	held := []leaseView{}
	for _, l := range b.held {
		held = append(held, leaseView{l.Info.Entity.Value, string(l.State), l.TransferProgress})
	}
	return map[string]interface{}{"held": held, "completed": b.Completed, "aborted": b.Aborted, "timed_out": b.TimedOut}
}

// NewHttpNfcLease is what the simulator's own ImportVApp makes, which nobody calls.
func NewHttpNfcLease(ctx *Context, entity types.ManagedObjectReference) *HttpNfcLease {
	return newLease(entity)
}

func newLease(entity types.ManagedObjectReference) *HttpNfcLease {
	seconds := lab.settings.get().LeaseSeconds
	if seconds == 0 {
		seconds = 300
	}
	l := &HttpNfcLease{files: map[string]string{}, disks: map[string]leasedDisk{}, token: uuid.New().String()}
	l.State = types.HttpNfcLeaseStateInitializing
	l.Mode = string(types.HttpNfcLeaseModePushOrGet)
	l.Info = &types.HttpNfcLeaseInfo{Entity: entity, LeaseTimeout: int32(seconds)}
	return l
}

func (vm *VirtualMachine) ExportVm(ctx *Context, req *types.ExportVm) soap.HasFault {
	body := &methods.ExportVmBody{}
	if state := vm.Runtime.PowerState; state != types.VirtualMachinePowerStatePoweredOff {
		body.Fault_ = Fault("", &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: state})
		return body
	}
	l, fault := vm.export(vm.Config.Hardware.Device, "")
	if fault != nil {
		body.Fault_ = Fault("", fault)
		return body
	}
	body.Res = &types.ExportVmResponse{Returnval: l.Self}
	return body
}

func (v *VirtualMachineSnapshot) ExportSnapshot(ctx *Context, req *types.ExportSnapshot) soap.HasFault {
	body := &methods.ExportSnapshotBody{}
	l, fault := Map.Get(v.Vm).(*VirtualMachine).export(v.Config.Hardware.Device, "."+v.Self.Value)
	if fault != nil {
		body.Fault_ = Fault("", fault)
		return body
	}
	body.Res = &types.ExportSnapshotResponse{Returnval: l.Self}
	return body
}

// export makes a lease of these disks; what a snapshot froze has the flat file's name with a suffix.
func (vm *VirtualMachine) export(devices []types.BaseVirtualDevice, suffix string) (*HttpNfcLease, types.BaseMethodFault) {
	if vm.Config.KeyId != nil {
		return nil, new(types.NotSupported)
	}
	if leases.on(vm.Self) != nil {
		return nil, &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: "task-export"}}
	}
	l := newLease(vm.Self)
	var urls []types.HttpNfcLeaseDeviceUrl
	for _, device := range devices {
		b := flatBacking(device)
		if b == nil || independent(b) || !vm.ownDisk(device) || diskOf(b.FileName) == nil {
			continue
		}
		d := diskOf(b.FileName)
		name := fmt.Sprintf("disk-%d.vmdk", len(urls))
		l.disks[name] = leasedDisk{d.Flat + suffix, d.Capacity}
		l.Info.TotalDiskCapacityInKB += d.Capacity >> 10
		urls = append(urls, l.url(fmt.Sprintf("/%s/%s", vm.Self.Value, placeOf(devices, device)), name, true))
	}
	urls = append(urls, l.url(fmt.Sprintf("/%s/nvram", vm.Self.Value), vm.Name+".nvram", false))
	l.until = time.Now().Add(leaseReadyAfter + l.timeout())
	Map.Put(l)
	l.Info.Lease = l.Self
	leases.Lock()
	leases.held[l.token] = l
	leases.Unlock()
	info := l.Info
	go l.begin(info, urls)
	return l, nil
}

// placeOf is a disk's place as keys of device URLs name it: ParaVirtualSCSIController0:1.
func placeOf(devices []types.BaseVirtualDevice, device types.BaseVirtualDevice) string {
	d := device.GetVirtualDevice()
	for _, other := range devices {
		if c, ok := other.(types.BaseVirtualController); ok && other.GetVirtualDevice().Key == d.ControllerKey {
			return fmt.Sprintf("%s%d:%d", reflect.TypeOf(other).Elem().Name(), c.GetVirtualController().BusNumber, *d.UnitNumber)
		}
	}
	return "none"
}

func (l *HttpNfcLease) url(key, name string, disk bool) types.HttpNfcLeaseDeviceUrl {
	return types.HttpNfcLeaseDeviceUrl{
		Key: key, ImportKey: "", Url: "https://*" + nfcPrefix + path.Join(l.token, name), SslThumbprint: lab.sha1,
		Disk: types.NewBool(disk), TargetId: name,
	}
}

func (l *HttpNfcLease) timeout() time.Duration {
	return time.Duration(l.Info.LeaseTimeout) * time.Second
}

// begin makes the lease ready after a moment, or lets it fail where that was ordered, and ends it when it times out.
func (l *HttpNfcLease) begin(info *types.HttpNfcLeaseInfo, urls []types.HttpNfcLeaseDeviceUrl) {
	time.Sleep(leaseReadyAfter)
	rule := faults.take(func(r *faultRule) bool { return r.Method == "HttpNfcLease" })
	if rule != nil {
		time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
	}
	if rule != nil && rule.Fault != "" {
		l.fail(rule.build(), rule.Text, &leases.Aborted)
		return
	}
	over := false
	Map.WithLock(l, func() {
		ready := *info
		ready.DeviceUrl = urls
		leases.Lock()
		if over = l.over; !over {
			l.Info, l.State = &ready, types.HttpNfcLeaseStateReady
		}
		leases.Unlock()
	})
	if over {
		return
	}
	touch(l, "state", "info")
	for {
		leases.Lock()
		left, over := time.Until(l.until), l.over
		leases.Unlock()
		if over {
			return
		}
		if left <= 0 {
			l.fail(new(types.Timedout), "The lease has timed out.", &leases.TimedOut)
			return
		}
		time.Sleep(left)
	}
}

func (l *HttpNfcLease) fail(fault types.BaseMethodFault, text string, count *int) {
	if !leases.end(l, count) {
		return
	}
	Map.WithLock(l, func() {
		l.State = types.HttpNfcLeaseStateError
		l.Error = &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: text}
	})
	l.drop()
	touch(l, "state", "error")
}

func (l *HttpNfcLease) HttpNfcLeaseComplete(ctx *Context, req *types.HttpNfcLeaseComplete) soap.HasFault {
	if !leases.end(l, &leases.Completed) {
		return &methods.HttpNfcLeaseCompleteBody{Fault_: Fault("", new(types.InvalidState))}
	}
	Map.Remove(l.Self)
	return &methods.HttpNfcLeaseCompleteBody{Res: new(types.HttpNfcLeaseCompleteResponse)}
}

func (l *HttpNfcLease) HttpNfcLeaseAbort(ctx *Context, req *types.HttpNfcLeaseAbort) soap.HasFault {
	if leases.end(l, &leases.Aborted) {
		l.drop()
	}
	Map.Remove(l.Self)
	return &methods.HttpNfcLeaseAbortBody{Res: new(types.HttpNfcLeaseAbortResponse)}
}

func (l *HttpNfcLease) HttpNfcLeaseProgress(ctx *Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	leases.Lock()
	over := l.over
	l.TransferProgress = req.Percent
	l.until = time.Now().Add(l.timeout())
	leases.Unlock()
	if over {
		return &methods.HttpNfcLeaseProgressBody{Fault_: Fault("", new(types.Timedout))}
	}
	return &methods.HttpNfcLeaseProgressBody{Res: new(types.HttpNfcLeaseProgressResponse)}
}

// alters are the calls that a VM refuses while its disks are leased.
var alters = map[string]bool{
	"PowerOnVM_Task": true, "Destroy_Task": true, "MigrateVM_Task": true, "RelocateVM_Task": true, "UnregisterVM": true,
	"CreateSnapshot_Task": true, "CreateSnapshotEx_Task": true, "RemoveSnapshot_Task": true, "RemoveAllSnapshots_Task": true,
	"RevertToSnapshot_Task": true, "ReconfigVM_Task": true,
}

// leased refuses what would alter a VM whose disks are being exported.
func leased(method *Method) soap.HasFault {
	if !alters[method.Name] {
		return nil
	}
	ref := method.This
	if s, ok := Map.Get(ref).(*VirtualMachineSnapshot); ok {
		ref = s.Vm
	}
	if leases.on(ref) == nil {
		return nil
	}
	return &serverFaultBody{Reason: Fault("Another task is already in progress.", &types.TaskInProgress{
		Task: types.ManagedObjectReference{Type: "Task", Value: "task-export"},
	})}
}

// ServeNFC serves the disks of leases to whoever knows their addresses; no login is asked for.
func ServeNFC(w http.ResponseWriter, r *http.Request) {
	name := r.Method + " /nfc"
	faults.Lock()
	faults.calls[name]++
	faults.Unlock()
	p := strings.Split(strings.TrimPrefix(r.URL.Path, nfcPrefix), "/")
	l := leases.find(p[0])
	if l == nil || len(p) != 2 {
		http.NotFound(w, r)
		return
	}
	if r.Method == http.MethodPut || r.Method == http.MethodPost {
		l.receive(w, r, p[1])
		return
	}
	rule := faults.take(func(f *faultRule) bool { return f.Method == nfcMethod })
	if rule != nil {
		time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
		if rule.Fault != "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if rule.Drop {
			w = &cutOff{ResponseWriter: w, left: 400000}
		}
	}
	d, ok := l.disks[p[1]]
	if !ok {
		_, _ = w.Write([]byte("NVRAM"))
		return
	}
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	if err := streamVMDK(w, d, func() bool { return leases.find(p[0]) != nil }); err != nil {
		panic(http.ErrAbortHandler)
	}
}
