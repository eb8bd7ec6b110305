// Package simulator: this file takes the place of govmomi's event_manager.go.
//
// Events are kept in the order in which they were posted. A collector is a cursor over them: it starts at the
// oldest event that its filter lets through, walks towards the newest, and goes on with what arrives later.
package simulator

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"sync"
	"text/template"
	"time"

	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	eventPageDefault = 10
	eventPageLimit   = 1000
)

type EventManager struct {
	mo.EventManager

	root       types.ManagedObjectReference
	key        int32
	events     []types.BaseEvent
	collectors map[types.ManagedObjectReference]*EventHistoryCollector
	templates  map[string]*template.Template
	log        *os.File
}

func (m *EventManager) init(r *Registry) {
	if len(m.Description.EventInfo) == 0 {
		m.Description.EventInfo = esx.EventInfo
	}
	if m.MaxCollector == 0 {
		m.MaxCollector = 1000
	}
	m.root = r.content().RootFolder
	m.collectors = make(map[types.ManagedObjectReference]*EventHistoryCollector)
	m.templates = make(map[string]*template.Template)
}

// chains maps an object to the event chain of the task that runs on it.
var chains sync.Map

// suppressed names VMs whose creation is part of a clone: vCenter posts the clone's events for them, not the creation's.
var suppressed sync.Map

func isSuppressed(event types.BaseEvent) bool {
	switch event.(type) {
	case *types.VmCreatedEvent, *types.VmBeingCreatedEvent:
		if vm := event.GetEvent().Vm; vm != nil {
			_, hit := suppressed.Load(vm.Name)
			return hit
		}
	}
	return false
}

func (m *EventManager) PostEvent(ctx *Context, req *types.PostEvent) soap.HasFault {
	done := &methods.PostEventBody{Res: new(types.PostEventResponse)}
	event := req.EventToPost
	if isSuppressed(event) {
		return done
	}
	base := event.GetEvent()
	fromClient := ctx.Caller != nil && *ctx.Caller == m.Self
	m.key++
	base.Key = m.key
	if fromClient {
		base.ChainId = 0
		base.CreatedTime = time.Time{}
	}
	if base.ChainId == 0 {
		base.ChainId = base.Key
		if base.Vm != nil {
			if chain, ok := chains.Load(base.Vm.Vm); ok {
				base.ChainId = chain.(int32)
			}
		}
	}
	if base.CreatedTime.IsZero() {
		base.CreatedTime = time.Now().UTC()
	}
	if base.UserName == "" && ctx.Session != nil {
		base.UserName = ctx.Session.UserName
	}
	m.format(event)
	m.events = append(m.events, event)
	m.LatestEvent = event
	m.record(event)

	for _, c := range m.collectors {
		if c.matches(event) {
			Map.Update(c, []types.PropertyChange{{Name: "latestPage", Val: c.latest()}})
		}
	}
	return done
}

// format fills in the message from vCenter's own format string. Some of them do not parse: those events go without.
func (m *EventManager) format(event types.BaseEvent) {
	id := eventType(event)
	t, known := m.templates[id]
	if !known {
		for _, info := range m.Description.EventInfo {
			if info.Key == id {
				if parsed, err := template.New(id).Parse(info.FullFormat); err == nil {
					t = parsed
				}
				break
			}
		}
		m.templates[id] = t
	}
	if t == nil {
		return
	}
	var text bytes.Buffer
	if t.Execute(&text, event) == nil {
		event.GetEvent().FullFormattedMessage = text.String()
	}
}

func eventType(event types.BaseEvent) string {
	return reflect.ValueOf(event).Elem().Type().Name()
}

type eventRecord struct {
	Key   int32     `json:"key"`
	Type  string    `json:"type"`
	Chain int32     `json:"chain"`
	Time  time.Time `json:"time"`
	User  string    `json:"user"`
	VM    string    `json:"vm,omitempty"`
	Name  string    `json:"vm_name,omitempty"`
	Host  string    `json:"host,omitempty"`
	DS    string    `json:"datastore,omitempty"`
}

// record appends one line to the lab's own log, which the engine's journal is compared with.
func (m *EventManager) record(event types.BaseEvent) {
	if m.log == nil {
		return
	}
	base := event.GetEvent()
	line := eventRecord{Key: base.Key, Type: eventType(event), Chain: base.ChainId, Time: base.CreatedTime, User: base.UserName}
	if base.Vm != nil {
		line.VM, line.Name = base.Vm.Vm.Value, base.Vm.Name
	}
	if base.Host != nil {
		line.Host = base.Host.Name
	}
	if base.Ds != nil {
		line.DS = base.Ds.Name
	}
	text, err := json.Marshal(&line)
	if err != nil {
		panic(err)
	}
	if _, err = m.log.Write(append(text, '\n')); err != nil {
		panic(err)
	}
}

// rollBack makes the store as it was when keep events had been posted: what restoring vCenter's database does.
func (m *EventManager) rollBack(keep int32) {
	kept := m.events[:0:0]
	for _, event := range m.events {
		if event.GetEvent().Key <= keep {
			kept = append(kept, event)
		}
	}
	m.events = kept
	m.key = keep
	m.LatestEvent = nil
	if len(kept) > 0 {
		m.LatestEvent = kept[len(kept)-1]
	}
}

func (m *EventManager) newCollector(filter types.EventFilterSpec) (*EventHistoryCollector, *soap.Fault) {
	size, fault := pageSize(filter.MaxCount)
	if fault != nil {
		return nil, fault
	}
	c := &EventHistoryCollector{m: m, size: size}
	c.Filter = filter
	return c, nil
}

func (m *EventManager) CreateCollectorForEvents(ctx *Context, req *types.CreateCollectorForEvents) soap.HasFault {
	body := new(methods.CreateCollectorForEventsBody)
	if len(m.collectors) >= int(m.MaxCollector) {
		body.Fault_ = Fault("too many event collectors", new(types.InvalidState))
		return body
	}
	c, fault := m.newCollector(req.Filter)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	ref := ctx.Session.Put(c).Reference()
	m.collectors[ref] = c
	body.Res = &types.CreateCollectorForEventsResponse{Returnval: ref}
	return body
}

// QueryEvents answers oldest first, with the newest events that fit into the answer.
func (m *EventManager) QueryEvents(ctx *Context, req *types.QueryEvents) soap.HasFault {
	body := new(methods.QueryEventsBody)
	limit := int(req.Filter.MaxCount)
	if limit == 0 {
		limit = eventPageLimit
	}
	if limit < 0 || limit > eventPageLimit {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "maxCount"})
		return body
	}
	c := &EventHistoryCollector{m: m, size: limit}
	c.Filter = req.Filter
	found := c.latest()
	for i, j := 0, len(found)-1; i < j; i, j = i+1, j-1 {
		found[i], found[j] = found[j], found[i]
	}
	body.Res = &types.QueryEventsResponse{Returnval: found}
	return body
}
