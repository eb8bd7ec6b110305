package simulator

import (
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// room is how large datastores are and what is free on them, where that was ordered.
var room = struct {
	sync.Mutex
	of map[string]roomOrder
}{of: map[string]roomOrder{}}

type roomOrder struct {
	Datastore string
	Capacity  int64
	Free      int64
	Shown     bool // vCenter knows already
}

func (o *roomOrder) keep() bool {
	ds := datastoreNamed(o.Datastore)
	if ds == nil {
		return false
	}
	room.Lock()
	room.of[o.Datastore] = *o
	room.Unlock()
	if o.Shown {
		Map.WithLock(ds, func() { ds.RefreshDatastore(nil) })
	}
	return true
}

// RefreshDatastore brings capacity and free space up to date. Without it vCenter shows what it was told some time ago.
func (ds *Datastore) RefreshDatastore(req *types.RefreshDatastore) soap.HasFault {
	room.Lock()
	o, ordered := room.of[ds.Name]
	room.Unlock()
	if !ordered {
		body := ds.refreshBase(req).(*methods.RefreshDatastoreBody)
		if body.Fault_ == nil {
			body.Res = new(types.RefreshDatastoreResponse) // which the simulator forgets
		}
		return body
	}
	now := time.Now()
	info := ds.Info.GetDatastoreInfo()
	info.Timestamp, info.FreeSpace = &now, o.Free
	ds.Summary.FreeSpace, ds.Summary.Capacity = o.Free, o.Capacity
	touch(ds, "summary", "info")
	return &methods.RefreshDatastoreBody{Res: new(types.RefreshDatastoreResponse)}
}
