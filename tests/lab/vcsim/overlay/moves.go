package simulator

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func datastoreArgument(ds *Datastore) *types.DatastoreEventArgument {
	if ds == nil {
		return nil
	}
	return &types.DatastoreEventArgument{EntityEventArgument: types.EntityEventArgument{Name: ds.Name}, Datastore: ds.Self}
}

// home is the datastore of the VM's configuration file.
func (vm *VirtualMachine) home() *Datastore {
	p, fault := parseDatastorePath(vm.Config.Files.VmPathName)
	if fault != nil {
		return nil
	}
	return datastoreNamed(p.Datastore)
}

func storeNames() []string {
	names := make([]string, 0, len(lab.stores))
	for name := range lab.stores {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func datastoreNamed(name string) *Datastore {
	return lab.stores[name]
}

// event adds to the simulator's the datastore and the template flag, which vCenter fills in.
func (vm *VirtualMachine) event() types.VmEvent {
	e := vm.eventBase()
	e.Ds = datastoreArgument(vm.home())
	e.Template = vm.Config.Template
	return e
}

type move struct {
	host *types.ManagedObjectReference
	pool *types.ManagedObjectReference
	drs  bool
}

func (vm *VirtualMachine) powered() bool {
	return vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
}

func (vm *VirtualMachine) MigrateVMTask(ctx *Context, req *types.MigrateVM_Task) soap.HasFault {
	task := CreateTask(vm, "migrateVm", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		return nil, vm.migrate(ctx, move{host: req.Host, pool: req.Pool})
	})
	return &methods.MigrateVM_TaskBody{Res: &types.MigrateVM_TaskResponse{Returnval: task.Run()}}
}

func hostOf(ref *types.ManagedObjectReference) *HostSystem {
	if ref == nil {
		return nil
	}
	h, _ := Map.Get(*ref).(*HostSystem)
	return h
}

// migrate moves the VM to another host: compute only, its files stay.
func (vm *VirtualMachine) migrate(ctx *Context, m move) types.BaseMethodFault {
	source, target := hostOf(vm.Runtime.Host), hostOf(vm.Runtime.Host)
	if m.host != nil {
		if target = hostOf(m.host); target == nil {
			return &types.ManagedObjectNotFound{Obj: *m.host}
		}
	}
	vm.changePool(m.pool)
	if source == target {
		return nil
	}
	if fault := outOfReach(vm, target); fault != nil {
		return fault
	}
	vm.announceMove(ctx, target, nil)
	vm.changeHost(source, target)
	vm.takenOver()
	done := types.VmMigratedEvent{VmEvent: vm.event(), SourceHost: *source.eventArgument(), SourceDatastore: datastoreArgument(vm.home())}
	if m.drs {
		ctx.postEvent(&types.DrsVmMigratedEvent{VmMigratedEvent: done})
	} else {
		ctx.postEvent(&done)
	}
	return nil
}

func (vm *VirtualMachine) announceMove(ctx *Context, target *HostSystem, ds *Datastore) {
	if vm.powered() {
		ctx.postEvent(&types.VmBeingHotMigratedEvent{VmEvent: vm.event(), DestHost: *target.eventArgument(), DestDatastore: datastoreArgument(ds)})
	} else {
		ctx.postEvent(&types.VmBeingMigratedEvent{VmEvent: vm.event(), DestHost: *target.eventArgument(), DestDatastore: datastoreArgument(ds)})
	}
}

func (vm *VirtualMachine) changeHost(source, target *HostSystem) {
	Map.RemoveReference(source, &source.Vm, vm.Self)
	Map.AddReference(target, &target.Vm, vm.Self)
	ref := target.Self
	vm.Runtime.Host = &ref
	vm.Summary.Runtime.Host = &ref
	touch(vm, "runtime.host", "summary.runtime.host")
	touch(source, "vm")
	touch(target, "vm")
}

func (vm *VirtualMachine) changePool(ref *types.ManagedObjectReference) {
	if ref == nil || (vm.ResourcePool != nil && *vm.ResourcePool == *ref) {
		return
	}
	if vm.ResourcePool != nil {
		if old, ok := asResourcePoolMO(Map.Get(*vm.ResourcePool)); ok {
			Map.RemoveReference(old, &old.Vm, vm.Self)
		}
	}
	if pool, ok := asResourcePoolMO(Map.Get(*ref)); ok {
		Map.AddReference(pool, &pool.Vm, vm.Self)
	}
	to := *ref
	vm.ResourcePool = &to
	touch(vm, "resourcePool")
}

// RelocateVMTask moves a VM's files, its place in the cluster, or both.
func (vm *VirtualMachine) RelocateVMTask(ctx *Context, req *types.RelocateVM_Task) soap.HasFault {
	task := CreateTask(vm, "relocateVm", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		return nil, vm.relocate(ctx, &req.Spec)
	})
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: task.Run()}}
}

func (vm *VirtualMachine) relocate(ctx *Context, spec *types.VirtualMachineRelocateSpec) types.BaseMethodFault {
	from := vm.home()
	to := from
	if spec.Datastore != nil {
		ds, ok := Map.Get(*spec.Datastore).(*Datastore)
		if !ok {
			return &types.ManagedObjectNotFound{Obj: *spec.Datastore}
		}
		to = ds
	}
	if spec.Folder != nil {
		if folder, ok := Map.Get(*spec.Folder).(*Folder); ok {
			folder.adopt(vm)
		}
	}
	if to == from && len(spec.Disk) == 0 {
		return vm.migrate(ctx, move{host: spec.Host, pool: spec.Pool})
	}
	if name := attachments.holdsVM(vm); name != "" {
		return &types.FileLocked{FileFault: types.FileFault{File: name}}
	}
	source, target := hostOf(vm.Runtime.Host), hostOf(vm.Runtime.Host)
	if h := hostOf(spec.Host); h != nil {
		target = h
	}
	both := source != target && vm.powered()
	if both {
		vm.announceMove(ctx, target, to)
	} else {
		ctx.postEvent(&types.VmBeingRelocatedEvent{
			VmRelocateSpecEvent: types.VmRelocateSpecEvent{VmEvent: vm.event()},
			DestHost:            *target.eventArgument(), DestDatastore: datastoreArgument(to),
		})
	}
	if fault := vm.moveFiles(spec, to); fault != nil {
		return fault
	}
	vm.changePool(spec.Pool)
	if source != target {
		vm.changeHost(source, target)
	}
	vm.takenOver()
	if both {
		ctx.postEvent(&types.VmMigratedEvent{VmEvent: vm.event(), SourceHost: *source.eventArgument(), SourceDatastore: datastoreArgument(from)})
	} else {
		ctx.postEvent(&types.VmRelocatedEvent{
			VmRelocateSpecEvent: types.VmRelocateSpecEvent{VmEvent: vm.event()},
			SourceHost:          *source.eventArgument(), SourceDatastore: datastoreArgument(from),
		})
	}
	return nil
}

// moveFiles carries the disks, and the rest of the VM's folder when its home changes. A moved disk is tracked anew.
func (vm *VirtualMachine) moveFiles(spec *types.VirtualMachineRelocateSpec, home *Datastore) types.BaseMethodFault {
	target := map[int32]*Datastore{}
	for _, locator := range spec.Disk {
		if ds, ok := Map.Get(locator.Datastore).(*Datastore); ok {
			target[locator.DiskId] = ds
		}
	}
	renamed := map[string]string{} // "[old] folder/stem" to "[new] folder/stem"
	for _, device := range vm.Config.Hardware.Device {
		b := flatBacking(device)
		if b == nil || !vm.ownDisk(device) {
			continue
		}
		to := target[device.GetVirtualDevice().Key]
		if to == nil && spec.Datastore != nil {
			to = home
		}
		if to == nil {
			continue
		}
		if fault := moveDisk(b.FileName, to, renamed); fault != nil {
			return fault
		}
	}
	vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
		for link := b; link != nil; link = link.Parent {
			stem := strings.TrimSuffix(deltaName.ReplaceAllString(link.FileName, ".vmdk"), ".vmdk")
			if next, ok := renamed[stem]; ok {
				link.FileName = next + strings.TrimPrefix(link.FileName, stem)
				var p object.DatastorePath
				p.FromString(link.FileName)
				ref := datastoreNamed(p.Datastore).Self
				link.Datastore = &ref
			}
		}
	})
	vm.Config.Hardware.Device = copyDevices(vm.Config.Hardware.Device)
	if spec.Datastore != nil {
		vm.moveHome(home)
	}
	vm.settleDatastores()
	vm.bumpVersion()
	touch(vm, "config.hardware.device", "config.files", "config.changeVersion", "summary.config", "datastore", "layout", "layoutEx")
	return nil
}

func moveDisk(name string, to *Datastore, renamed map[string]string) types.BaseMethodFault {
	d := diskOf(name)
	var p object.DatastorePath
	if d == nil || !p.FromString(name) || p.Datastore == to.Name {
		return nil
	}
	stem := strings.TrimSuffix(deltaName.ReplaceAllString(p.Path, ".vmdk"), ".vmdk")
	dir := path.Join(lab.datastore(to.Name), path.Dir(stem))
	ensureDir(dir)
	old := path.Join(lab.datastore(p.Datastore), stem)
	lock, err := lockFlat(d.Flat)
	if err != nil {
		return &types.FileFault{File: name}
	}
	defer lock.Close()
	files, _ := filepath.Glob(strings.NewReplacer("[", "\\[", "*", "\\*", "?", "\\?").Replace(old) + "*")
	for _, file := range files {
		tail := strings.TrimPrefix(file, old)
		if strings.HasPrefix(tail, "-flat.vmdk") || strings.HasPrefix(tail, ".vmdk") || deltaName.MatchString(tail) {
			if err := os.Rename(file, path.Join(dir, path.Base(file))); err != nil {
				return &types.FileFault{File: err.Error()}
			}
		}
	}
	disksLock.Lock()
	delete(disks, d.Flat)
	d.Flat = path.Join(dir, path.Base(d.Flat))
	disks[d.Flat] = d
	disksLock.Unlock()
	if d.tracked && !lab.settings.get().KeepTracking {
		d.setTracking(true)
	}
	renamed["["+p.Datastore+"] "+stem] = "[" + to.Name + "] " + stem
	return nil
}

func (vm *VirtualMachine) moveHome(to *Datastore) {
	move := func(name string) string {
		var p object.DatastorePath
		if name == "" || !p.FromString(name) {
			return name
		}
		p.Datastore = to.Name
		return p.String()
	}
	var p object.DatastorePath
	p.FromString(vm.Config.Files.VmPathName)
	from := path.Join(lab.datastore(p.Datastore), path.Dir(p.Path))
	dir := path.Join(lab.datastore(to.Name), path.Dir(p.Path))
	ensureDir(dir)
	entries, _ := os.ReadDir(from)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".vmdk") && !strings.Contains(e.Name(), ".vmdk.") {
			_ = os.Rename(path.Join(from, e.Name()), path.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(from)
	files := &vm.Config.Files
	files.VmPathName = move(files.VmPathName)
	files.SnapshotDirectory = move(files.SnapshotDirectory)
	files.SuspendDirectory = move(files.SuspendDirectory)
	files.LogDirectory = move(files.LogDirectory)
	vm.Summary.Config.VmPathName = files.VmPathName
	if vm.log != "" {
		vm.log = path.Join(dir, path.Base(vm.log))
	}
	for i := range vm.LayoutEx.File {
		vm.LayoutEx.File[i].Name = move(vm.LayoutEx.File[i].Name)
	}
}

// settleDatastores makes vm.datastore and each datastore.vm agree with where the files lie.
func (vm *VirtualMachine) settleDatastores() {
	used := map[string]bool{}
	if ds := vm.home(); ds != nil {
		used[ds.Name] = true
	}
	vm.eachBacking(func(b *types.VirtualDiskFlatVer2BackingInfo) {
		var p object.DatastorePath
		if p.FromString(b.FileName) {
			used[p.Datastore] = true
		}
	})
	vm.Datastore = nil
	for _, name := range storeNames() {
		ds := lab.stores[name]
		if used[name] {
			vm.Datastore = append(vm.Datastore, ds.Self)
			Map.AddReference(ds, &ds.Vm, vm.Self)
		} else {
			Map.RemoveReference(ds, &ds.Vm, vm.Self)
		}
		touch(ds, "vm")
	}
}

// RenameTask posts the event that the simulator leaves out.
func (vm *VirtualMachine) RenameTask(ctx *Context, req *types.Rename_Task) soap.HasFault {
	before := vm.Name
	res := RenameTask(vm, req)
	vm.renamed(ctx, before)
	return res
}

func (vm *VirtualMachine) renamed(ctx *Context, before string) {
	if vm.Name == before {
		return
	}
	vm.Config.Name, vm.Summary.Config.Name = vm.Name, vm.Name
	touch(vm, "name", "config.name", "summary.config.name")
	ctx.postEvent(&types.VmRenamedEvent{VmEvent: vm.event(), OldName: before, NewName: vm.Name})
}

// MoveIntoFolderTask keeps the objects themselves: a moved VM does not leave the inventory.
func (f *Folder) MoveIntoFolderTask(ctx *Context, req *types.MoveIntoFolder_Task) soap.HasFault {
	task := CreateTask(f, "moveIntoFolder", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		for _, ref := range req.List {
			entity, ok := Map.Get(ref).(mo.Entity)
			if !ok {
				return nil, &types.ManagedObjectNotFound{Obj: ref}
			}
			if !folderHasChildType(&f.Folder, ref.Type) {
				return nil, new(types.NotSupported)
			}
			f.adopt(entity)
		}
		return nil, nil
	})
	return &methods.MoveIntoFolder_TaskBody{Res: &types.MoveIntoFolder_TaskResponse{Returnval: task.Run()}}
}

func (f *Folder) adopt(entity mo.Entity) {
	e := entity.Entity()
	if old, ok := asFolderMO(Map.Get(*e.Parent)); ok {
		RemoveReference(&old.ChildEntity, e.Self)
		touch(old, "childEntity")
	}
	f.ChildEntity = append(f.ChildEntity, e.Self)
	parent := f.Self
	e.Parent = &parent
	touch(f, "childEntity")
	touch(entity, "parent")
}

// drsMove is what DRS does by itself: no user, and its own event.
func drsMove(vm *VirtualMachine, host *HostSystem) error {
	var fault types.BaseMethodFault
	if source := disabled.source(vm.Self, "MigrateVM_Task"); source != "" {
		return fmt.Errorf("migration is disabled by %s", source)
	}
	if leases.on(vm.Self) != nil {
		return fmt.Errorf("the disks of %s are being exported", vm.Name)
	}
	ref := host.Self
	task := CreateTask(vm, "drsMigrate", func(t *Task) (types.AnyType, types.BaseMethodFault) {
		fault = vm.migrate(internalContext, move{host: &ref, drs: true})
		return nil, fault
	})
	task.Info.Reason = new(types.TaskReasonSystem)
	Map.WithLock(vm, func() { task.Run() })
	if fault != nil {
		return fmt.Errorf("%T", fault)
	}
	return nil
}
