package simulator

import (
	"net/http"
	"reflect"
	"sort"
	"sync"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Methods that products switch off on an object, as vCenter does behind its undocumented DisableMethods. The shape of
// the calls is that of govmomi's object/authorization_manager_internal.go.

func init() {
	types.Add("DisableMethods", reflect.TypeOf((*DisableMethods)(nil)).Elem())
	types.Add("EnableMethods", reflect.TypeOf((*EnableMethods)(nil)).Elem())
}

type DisabledMethodRequest struct {
	Method string `xml:"method"`
	Reason string `xml:"reasonId"`
}

type DisableMethods struct {
	This   types.ManagedObjectReference   `xml:"_this"`
	Entity []types.ManagedObjectReference `xml:"entity"`
	Method []DisabledMethodRequest        `xml:"method"`
	Source string                         `xml:"sourceId"`
	Scope  bool                           `xml:"sessionScope,omitempty"`
}

type DisableMethodsResponse struct{}

type DisableMethodsBody struct {
	Res    *DisableMethodsResponse `xml:"urn:vim25 DisableMethodsResponse,omitempty"`
	Fault_ *soap.Fault             `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *DisableMethodsBody) Fault() *soap.Fault { return b.Fault_ }

type EnableMethods struct {
	This   types.ManagedObjectReference   `xml:"_this"`
	Entity []types.ManagedObjectReference `xml:"entity"`
	Method []string                       `xml:"method"`
	Source string                         `xml:"sourceId"`
}

type EnableMethodsResponse struct{}

type EnableMethodsBody struct {
	Res    *EnableMethodsResponse `xml:"urn:vim25 EnableMethodsResponse,omitempty"`
	Fault_ *soap.Fault            `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *EnableMethodsBody) Fault() *soap.Fault { return b.Fault_ }

// switchedOff holds by VM and method who has switched it off. It outlives sessions, as vCenter's table does.
type switchedOff struct {
	sync.Mutex
	by map[types.ManagedObjectReference]map[string]string
}

var disabled = &switchedOff{by: map[types.ManagedObjectReference]map[string]string{}}

func (d *switchedOff) source(ref types.ManagedObjectReference, method string) string {
	d.Lock()
	defer d.Unlock()
	return d.by[ref][method]
}

// disable is all or nothing: it answers who else has one of the methods switched off, or "".
func (d *switchedOff) disable(refs []types.ManagedObjectReference, methods []string, source string) string {
	d.Lock()
	for _, ref := range refs {
		for _, method := range methods {
			if other := d.by[ref][method]; other != "" && other != source {
				d.Unlock()
				return other
			}
		}
	}
	for _, ref := range refs {
		if d.by[ref] == nil {
			d.by[ref] = map[string]string{}
		}
		for _, method := range methods {
			d.by[ref][method] = source
		}
	}
	d.Unlock()
	d.show(refs)
	return ""
}

// enable leaves alone what another source has switched off.
func (d *switchedOff) enable(refs []types.ManagedObjectReference, methods []string, source string) {
	d.Lock()
	for _, ref := range refs {
		for _, method := range methods {
			if d.by[ref][method] == source {
				delete(d.by[ref], method)
			}
		}
	}
	d.Unlock()
	d.show(refs)
}

// show keeps the property disabledMethod, which names the methods but not who has switched them off.
func (d *switchedOff) show(refs []types.ManagedObjectReference) {
	for _, ref := range refs {
		vm, ok := Map.Get(ref).(*VirtualMachine)
		if !ok {
			continue
		}
		d.Lock()
		names := []string{}
		for method := range d.by[ref] {
			names = append(names, method)
		}
		d.Unlock()
		sort.Strings(names)
		Map.WithLock(vm, func() { vm.DisabledMethod = names })
		touch(mo.Reference(vm), "disabledMethod")
	}
}

// methodDisabled refuses a call that somebody has switched off on its object.
func methodDisabled(method *Method) soap.HasFault {
	source := disabled.source(method.This, method.Name)
	if source == "" {
		return nil
	}
	return &serverFaultBody{Reason: Fault("The method is disabled by '"+source+"'", &types.MethodDisabled{Source: source})}
}

// notLicensed is what an account gets that lacks Global.DisableMethods or Global.EnableMethods at the root: a sentence
// about licences, which misleads.
func notLicensed(ctx *Context) *soap.Fault {
	if ctx.Session == nil || ctx.Session.UserName != lab.viewer {
		return nil
	}
	return Fault("The host is not licensed for this feature", &types.RestrictedVersion{})
}

func (m *AuthorizationManager) DisableMethods(ctx *Context, req *DisableMethods) soap.HasFault {
	if fault := notLicensed(ctx); fault != nil {
		return &DisableMethodsBody{Fault_: fault}
	}
	names := make([]string, len(req.Method))
	for i, method := range req.Method {
		names[i] = method.Method
	}
	if other := disabled.disable(req.Entity, names, req.Source); other != "" {
		fault := &types.MethodAlreadyDisabledFault{SourceId: other}
		return &DisableMethodsBody{Fault_: Fault("The method is already disabled by '"+other+"'", fault)}
	}
	return &DisableMethodsBody{Res: new(DisableMethodsResponse)}
}

func (m *AuthorizationManager) EnableMethods(ctx *Context, req *EnableMethods) soap.HasFault {
	if fault := notLicensed(ctx); fault != nil {
		return &EnableMethodsBody{Fault_: fault}
	}
	disabled.enable(req.Entity, req.Method, req.Source)
	return &EnableMethodsBody{Res: new(EnableMethodsResponse)}
}

// disablingOrder lets another product switch methods off or on, and tells who has switched what off.
type disablingOrder struct {
	VM      string   `json:"vm"`
	Methods []string `json:"methods"`
	Source  string   `json:"source"`
	On      bool     `json:"on"`
}

func (o *disablingOrder) carryOut() (int, interface{}) {
	if o.VM != "" {
		refs := []types.ManagedObjectReference{{Type: "VirtualMachine", Value: o.VM}}
		if o.On {
			disabled.enable(refs, o.Methods, o.Source)
		} else if other := disabled.disable(refs, o.Methods, o.Source); other != "" {
			return http.StatusConflict, other
		}
	}
	disabled.Lock()
	defer disabled.Unlock()
	told := map[string]map[string]string{}
	for ref, methods := range disabled.by {
		if len(methods) == 0 {
			continue
		}
		told[ref.Value] = map[string]string{}
		for method, source := range methods {
			told[ref.Value][method] = source
		}
	}
	return http.StatusOK, told
}
