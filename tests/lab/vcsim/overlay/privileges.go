package simulator

import (
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// privilegeBook is what each account lacks. Everybody has everything at first but the one who may only look.
type privilegeBook struct {
	sync.Mutex
	denied map[string]map[string]bool
}

var privileges = &privilegeBook{denied: map[string]map[string]bool{}}

// addedPrivileges are those of vCenter that the simulator, which lists those of a host, leaves out.
var addedPrivileges = []string{
	"InventoryService.Tagging.AttachTag", "StorageProfile.View", "Cryptographer.Access", "Cryptographer.AddDisk",
	"Cryptographer.EncryptNew", "Cryptographer.RegisterVM", "Host.Inventory.EditCluster", "Extension.Register",
	"Extension.Update", "Task.Create", "Task.Update", "Global.SetCustomField", "Global.ManageCustomFields",
	"Global.LogEvent", "Global.DisableMethods", "Global.EnableMethods", "Global.Licenses", "VApp.Export", "VApp.Import",
	"Folder.Create", "Resource.AssignVMToPool", "Network.Assign",
}

// labPrivileges completes what the simulator knows and lists it as vCenter does.
func labPrivileges(known map[string]struct{}) []types.AuthorizationPrivilege {
	for _, id := range addedPrivileges {
		known[id] = struct{}{}
	}
	list := make([]types.AuthorizationPrivilege, 0, len(known))
	for id := range known {
		group, name := "", id
		if dot := strings.LastIndex(id, "."); dot >= 0 {
			group, name = id[:dot], id[dot+1:]
		}
		list = append(list, types.AuthorizationPrivilege{PrivId: id, Name: name, PrivGroupName: group})
	}
	return list
}

func (b *privilegeBook) deny(user string, ids []string) {
	b.Lock()
	defer b.Unlock()
	b.denied[user] = map[string]bool{}
	for _, id := range ids {
		b.denied[user][id] = true
	}
}

func (b *privilegeBook) held(user, id string) bool {
	if user == lab.viewer {
		return strings.HasPrefix(id, "System.")
	}
	b.Lock()
	defer b.Unlock()
	return !b.denied[user][id]
}

// HasPrivilegeOnEntities answers for the account that is logged in under a session's key.
func (m *AuthorizationManager) HasPrivilegeOnEntities(req *types.HasPrivilegeOnEntities) soap.HasFault {
	body := &methods.HasPrivilegeOnEntitiesBody{}
	user := ""
	if session, ok := Map.SessionManager().getSession(req.SessionId); ok {
		user = session.UserName
	}
	if user == "" {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "sessionId"})
		return body
	}
	body.Res = &types.HasPrivilegeOnEntitiesResponse{}
	for _, entity := range req.Entity {
		if Map.Get(entity) == nil {
			return &methods.HasPrivilegeOnEntitiesBody{Fault_: Fault("", &types.ManagedObjectNotFound{Obj: entity})}
		}
		found := types.EntityPrivilege{Entity: entity}
		for _, id := range req.PrivId {
			if _, known := m.privileges[id]; !known {
				return &methods.HasPrivilegeOnEntitiesBody{Fault_: Fault("", &types.InvalidArgument{InvalidProperty: "privId"})}
			}
			found.PrivAvailability = append(found.PrivAvailability, types.PrivilegeAvailability{
				PrivId: id, IsGranted: privileges.held(user, id),
			})
		}
		body.Res.Returnval = append(body.Res.Returnval, found)
	}
	return body
}

// guarded stands before each call that comes over the network: first what the account may, then what tests ordered.
func guarded(ctx *Context, method *Method, handler mo.Reference) soap.HasFault {
	if ctx.req != nil && ctx.Session != nil {
		for _, id := range needed(method) {
			if !privileges.held(ctx.Session.UserName, id) && ctx.Session.UserName != lab.viewer {
				faults.Lock()
				faults.calls["NoPermission "+method.Name+" "+id]++
				faults.Unlock()
				return &serverFaultBody{Reason: Fault("Permission to perform this operation was denied.", &types.NoPermission{
					Object: method.This, PrivilegeId: id,
				})}
			}
		}
	}
	return intercept(ctx, method, handler)
}

// needed are the privileges that a call asks for, as far as the lab knows them.
func needed(method *Method) []string {
	var ids []string
	if id := privileged[method.Name]; id != "" {
		ids = append(ids, id)
	}
	ids = append(ids, perCall[method.Name]...)
	switch call := method.Body.(type) {
	case *types.ReconfigVM_Task:
		ids = append(ids, neededFor(&call.Spec)...)
	case *types.CreateVM_Task:
		ids = append(ids, neededFor(&call.Config)...)
	case *types.ImportVApp:
		if spec, ok := call.Spec.(*types.VirtualMachineImportSpec); ok {
			ids = append(ids, neededFor(&spec.ConfigSpec)...)
		}
	}
	return ids
}

// perCall are the other calls that need a privilege, as "Required Privileges" of the API reference tells.
var perCall = map[string][]string{
	"CreateVM_Task":              {"VirtualMachine.Inventory.Create", "Resource.AssignVMToPool", "Datastore.AllocateSpace"},
	"ImportVApp":                 {"VApp.Import", "Datastore.AllocateSpace"},
	"Destroy_Task":               {"VirtualMachine.Inventory.Delete"},
	"PowerOnVM_Task":             {"VirtualMachine.Interact.PowerOn"},
	"PowerOffVM_Task":            {"VirtualMachine.Interact.PowerOff"},
	"AnswerVM":                   {"VirtualMachine.Interact.AnswerQuestion"},
	"ConsolidateVMDisks_Task":    {"VirtualMachine.State.RemoveSnapshot"},
	"RenameSnapshot":             {"VirtualMachine.State.RenameSnapshot"},
	"RevertToSnapshot_Task":      {"VirtualMachine.State.RevertToSnapshot"},
	"RelocateVM_Task":            {"Resource.ColdMigrate"},
	"DisableMethods":             {"Global.DisableMethods"},
	"EnableMethods":              {"Global.EnableMethods"},
	"QueryAssignedLicenses":      {"Global.Licenses"},
	"RemoveCustomFieldDef":       {"Global.ManageCustomFields"},
	"RegisterExtension":          {"Extension.Register"},
	"UpdateExtension":            {"Extension.Update"},
	"UnregisterExtension":        {"Extension.Unregister"},
	"CreateTask":                 {"Task.Create"},
	"SetTaskState":               {"Task.Update"},
	"SetTaskDescription":         {"Task.Update"},
	"PbmQueryAssociatedProfile":  {"StorageProfile.View"},
	"PbmQueryAssociatedProfiles": {"StorageProfile.View"},
	"PbmQueryProfile":            {"StorageProfile.View"},
	"PbmRetrieveContent":         {"StorageProfile.View"},
}

func neededFor(spec *types.VirtualMachineConfigSpec) []string {
	var ids []string
	if len(spec.ExtraConfig) > 0 {
		ids = append(ids, "VirtualMachine.Config.AdvancedConfig")
	}
	if spec.Annotation != "" {
		ids = append(ids, "VirtualMachine.Config.Annotation")
	}
	if spec.Name != "" && spec.Files == nil {
		ids = append(ids, "VirtualMachine.Config.Rename")
	}
	if spec.ChangeTrackingEnabled != nil {
		ids = append(ids, "VirtualMachine.Config.ChangeTracking")
	}
	for _, change := range spec.DeviceChange {
		c := change.GetVirtualDeviceConfigSpec()
		if _, card := c.Device.(types.BaseVirtualEthernetCard); card {
			ids = append(ids, "Network.Assign")
		}
		if _, disk := c.Device.(*types.VirtualDisk); !disk {
			if c.Operation == types.VirtualDeviceConfigSpecOperationEdit {
				ids = append(ids, "VirtualMachine.Config.EditDevice")
			} else {
				ids = append(ids, "VirtualMachine.Config.AddRemoveDevice")
			}
			continue
		}
		switch {
		case c.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			ids = append(ids, "VirtualMachine.Config.RemoveDisk")
		case c.FileOperation == types.VirtualDeviceConfigSpecFileOperationCreate:
			ids = append(ids, "VirtualMachine.Config.AddNewDisk")
		case c.Operation == types.VirtualDeviceConfigSpecOperationAdd:
			ids = append(ids, "VirtualMachine.Config.AddExistingDisk")
		}
	}
	return ids
}
