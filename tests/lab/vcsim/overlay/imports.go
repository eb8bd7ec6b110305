package simulator

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// uploadMethod is what fault rules call a disk that is sent to a lease.
const uploadMethod = "POST /nfc"

// ImportVApp makes a VM under a lease. Its disks are sent as stream-optimised VMDKs; until the lease is completed the VM
// can be changed by nobody, and it is gone again when the lease is aborted or times out.
func (p *ResourcePool) ImportVApp(ctx *Context, req *types.ImportVApp) soap.HasFault {
	body := new(methods.ImportVAppBody)
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "spec"})
		return body
	}
	if req.Folder == nil {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "folder"})
		return body
	}
	folder := Map.Get(*req.Folder).(*Folder)
	res := folder.CreateVMTask(ctx, &types.CreateVM_Task{This: folder.Self, Config: spec.ConfigSpec, Pool: p.Self, Host: req.Host})
	task := Map.Get(res.(*methods.CreateVM_TaskBody).Res.Returnval).(*Task)
	if task.Info.Error != nil {
		body.Fault_ = Fault(task.Info.Error.LocalizedMessage, task.Info.Error.Fault)
		return body
	}
	vm := Map.Get(task.Info.Result.(types.ManagedObjectReference)).(*VirtualMachine)
	l := newLease(vm.Self)
	l.imports = true
	var urls []types.HttpNfcLeaseDeviceUrl
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil || diskOf(b.FileName) == nil {
			continue
		}
		d := diskOf(b.FileName)
		name := fmt.Sprintf("disk-%d.vmdk", len(urls))
		l.disks[name] = leasedDisk{d.Flat, d.Capacity}
		l.Info.TotalDiskCapacityInKB += d.Capacity >> 10
		place := placeOf(vm.Config.Hardware.Device, device)
		url := l.url(fmt.Sprintf("/%s/%s", vm.Self.Value, place), name, true)
		url.ImportKey = fmt.Sprintf("/%s/%s", vm.Name, place)
		urls = append(urls, url)
	}
	l.until = time.Now().Add(leaseReadyAfter + l.timeout())
	Map.Put(l)
	l.Info.Lease = l.Self
	leases.Lock()
	leases.held[l.token] = l
	leases.Unlock()
	go l.begin(l.Info, urls)
	body.Res = &types.ImportVAppResponse{Returnval: l.Self}
	return body
}

// drop removes what an import has made.
func (l *HttpNfcLease) drop() {
	if !l.imports {
		return
	}
	if vm, ok := Map.Get(l.Info.Entity).(*VirtualMachine); ok {
		Map.WithLock(vm, func() { vm.DestroyTask(internalContext, &types.Destroy_Task{This: vm.Self}) })
	}
}

// receive takes one disk of an import. A length is asked for: every client that is known tells it.
func (l *HttpNfcLease) receive(w http.ResponseWriter, r *http.Request, name string) {
	d, ok := l.disks[name]
	if !ok || !l.imports {
		http.NotFound(w, r)
		return
	}
	if r.ContentLength < 0 {
		w.WriteHeader(http.StatusLengthRequired)
		return
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-vnd.vmware-streamVmdk" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	rule := faults.take(func(f *faultRule) bool { return f.Method == uploadMethod })
	if rule != nil {
		time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
		if rule.Fault != "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if rule.Drop {
			_, _ = io.CopyN(io.Discard, r.Body, 400000)
			panic(http.ErrAbortHandler)
		}
	}
	alive := func() bool { return leases.find(l.token) != nil }
	if err := receiveVMDK(r.Body, d, alive); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}
