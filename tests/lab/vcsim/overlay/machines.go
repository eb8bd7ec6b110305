package simulator

import (
	"fmt"
	"log"
	"os"
	"path"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ReconfigVMTask posts its event after the change, and only if there was one.
func (vm *VirtualMachine) ReconfigVMTask(ctx *Context, req *types.ReconfigVM_Task) soap.HasFault {
	task := CreateTask(vm, "reconfigVm", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		if vm.Config.Template && len(req.Spec.DeviceChange) > 0 {
			return nil, new(types.NotSupported)
		}
		before, tracked := vm.Name, isTrue(vm.Config.ChangeTrackingEnabled)
		vm.Config.Hardware.Device = copyDevices(vm.Config.Hardware.Device)
		changes := changesOf(vm, &req.Spec)
		if fault := vm.configure(&req.Spec); fault != nil {
			return nil, fault
		}
		if on := isTrue(vm.Config.ChangeTrackingEnabled); on != tracked {
			vm.setTracking(on)
		}
		vm.bumpVersion()
		touch(vm, "config", "summary", "guest")
		ctx.postEvent(&types.VmReconfiguredEvent{VmEvent: vm.event(), ConfigSpec: req.Spec, ConfigChanges: changes})
		vm.renamed(ctx, before)
		return nil, nil
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task.Run()}}
}

// changesOf tells in words what a change was, as the event does.
func changesOf(vm *VirtualMachine, spec *types.VirtualMachineConfigSpec) *types.ChangesInfoEventArgument {
	told := new(types.ChangesInfoEventArgument)
	if spec.ChangeTrackingEnabled != nil {
		told.Modified += fmt.Sprintf("config.changeTrackingEnabled: -> %t; ", *spec.ChangeTrackingEnabled)
	}
	for _, change := range spec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec()
		line := fmt.Sprintf("config.hardware.device(%d): (%T); ", device.Device.GetVirtualDevice().Key, device.Device)
		switch device.Operation {
		case types.VirtualDeviceConfigSpecOperationAdd:
			told.Added += line
		case types.VirtualDeviceConfigSpecOperationRemove:
			told.Deleted += line
		default:
			told.Modified += line
			if disk, ok := device.Device.(*types.VirtualDisk); ok {
				told.Modified += resized(vm, disk)
			}
		}
	}
	return told
}

func (vm *VirtualMachine) setTracking(on bool) {
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil || independent(b) || !vm.ownDisk(device) {
			continue
		}
		if d := diskOf(b.FileName); d != nil {
			if on {
				vm.startTracking(d)
			} else {
				d.setTracking(false)
			}
		}
	}
}

// CreateVMTask refuses a name that the folder has, and a datastore that nobody has, as vCenter does.
func (f *Folder) CreateVMTask(ctx *Context, req *types.CreateVM_Task) soap.HasFault {
	var fault types.BaseMethodFault
	if twin := Map.FindByName(req.Config.Name, f.ChildEntity); twin != nil {
		fault = &types.DuplicateName{Name: req.Config.Name, Object: twin.Reference()}
	} else if req.Config.Files != nil {
		p, wrong := parseDatastorePath(req.Config.Files.VmPathName)
		if wrong != nil {
			fault = wrong
		} else if datastoreNamed(p.Datastore) == nil {
			fault = &types.InvalidDatastore{Name: p.Datastore}
		}
	}
	if fault == nil {
		fault = unknownPolicy(&req.Config)
	}
	if fault == nil {
		return f.createBase(ctx, req)
	}
	task := CreateTask(f, "createVm", func(*Task) (types.AnyType, types.BaseMethodFault) { return nil, fault })
	return &methods.CreateVM_TaskBody{Res: &types.CreateVM_TaskResponse{Returnval: task.Run()}}
}

// unregistered remembers what lies in the .vmx files, by their path.
var unregistered sync.Map

// UnregisterVM keeps what the VM's configuration file would say, for when it is registered again.
func (vm *VirtualMachine) UnregisterVM(ctx *Context, req *types.UnregisterVM) soap.HasFault {
	config := *vm.Config
	for _, s := range vm.snapshots() {
		forgetFrozen(s)
		Map.Remove(s.Self)
	}
	vm.Snapshot = nil
	res := vm.unregisterBase(ctx, req)
	if res.Fault() == nil {
		for _, device := range config.Hardware.Device {
			if b := flatBacking(device); b != nil {
				b.FileName, b.Parent = deltaName.ReplaceAllString(b.FileName, ".vmdk"), nil
			}
		}
		unregistered.Store(config.Files.VmPathName, &config)
	}
	return res
}

// RegisterVMTask gives a registered VM back what its files hold: identity and devices. It is a new object to vCenter.
func (f *Folder) RegisterVMTask(ctx *Context, req *types.RegisterVM_Task) soap.HasFault {
	name := req.Name
	saved, known := unregistered.Load(req.Path)
	if known && name == "" {
		req.Name = saved.(*types.VirtualMachineConfigInfo).Name
	}
	suppressed.Store(req.Name, true)
	res := f.registerBase(ctx, req)
	suppressed.Delete(req.Name)
	task := Map.Get(res.(*methods.RegisterVM_TaskBody).Res.Returnval).(*Task)
	ref, ok := task.Info.Result.(types.ManagedObjectReference)
	if !ok {
		return res
	}
	vm := Map.Get(ref).(*VirtualMachine)
	if known {
		unregistered.Delete(req.Path)
		config := saved.(*types.VirtualMachineConfigInfo)
		files := vm.Config.Files
		*vm.Config = *config
		vm.Config.Files = files
		vm.Config.Name = vm.Name
		vm.Summary.Config.Uuid, vm.Summary.Config.InstanceUuid = config.Uuid, config.InstanceUuid
	}
	ctx.postEvent(&types.VmRegisteredEvent{VmEvent: vm.event()})
	return res
}

// openRegistered lets a registration go on when only files are missing that the simulator never wrote.
func openRegistered(file string) (*os.File, error) {
	f, err := os.Open(file)
	if os.IsNotExist(err) && path.Ext(file) != ".vmx" {
		if f, err = os.Create(file); err != nil {
			log.Print(err)
		}
	}
	return f, err
}
