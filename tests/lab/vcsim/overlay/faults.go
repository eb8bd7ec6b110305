package simulator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// faultRule makes the next calls of a method go wrong.
type faultRule struct {
	Method  string          `json:"method"`   // as in the API: "CreateSnapshotEx_Task"
	Times   int             `json:"times"`    // 0: until the rules are cleared
	Fault   string          `json:"fault"`    // type of the fault; empty: only delay
	Fields  json.RawMessage `json:"fields"`   // of the fault, by their Go names
	Keys    []string        `json:"keys"`     // keys of its faultMessage
	Text    string          `json:"text"`     // its message
	InTask  bool            `json:"in_task"`  // the call is answered, its task fails
	Drop    bool            `json:"drop"`     // the call is carried out, but the connection breaks before the answer
	DelayMS int             `json:"delay_ms"` // before the call, or within its task
	VM      string          `json:"vm"`       // only for this object
	User    string          `json:"user"`     // only for calls of this account; not for faults in tasks
}

func (r *faultRule) delay() time.Duration {
	if r == nil || !r.InTask {
		return 0
	}
	return time.Duration(r.DelayMS) * time.Millisecond
}

func (r *faultRule) taskFault() types.BaseMethodFault {
	if r == nil || r.Fault == "" {
		return nil
	}
	return r.build()
}

// by tells whether the rule is for the account that makes this call.
func (r *faultRule) by(ctx *Context) bool {
	return r.User == "" || (ctx.Session != nil && ctx.Session.UserName == r.User)
}

func (r *faultRule) build() types.BaseMethodFault {
	kind, ok := types.TypeFunc()(r.Fault)
	if !ok {
		return &types.SystemError{Reason: "the lab knows no fault " + r.Fault}
	}
	val := reflect.New(kind)
	if len(r.Fields) > 0 {
		if err := json.Unmarshal(r.Fields, val.Interface()); err != nil {
			return &types.SystemError{Reason: err.Error()}
		}
	}
	fault, ok := val.Interface().(types.BaseMethodFault)
	if !ok {
		return &types.SystemError{Reason: r.Fault + " is not a fault"}
	}
	for _, key := range r.Keys {
		base := fault.GetMethodFault()
		base.FaultMessage = append(base.FaultMessage, types.LocalizableMessage{Key: key, Message: r.Text})
	}
	return fault
}

type faultRules struct {
	sync.Mutex
	rules []*faultRule
	calls map[string]int
}

var faults = &faultRules{calls: map[string]int{}}

func (f *faultRules) add(r *faultRule) error {
	if r.Fault != "" {
		if _, ok := types.TypeFunc()(r.Fault); !ok {
			return fmt.Errorf("no such fault: %s", r.Fault)
		}
	}
	f.Lock()
	defer f.Unlock()
	f.rules = append(f.rules, r)
	return nil
}

func (f *faultRules) clear() {
	f.Lock()
	defer f.Unlock()
	f.rules = nil
}

func (f *faultRules) take(match func(*faultRule) bool) *faultRule {
	f.Lock()
	defer f.Unlock()
	for i, r := range f.rules {
		if !match(r) {
			continue
		}
		if r.Times > 0 {
			if r.Times--; r.Times == 0 {
				f.rules = append(append([]*faultRule(nil), f.rules[:i]...), f.rules[i+1:]...)
			}
		}
		return r
	}
	return nil
}

func (f *faultRules) forTask(id, object string) *faultRule {
	return f.take(func(r *faultRule) bool {
		return r.InTask && taskID(r.Method) == id && (r.VM == "" || r.VM == object)
	})
}

// intercept stands before each call that comes over the network. It answers nil where the call may go on.
func intercept(ctx *Context, method *Method, handler mo.Reference) soap.HasFault {
	if ctx.req == nil {
		return nil
	}
	faults.Lock()
	faults.calls[method.Name]++
	faults.Unlock()
	if fault := endOnOrder(ctx, method); fault != nil {
		return fault
	}
	if fault := forbidden(ctx, method); fault != nil {
		return fault
	}
	if fault := methodDisabled(method); fault != nil {
		return fault
	}
	if fault := leased(method); fault != nil {
		return fault
	}
	rule := faults.take(func(r *faultRule) bool {
		return !r.InTask && strings.EqualFold(r.Method, method.Name) && (r.VM == "" || r.VM == method.This.Value) && r.by(ctx)
	})
	if rule == nil {
		return nil
	}
	time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
	if rule.Drop {
		dropAfter(ctx, method)
	}
	if rule.Fault == "" {
		return nil
	}
	fault := rule.build()
	if denied, ok := fault.(*types.NoPermission); ok && denied.Object.Type == "" {
		denied.Object = method.This
	}
	return &serverFaultBody{Reason: Fault(rule.Text, fault)}
}

// dropAfter carries a call out and then lets the server break the connection, so that the client cannot know.
func dropAfter(ctx *Context, method *Method) {
	quiet := *ctx
	quiet.req = nil
	ctx.svc.call(&quiet, method)
	panic(http.ErrAbortHandler)
}

// privileged are the calls, beside the tasks, that a read-only account may not make, and what they need.
var privileged = map[string]string{
	"QueryChangedDiskAreas": "VirtualMachine.Provisioning.DiskRandomRead", "SetField": "Global.SetCustomField",
	"SetCustomValue": "Global.SetCustomField", "AddCustomFieldDef": "Global.ManageCustomFields", "PostEvent": "Global.LogEvent",
	"CreateFolder": "Folder.Create", "UnregisterVM": "VirtualMachine.Inventory.Unregister", "TerminateSession": "Sessions.TerminateSession",
	"CreateSnapshot_Task": "VirtualMachine.State.CreateSnapshot", "CreateSnapshotEx_Task": "VirtualMachine.State.CreateSnapshot",
	"RemoveSnapshot_Task": "VirtualMachine.State.RemoveSnapshot", "ExportSnapshot": "VApp.Export", "ExportVm": "VApp.Export",
	"ImportVApp": "VApp.Import",
}

// forbidden refuses what the read-only account has no privilege for.
func forbidden(ctx *Context, method *Method) soap.HasFault {
	if ctx.Session == nil || ctx.Session.UserName != lab.viewer {
		return nil
	}
	privilege, listed := privileged[method.Name]
	if !listed && !strings.HasSuffix(method.Name, "_Task") {
		return nil
	}
	return &serverFaultBody{Reason: Fault("Permission to perform this operation was denied.", &types.NoPermission{
		Object: method.This, PrivilegeId: privilege,
	})}
}
