package simulator

import (
	"fmt"
	"reflect"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// What a product shows of its work in vCenter: its extension, tasks of its own, and values of custom attributes.

func init() {
	kinds["ExtensionManager"] = reflect.TypeOf((*ExtensionManager)(nil)).Elem()
	for name, privilege := range map[string]string{
		"RegisterExtension": "Extension.Register", "UpdateExtension": "Extension.Update",
		"UnregisterExtension": "Extension.Unregister", "CreateTask": "Task.Create", "SetTaskState": "Task.Update",
		"UpdateProgress": "Task.Update", "SetTaskDescription": "Task.Update",
		"RemoveCustomFieldDef": "Global.ManageCustomFields",
	} {
		privileged[name] = privilege
	}
	addedPrivileges = append(addedPrivileges, "Extension.Unregister")
}

type ExtensionManager struct {
	mo.ExtensionManager
}

func (m *ExtensionManager) at(key string) int {
	for i := range m.ExtensionList {
		if m.ExtensionList[i].Key == key {
			return i
		}
	}
	return -1
}

func (m *ExtensionManager) FindExtension(req *types.FindExtension) soap.HasFault {
	body := &methods.FindExtensionBody{Res: new(types.FindExtensionResponse)}
	if i := m.at(req.ExtensionKey); i >= 0 {
		found := m.ExtensionList[i]
		body.Res.Returnval = &found
	}
	return body
}

func (m *ExtensionManager) RegisterExtension(req *types.RegisterExtension) soap.HasFault {
	body := new(methods.RegisterExtensionBody)
	if m.at(req.Extension.Key) >= 0 {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "extension.key"})
		return body
	}
	m.ExtensionList = append(m.ExtensionList, req.Extension)
	body.Res = new(types.RegisterExtensionResponse)
	return body
}

func (m *ExtensionManager) UpdateExtension(req *types.UpdateExtension) soap.HasFault {
	body := new(methods.UpdateExtensionBody)
	i := m.at(req.Extension.Key)
	if i < 0 {
		body.Fault_ = Fault("", new(types.NotFound))
		return body
	}
	m.ExtensionList[i] = req.Extension
	body.Res = new(types.UpdateExtensionResponse)
	return body
}

func (m *ExtensionManager) UnregisterExtension(req *types.UnregisterExtension) soap.HasFault {
	body := new(methods.UnregisterExtensionBody)
	i := m.at(req.ExtensionKey)
	if i < 0 {
		body.Fault_ = Fault("", new(types.NotFound))
		return body
	}
	m.ExtensionList = append(m.ExtensionList[:i:i], m.ExtensionList[i+1:]...)
	body.Res = new(types.UnregisterExtensionResponse)
	return body
}

func (m *ExtensionManager) knows(taskType string) bool {
	for _, extension := range m.ExtensionList {
		for _, kind := range extension.TaskList {
			if kind.TaskID == taskType {
				return true
			}
		}
	}
	return false
}

// CreateTask makes a task that its client drives. Its type must have been registered with an extension.
func (m *TaskManager) CreateTask(ctx *Context, req *types.CreateTask) soap.HasFault {
	body := new(methods.CreateTaskBody)
	known := false
	extensions := Map.content().ExtensionManager
	if extensions != nil {
		Map.WithLock(*extensions, func() { known = Map.Get(*extensions).(*ExtensionManager).knows(req.TaskTypeId) })
	}
	if !known {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "taskTypeId"})
		return body
	}
	entity, ok := Map.Get(req.Obj).(mo.Entity)
	if !ok {
		body.Fault_ = Fault("", &types.ManagedObjectNotFound{Obj: req.Obj})
		return body
	}
	user := req.InitiatedBy
	if user == "" && ctx.Session != nil {
		user = ctx.Session.UserName
	}
	task := new(Task)
	task.Self = Map.newReference(task)
	task.Info = types.TaskInfo{
		Key: task.Self.Value, Task: task.Self, DescriptionId: req.TaskTypeId, Entity: &req.Obj,
		EntityName: entity.Entity().Name, State: types.TaskInfoStateQueued, Cancelable: req.Cancelable,
		Reason: &types.TaskReasonUser{UserName: user}, QueueTime: time.Now().UTC(), ActivationId: req.ActivationId,
	}
	m.Unlock() // the call holds the lock that listing the new task takes
	Map.Put(task)
	m.Lock()
	if vm, isVM := Map.Get(req.Obj).(*VirtualMachine); isVM && lab.ready {
		ctx.WithLock(vm, func() { task.announce(vm) })
	}
	body.Res = &types.CreateTaskResponse{Returnval: task.Info}
	return body
}

// driven refuses what a client may not do to vCenter's own tasks, or to one that has ended.
func (t *Task) driven() *soap.Fault {
	if t.Execute != nil || t.Info.State == types.TaskInfoStateSuccess || t.Info.State == types.TaskInfoStateError {
		return Fault("", &types.InvalidState{})
	}
	return nil
}

func (t *Task) SetTaskState(req *types.SetTaskState) soap.HasFault {
	body := new(methods.SetTaskStateBody)
	if body.Fault_ = t.driven(); body.Fault_ != nil {
		return body
	}
	now := time.Now().UTC()
	changes := []types.PropertyChange{{Name: "info.state", Val: req.State}}
	switch req.State {
	case types.TaskInfoStateRunning:
		changes = append(changes, types.PropertyChange{Name: "info.startTime", Val: now})
	case types.TaskInfoStateError:
		if req.Fault == nil {
			body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "fault"})
			return body
		}
		changes = append(changes, types.PropertyChange{Name: "info.error", Val: *req.Fault},
			types.PropertyChange{Name: "info.completeTime", Val: now})
	case types.TaskInfoStateSuccess:
		changes = append(changes, types.PropertyChange{Name: "info.completeTime", Val: now})
	}
	Map.Update(t, changes)
	body.Res = new(types.SetTaskStateResponse)
	return body
}

func (t *Task) UpdateProgress(req *types.UpdateProgress) soap.HasFault {
	body := new(methods.UpdateProgressBody)
	if t.Info.State != types.TaskInfoStateRunning {
		body.Fault_ = Fault("", &types.InvalidState{})
		return body
	}
	if req.PercentDone < 0 || req.PercentDone > 100 {
		body.Fault_ = Fault("", &types.OutOfBounds{ArgumentName: "percentDone"})
		return body
	}
	Map.Update(t, []types.PropertyChange{{Name: "info.progress", Val: req.PercentDone}})
	body.Res = new(types.UpdateProgressResponse)
	return body
}

func (t *Task) SetTaskDescription(req *types.SetTaskDescription) soap.HasFault {
	described := req.Description
	Map.Update(t, []types.PropertyChange{{Name: "info.description", Val: &described}})
	return &methods.SetTaskDescriptionBody{Res: new(types.SetTaskDescriptionResponse)}
}

// SetField is the simulator's with vCenter's event. It is no event of the VM: it names the VM as its entity alone.
func (c *CustomFieldsManager) SetField(ctx *Context, req *types.SetField) soap.HasFault {
	_, field := c.findByKey(req.Key)
	body := c.setFieldBase(ctx, req)
	entity, ok := Map.Get(req.Entity).(mo.Entity)
	if field == nil || !ok || body.Fault() != nil || !lab.ready {
		return body
	}
	event := &types.CustomFieldValueChangedEvent{FieldKey: req.Key, Name: field.Name, Value: req.Value}
	event.FullFormattedMessage = fmt.Sprintf("Changed custom field %s on %s", field.Name, entity.Entity().Name)
	event.Entity.Entity = req.Entity
	event.Entity.Name = entity.Entity().Name
	if ctx.Session != nil {
		event.UserName = ctx.Session.UserName
	}
	internalContext.postEvent(event)
	return body
}
