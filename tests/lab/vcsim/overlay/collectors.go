package simulator

import (
	"reflect"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type EventHistoryCollector struct {
	mo.EventHistoryCollector

	m    *EventManager
	size int
	next int // index into m.events of the first event that ReadNextEvents looks at
}

func pageSize(count int32) (int, *soap.Fault) {
	if count == 0 {
		return eventPageDefault, nil
	}
	if count < 0 || count > eventPageLimit {
		return 0, Fault("", &types.InvalidArgument{InvalidProperty: "maxCount"})
	}
	return int(count), nil
}

func (c *EventHistoryCollector) matches(event types.BaseEvent) bool {
	spec := c.Filter.(types.EventFilterSpec)
	base := event.GetEvent()
	if t := spec.Time; t != nil {
		if t.BeginTime != nil && base.CreatedTime.Before(*t.BeginTime) {
			return false
		}
		if t.EndTime != nil && base.CreatedTime.After(*t.EndTime) {
			return false
		}
	}
	if u := spec.UserName; u != nil {
		hit := u.SystemUser && base.UserName == ""
		for _, name := range u.UserList {
			hit = hit || name == base.UserName
		}
		if !hit {
			return false
		}
	}
	if spec.EventChainId != 0 && spec.EventChainId != base.ChainId {
		return false
	}
	return eventTypeIn(event, spec.EventTypeId) && eventTypeIn(event, spec.Type) && c.concerns(event, spec.Entity)
}

// eventTypeIn accepts the event's class, the id of an EventEx, and any class that it descends from.
func eventTypeIn(event types.BaseEvent, wanted []string) bool {
	if len(wanted) == 0 {
		return true
	}
	kind := reflect.ValueOf(event).Elem().Type()
	for _, id := range wanted {
		if id == kind.Name() {
			return true
		}
		if ex, ok := event.(*types.EventEx); ok && ex.EventTypeId == id {
			return true
		}
		if field, ok := kind.FieldByName(id); ok && field.Anonymous {
			return true
		}
	}
	return false
}

func eventEntities(event types.BaseEvent) []types.ManagedObjectReference {
	var refs []types.ManagedObjectReference
	e := event.GetEvent()
	if e.Vm != nil {
		refs = append(refs, e.Vm.Vm)
	}
	if e.Host != nil {
		refs = append(refs, e.Host.Host)
	}
	if e.ComputeResource != nil {
		refs = append(refs, e.ComputeResource.ComputeResource)
	}
	if e.Ds != nil {
		refs = append(refs, e.Ds.Datastore)
	}
	if e.Datacenter != nil {
		refs = append(refs, e.Datacenter.Datacenter)
	}
	return refs
}

// concerns walks from each object of the event up to the root, as a filter by entity includes what lies below it.
func (c *EventHistoryCollector) concerns(event types.BaseEvent, spec *types.EventFilterSpecByEntity) bool {
	if spec == nil || spec.Entity == c.m.root {
		return true
	}
	for _, ref := range eventEntities(event) {
		if ref == spec.Entity && spec.Recursion != types.EventFilterSpecRecursionOptionChildren {
			return true
		}
		if spec.Recursion == types.EventFilterSpecRecursionOptionSelf {
			continue
		}
		for depth := 0; depth < 64; depth++ {
			e, ok := Map.Get(ref).(mo.Entity)
			if !ok || e.Entity().Parent == nil {
				break
			}
			if ref = *e.Entity().Parent; ref == spec.Entity {
				return true
			}
		}
	}
	return false
}

// latest gives the newest events first.
func (c *EventHistoryCollector) latest() []types.BaseEvent {
	var page []types.BaseEvent
	for i := len(c.m.events) - 1; i >= 0 && len(page) < c.size; i-- {
		if c.matches(c.m.events[i]) {
			page = append(page, c.m.events[i])
		}
	}
	return page
}

// Get is what the PropertyCollector reads.
func (c *EventHistoryCollector) Get() mo.Reference {
	view := *c
	Map.WithLock(c.m, func() { view.LatestPage = c.latest() })
	return &view
}

func (c *EventHistoryCollector) SetCollectorPageSize(ctx *Context, req *types.SetCollectorPageSize) soap.HasFault {
	body := new(methods.SetCollectorPageSizeBody)
	size, fault := pageSize(req.MaxCount)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	c.size = size
	body.Res = new(types.SetCollectorPageSizeResponse)
	return body
}

// ResetCollector places the cursor before the latest page, from where the older events are read backwards.
func (c *EventHistoryCollector) ResetCollector(ctx *Context, req *types.ResetCollector) soap.HasFault {
	ctx.WithLock(c.m, func() {
		left := c.size
		c.next = len(c.m.events)
		for i := len(c.m.events) - 1; i >= 0 && left > 0; i-- {
			if c.matches(c.m.events[i]) {
				c.next = i
				left--
			}
		}
	})
	return &methods.ResetCollectorBody{Res: new(types.ResetCollectorResponse)}
}

func (c *EventHistoryCollector) RewindCollector(ctx *Context, req *types.RewindCollector) soap.HasFault {
	c.next = 0
	return &methods.RewindCollectorBody{Res: new(types.RewindCollectorResponse)}
}

func (c *EventHistoryCollector) ReadNextEvents(ctx *Context, req *types.ReadNextEvents) soap.HasFault {
	body := new(methods.ReadNextEventsBody)
	if req.MaxCount <= 0 || req.MaxCount > eventPageLimit {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "maxCount"})
		return body
	}
	body.Res = new(types.ReadNextEventsResponse)
	ctx.WithLock(c.m, func() {
		for c.next < len(c.m.events) && len(body.Res.Returnval) < int(req.MaxCount) {
			event := c.m.events[c.next]
			c.next++
			// A key that overflowed looks older than all that was read: the collector never delivers it.
			if event.GetEvent().Key > 0 && c.matches(event) {
				body.Res.Returnval = append(body.Res.Returnval, event)
			}
		}
	})
	return body
}

func (c *EventHistoryCollector) ReadPreviousEvents(ctx *Context, req *types.ReadPreviousEvents) soap.HasFault {
	body := new(methods.ReadPreviousEventsBody)
	if req.MaxCount <= 0 || req.MaxCount > eventPageLimit {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "maxCount"})
		return body
	}
	body.Res = new(types.ReadPreviousEventsResponse)
	ctx.WithLock(c.m, func() {
		for c.next > 0 && len(body.Res.Returnval) < int(req.MaxCount) {
			c.next--
			if event := c.m.events[c.next]; c.matches(event) {
				body.Res.Returnval = append(body.Res.Returnval, event)
			}
		}
	})
	return body
}

func (c *EventHistoryCollector) DestroyCollector(ctx *Context, req *types.DestroyCollector) soap.HasFault {
	ctx.Session.Remove(req.This)
	ctx.WithLock(c.m, func() { delete(c.m.collectors, req.This) })
	return &methods.DestroyCollectorBody{Res: new(types.DestroyCollectorResponse)}
}
