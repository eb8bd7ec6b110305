"""The small edits that open govmomi's simulator to the lab's own Go. build.py applies them to copies."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `old` in one of govmomi's files. `times` is how often it must be there."""

    file: str
    old: str
    new: str
    times: int = 1


def _renamed(file: str, receiver: str, method: str, name: str) -> Edit:
    return Edit(file, f"func ({receiver}) {method}(", f"func ({receiver}) {name}(")


EDITS = (
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "event", "eventBase"),
    _renamed("simulator/virtual_machine.go", "o *VirtualMachine", "RenameTask", "renameBase"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "ReconfigVMTask", "reconfigBase"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "UnregisterVM", "unregisterBase"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "RelocateVMTask", "relocateBase"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "CreateSnapshotTask", "createSnapshotBase"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "configureDevices", "configureDevicesBase"),
    _renamed("pbm/simulator/simulator.go", "m *ProfileManager", "PbmQueryAssociatedProfile", "queryAssociatedBase"),
    Edit("pbm/simulator/simulator.go", "req.CreateSpec.Category,", "categoryOf(req.CreateSpec.Category),"),
    Edit(
        "simulator/simulator.go",
        "\t\tctx.Header = method.Header\n",
        "\t\tctx.Header = method.Header\n\t\tpolicySession(ctx)\n",
    ),
    Edit("simulator/simulator.go", "\t\terr = e.Flush()\n", "\t\terr = e.Flush()\n\t\tpolicyFault(ctx, &out)\n"),
    _renamed("simulator/virtual_machine.go", "vm *VirtualMachine", "RemoveAllSnapshotsTask", "removeAllSnapshotsBase"),
    Edit(
        "simulator/virtual_machine.go",
        "PoweredOff\n\tvm.Runtime.ConnectionState = types.VirtualMachineConnectionStateConnected\n",
        "PoweredOff\n\tvm.Runtime.ConnectionState = types.VirtualMachineConnectionStateConnected\n\tprepare(vm)\n",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "diskBacking := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)\n",
        "diskBacking := flatBacking(disk)\n\t\tif diskBacking == nil {\n\t\t\tcontinue\n\t\t}\n",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "err := vdmCreateVirtualDisk(spec.FileOperation, &",
        "err := createDisk(vm, x, spec.FileOperation, &",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "\t\tdevices = append(devices[:i], devices[i+1:]...)\n\n\t\tswitch device := spec.Device.(type) {",
        "\t\tif spec.Operation == types.VirtualDeviceConfigSpecOperationRemove {\n"
        "\t\t\treleaseDisk(vm, d, spec.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy)\n\t\t}\n"
        "\t\tdevices = append(devices[:i], devices[i+1:]...)\n\n\t\tswitch device := spec.Device.(type) {",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "f, err := os.Open(filepath.Clean(file))",
        "f, err := openRegistered(filepath.Clean(file))",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "\t\tdevices := vm.Config.Hardware.Device\n\t\tfor _, device := range devices {\n\t\t\tvar fop",
        "\t\tdevices := cloneDevices(vm)\n\t\tfor _, device := range devices {\n\t\t\tvar fop",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "\t\tres := Map.Get(req.Folder).(vmFolder).CreateVMTask(ctx,",
        "\t\tsuppressed.Store(req.Name, true)\n\t\tdefer suppressed.Delete(req.Name)\n"
        "\t\tres := Map.Get(req.Folder).(vmFolder).CreateVMTask(ctx,",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "\t\tclone := Map.Get(ref).(*VirtualMachine)\n",
        "\t\tclone := Map.Get(ref).(*VirtualMachine)\n\t\tcopyContents(vm, clone, req.Spec.Snapshot)\n",
    ),
    _renamed("simulator/datastore.go", "ds *Datastore", "RefreshDatastore", "refreshBase"),
    _renamed("simulator/snapshot.go", "v *VirtualMachineSnapshot", "RemoveSnapshotTask", "removeSnapshotBase"),
    _renamed("simulator/snapshot.go", "v *VirtualMachineSnapshot", "RevertToSnapshotTask", "revertBase"),
    _renamed("simulator/folder.go", "f *Folder", "MoveIntoFolderTask", "moveIntoFolderBase"),
    _renamed("simulator/folder.go", "f *Folder", "RegisterVMTask", "registerBase"),
    _renamed("simulator/folder.go", "f *Folder", "CreateVMTask", "createBase"),
    _renamed("simulator/resource_pool.go", "p *ResourcePool", "ImportVApp", "importBase"),
    Edit(
        "simulator/virtual_machine.go",
        "\tMap.Update(c.VirtualMachine, []types.PropertyChange{\n",
        "\tc.toolsFollow(c.state)\n\tc.guestFollows(c.state)\n\tMap.Update(c.VirtualMachine, []types.PropertyChange{\n",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "vm.Config.ExtraConfig = append(vm.Config.ExtraConfig, c)",
        "vm.Config.ExtraConfig = keepOption(vm.Config.ExtraConfig, c)",
    ),
    _renamed("simulator/task.go", "t *Task", "Run", "runBase"),
    _renamed("simulator/property_filter.go", "f *PropertyFilter", "apply", "applyBase"),
    _renamed("simulator/property_collector.go", "pc *PropertyCollector", "RetrievePropertiesEx", "retrieveBase"),
    _renamed("simulator/property_collector.go", "pc *PropertyCollector", "WaitForUpdatesEx", "waitBase"),
    Edit("simulator/property_collector.go", "pc.RetrievePropertiesEx(ctx, ", "pc.retrieveBase(ctx, ", times=2),
    Edit("simulator/property_collector.go", "pc.WaitForUpdatesEx(ctx, ", "pc.waitBase(ctx, "),
    Edit(
        "simulator/property_collector.go",
        "\tcancel  context.CancelFunc\n}",
        "\tcancel  context.CancelFunc\n\theld    []types.PropertyFilterUpdate\n\tversion string\n}",
    ),
    Edit("simulator/property_collector.go", "time.NewTicker(250 * time.Millisecond)", "time.NewTicker(updateTick)"),
    Edit("simulator/property_collector.go", "ctx.Map.AddHandler(pc)", "watch(ctx, pc)"),
    Edit(
        "simulator/registry.go",
        "\t\thandlers = append(handlers, handler)\n\t}\n\tr.m.Unlock()\n",
        "\t\thandlers = append(handlers, handler)\n\t}\n\tr.m.Unlock()\n"
        "\thandlers = append(handlers, watching(r)...)\n",
    ),
    Edit(
        "simulator/session_manager.go",
        "\tsession := ctx.Session\n\ts.delSession(session.Key)\n",
        "\tsession := ctx.Session\n\ts.delSession(session.Key)\n\tunwatch(session.Key)\n",
    ),
    Edit("simulator/property_collector.go", "if !apply() {", "if !collectOnce() {", times=2),
    Edit(
        "simulator/property_collector.go",
        "pc.updates = nil // clear updates collected by the managed object CRUD listeners\n",
        "pc.updates = nil\n\t\t\tcollectOnce := collectOnce(updates, apply)\n",
    ),
    Edit(
        "simulator/property_collector.go",
        "\tbody.Res = &types.CreateFilterResponse{",
        "\tpc.filterCreated(filter.Self)\n\tbody.Res = &types.CreateFilterResponse{",
    ),
    Edit(
        "simulator/property_collector.go",
        "\tif len(obj.PropSet) == 0 {\n",
        "\tif len(obj.PropSet) == 0 && len(obj.MissingSet) == 0 {\n"
        "\t\tbody.Res = new(internal.FetchResponse)\n\t\treturn body\n\t}\n"
        "\tif len(obj.PropSet) == 0 {\n",
    ),
    Edit(
        "simulator/simulator.go",
        "\tvar args, res []reflect.Value\n",
        "\tif f := guarded(ctx, method, handler); f != nil {\n\t\treturn f\n\t}\n\tvar args, res []reflect.Value\n",
    ),
    Edit(
        "simulator/simulator.go",
        "mux.HandleFunc(folderPrefix, s.ServeDatastore)",
        "mux.HandleFunc(folderPrefix, s.serveFolder)",
    ),
    _renamed(
        "simulator/authorization_manager.go", "m *AuthorizationManager", "HasPrivilegeOnEntities", "hasPrivilegeBase"
    ),
    Edit(
        "simulator/authorization_manager.go",
        "\troot := r.content().RootFolder\n",
        "\tm.PrivilegeList = labPrivileges(m.privileges)\n\troot := r.content().RootFolder\n",
    ),
    _renamed("simulator/session_manager.go", "s *SessionManager", "AcquireGenericServiceTicket", "acquireTicketBase"),
    Edit(
        "simulator/session_manager.go",
        "return req.UserName == user.Username() && req.Password == pass",
        "return CheckLogin(req.UserName, pass) && req.Password == pass",
    ),
    Edit(
        "vapi/simulator/simulator.go",
        '\t\tif u == "" || p == "" {\n\t\t\treturn u, false\n\t\t}\n',
        "\t\tif !simulator.CheckLogin(u, p) {\n\t\t\treturn u, false\n\t\t}\n",
    ),
    Edit(
        "simulator/virtual_machine.go",
        "strings.TrimPrefix(file.Name(), datastore.Info.GetDatastoreInfo().Url)",
        'strings.TrimPrefix(path.Join(directory, file.Name()), datastore.Info.GetDatastoreInfo().Url+"/")',
    ),
    Edit("simulator/host_datastore_system.go", '\tds.Self.Value += "@" + folder.Self.Value\n', ""),
    _renamed("simulator/custom_fields_manager.go", "c *CustomFieldsManager", "SetField", "setFieldBase"),
    Edit(
        "simulator/custom_fields_manager.go",
        "\t\tentity.CustomValue = append(entity.CustomValue, newValue)\n"
        "\t\tentity.Value = append(entity.Value, newValue)\n",
        "\t\tentity.CustomValue = keepField(entity.CustomValue, newValue)\n"
        "\t\tentity.Value = keepField(entity.Value, newValue)\n"
        "\t\ttouchFields(req.Entity)\n",
    ),
)
