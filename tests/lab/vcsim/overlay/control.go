package simulator

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type labDiskView struct {
	Key         int32  `json:"key"`
	Label       string `json:"label"`
	UUID        string `json:"uuid"`
	File        string `json:"file"`
	Flat        string `json:"flat"`
	Capacity    int64  `json:"capacity_bytes"`
	Mode        string `json:"mode"`
	Attached    bool   `json:"attached"`
	Independent bool   `json:"independent"`
}

type labMachineView struct {
	Ref          string        `json:"moref"`
	Name         string        `json:"name"`
	InstanceUUID string        `json:"instance_uuid"`
	Power        string        `json:"power"`
	Host         string        `json:"host"`
	HostRef      string        `json:"host_moref"`
	Datastore    string        `json:"datastore"`
	Template     bool          `json:"template"`
	Snapshots    []string      `json:"snapshots"`
	Disks        []labDiskView `json:"disks"`
}

func viewMachine(vm *VirtualMachine) labMachineView {
	v := labMachineView{Ref: vm.Self.Value, Name: vm.Name, Power: string(vm.Runtime.PowerState), Template: vm.Config.Template,
		InstanceUUID: vm.Config.InstanceUuid, Snapshots: []string{}, Disks: []labDiskView{}}
	if h := hostOf(vm.Runtime.Host); h != nil {
		v.Host, v.HostRef = h.Name, h.Self.Value
	}
	if ds := vm.home(); ds != nil {
		v.Datastore = ds.Name
	}
	for _, s := range vm.snapshots() {
		v.Snapshots = append(v.Snapshots, s.Self.Value)
	}
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil {
			continue
		}
		d := device.(*types.VirtualDisk)
		v.Disks = append(v.Disks, labDiskView{Key: d.Key, Label: d.DeviceInfo.GetDescription().Label, UUID: b.Uuid, File: b.FileName,
			Flat: flatOf(b.FileName), Capacity: getDiskSize(d), Mode: b.DiskMode, Attached: !vm.ownDisk(device), Independent: independent(b)})
	}
	return v
}

// outage is the time until which the lab answers nobody, in nanoseconds since the epoch.
var outage int64

// Gate breaks every connection while an outage lasts.
func Gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if time.Now().UnixNano() < atomic.LoadInt64(&outage) {
			panic(http.ErrAbortHandler)
		}
		if strings.HasPrefix(r.URL.Path, "/api/") && !lab.settings.get().OldREST {
			modern(next, w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func killSessions() int {
	sm := Map.SessionManager()
	sessionMutex.Lock()
	n := len(sm.sessions)
	sm.sessions = map[string]Session{}
	Map.m.Lock()
	for ref, h := range Map.handlers {
		switch of := h.(type) {
		case *PropertyCollector:
			of.interrupt()
			delete(Map.handlers, ref)
		case *ContainerView:
			delete(Map.handlers, ref)
		}
	}
	Map.m.Unlock()
	unwatchAll()
	sessionMutex.Unlock()
	em := Map.EventManager()
	Map.WithLock(em, func() { em.collectors = map[types.ManagedObjectReference]*EventHistoryCollector{} })
	return n
}

type eventOrder struct {
	Type       string `json:"type"`
	VM         string `json:"vm"`
	User       string `json:"user"`
	AgeSeconds int    `json:"age_seconds"` // posted late: its time lies so far back
	Count      int    `json:"count"`
}

// postOrdered posts events that no task of the lab makes, with the VM's place in their base fields.
func postOrdered(o *eventOrder) (int, string) {
	kind, ok := types.TypeFunc()(o.Type)
	if !ok {
		return http.StatusBadRequest, "no such event: " + o.Type
	}
	vm, ok := Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: o.VM}).(*VirtualMachine)
	if !ok {
		return http.StatusNotFound, "no such VM: " + o.VM
	}
	if o.Count < 1 {
		o.Count = 1
	}
	for n := 0; n < o.Count; n++ {
		event, ok := reflect.New(kind).Interface().(types.BaseEvent)
		if !ok {
			return http.StatusBadRequest, o.Type + " is not an event"
		}
		base := event.GetEvent()
		*base = vm.event().Event
		base.UserName = o.User
		if o.AgeSeconds > 0 {
			base.CreatedTime = time.Now().UTC().Add(-time.Duration(o.AgeSeconds) * time.Second)
		}
		complete(reflect.ValueOf(event).Elem(), vm)
		internalContext.postEvent(event)
	}
	return http.StatusOK, ""
}

// complete fills the event's required references, which a client could not read while they are empty.
func complete(event reflect.Value, vm *VirtualMachine) {
	host := hostOf(vm.Runtime.Host)
	for i := 0; i < event.NumField(); i++ {
		field := event.Field(i)
		if field.Kind() == reflect.Struct && event.Type().Field(i).Anonymous {
			complete(field, vm)
			continue
		}
		switch at := field.Addr().Interface().(type) {
		case *types.HostEventArgument:
			*at = *host.eventArgument()
		case *types.VmEventArgument:
			*at = *vm.event().Vm
		case *types.DatastoreEventArgument:
			*at = *datastoreArgument(vm.home())
		case *types.FolderEventArgument:
			if folder, ok := asFolderMO(Map.Get(*vm.Parent)); ok {
				*at = folderEventArgument(folder)
			}
		case *types.ResourcePoolEventArgument:
			if pool, ok := asResourcePoolMO(Map.Get(*vm.ResourcePool)); ok {
				at.Name, at.ResourcePool = pool.Name, pool.Self
			}
		case *types.ManagedObjectReference:
			*at = vm.Self
		case *types.LocalizedMethodFault:
			at.Fault = &types.SystemError{Reason: "ordered by the lab"}
		}
	}
}

// Control serves the lab's own orders, on loopback and apart from vCenter's API.
func Control(drop func()) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v interface{}) { _ = json.NewEncoder(w).Encode(v) }
	order := func(path string, f func(*json.Decoder) (int, interface{})) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			// Read it all: a connection that closes with unread input is reset, and the answer lost.
			body, _ := io.ReadAll(r.Body)
			status, v := f(json.NewDecoder(bytes.NewReader(body)))
			w.WriteHeader(status)
			answer(w, v)
		})
	}
	order("/machines", func(*json.Decoder) (int, interface{}) {
		views := []labMachineView{}
		for _, e := range Map.All("VirtualMachine") {
			vm := e.(*VirtualMachine)
			Map.WithLock(vm, func() { views = append(views, viewMachine(vm)) })
		}
		return http.StatusOK, views
	})
	order("/settings", func(body *json.Decoder) (int, interface{}) {
		var err error
		now := lab.settings.change(func(s *Settings) { err = body.Decode(s) })
		if err != nil {
			return http.StatusBadRequest, err.Error()
		}
		return http.StatusOK, now
	})
	order("/faults", func(body *json.Decoder) (int, interface{}) {
		rule := new(faultRule)
		err := body.Decode(rule)
		if err == nil {
			err = faults.add(rule)
		}
		if err != nil {
			return http.StatusBadRequest, err.Error()
		}
		return http.StatusOK, nil
	})
	order("/faults/clear", func(*json.Decoder) (int, interface{}) {
		faults.clear()
		return http.StatusOK, nil
	})
	order("/calls", func(*json.Decoder) (int, interface{}) {
		faults.Lock()
		defer faults.Unlock()
		counts := map[string]int{}
		for name, n := range faults.calls {
			counts[name] = n
		}
		return http.StatusOK, counts
	})
	order("/sessions/kill", func(*json.Decoder) (int, interface{}) {
		return http.StatusOK, killSessions()
	})
	order("/outage", func(body *json.Decoder) (int, interface{}) {
		var o struct {
			Seconds  float64 `json:"seconds"`
			Sessions bool    `json:"sessions"` // a restart of vCenter: sessions are lost too
		}
		if err := body.Decode(&o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		atomic.StoreInt64(&outage, time.Now().Add(time.Duration(o.Seconds*float64(time.Second))).UnixNano())
		if o.Sessions {
			killSessions()
		}
		drop()
		return http.StatusOK, nil
	})
	order("/events/post", func(body *json.Decoder) (int, interface{}) {
		o := new(eventOrder)
		if err := body.Decode(o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		return postOrdered(o)
	})
	order("/events/key", func(body *json.Decoder) (int, interface{}) {
		var o struct {
			RollBackTo int32 `json:"roll_back_to"` // the database is restored: later events are gone
			Next       int32 `json:"next"`         // or: only the counter is set
		}
		if err := body.Decode(&o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		em := Map.EventManager()
		Map.WithLock(em, func() {
			if o.Next != 0 {
				em.key = o.Next - 1
			} else {
				em.rollBack(o.RollBackTo)
			}
		})
		return http.StatusOK, em.key
	})
	order("/drs", func(body *json.Decoder) (int, interface{}) {
		var o struct{ VM, Host string }
		if err := body.Decode(&o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		vm, ok := Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: o.VM}).(*VirtualMachine)
		host, found := Map.Get(types.ManagedObjectReference{Type: "HostSystem", Value: o.Host}).(*HostSystem)
		if !ok || !found {
			return http.StatusNotFound, "no such VM or host"
		}
		if err := drsMove(vm, host); err != nil {
			return http.StatusConflict, err.Error()
		}
		return http.StatusOK, nil
	})
	order("/power/lost", func(body *json.Decoder) (int, interface{}) {
		o := new(lossOrder)
		if err := body.Decode(o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		return o.carryOut()
	})
	order("/methods", func(body *json.Decoder) (int, interface{}) {
		o := new(disablingOrder)
		if err := body.Decode(o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		return o.carryOut()
	})
	order("/datastores/hide", func(body *json.Decoder) (int, interface{}) {
		var o struct{ Datastore, Host string }
		if err := body.Decode(&o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		host, ok := Map.Get(types.ManagedObjectReference{Type: "HostSystem", Value: o.Host}).(*HostSystem)
		ds := datastoreNamed(o.Datastore)
		if !ok || ds == nil {
			return http.StatusNotFound, "no such datastore or host"
		}
		unmount(ds, host)
		return http.StatusOK, nil
	})
	order("/recording", func(body *json.Decoder) (int, interface{}) {
		o := new(callRecord)
		if err := body.Decode(o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		record.order(o)
		return http.StatusOK, nil
	})
	order("/leases", func(*json.Decoder) (int, interface{}) {
		return http.StatusOK, leases.view()
	})
	order("/recorded", func(*json.Decoder) (int, interface{}) {
		return http.StatusOK, record.calls()
	})
	order("/datastores/room", func(body *json.Decoder) (int, interface{}) {
		o := new(roomOrder)
		if err := body.Decode(o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		if !o.keep() {
			return http.StatusNotFound, "no such datastore"
		}
		return http.StatusOK, nil
	})
	order("/consolidation", func(body *json.Decoder) (int, interface{}) {
		var o struct{ VM string }
		if err := body.Decode(&o); err != nil {
			return http.StatusBadRequest, err.Error()
		}
		vm, ok := Map.Get(types.ManagedObjectReference{Type: "VirtualMachine", Value: o.VM}).(*VirtualMachine)
		if !ok {
			return http.StatusNotFound, "no such VM"
		}
		Map.WithLock(vm, func() { vm.Runtime.ConsolidationNeeded = types.NewBool(true) })
		touch(mo.Reference(vm), "runtime.consolidationNeeded")
		return http.StatusOK, nil
	})
	return mux
}

// ServeControl listens on a free loopback port and tells which.
func ServeControl(handler http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = http.Serve(l, handler) }()
	return "http://" + l.Addr().String(), nil
}
