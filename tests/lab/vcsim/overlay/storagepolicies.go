package simulator

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

// Storage policies of VMs and disks. vCenter keeps neither association nor policy in the VM's configuration: its policy
// service does (types: VirtualMachineDefinedProfileSpec). The service itself is package pbm/simulator.

// storagePolicies holds the policy of each object, by the keys that the policy service uses: a VM's moRef for its home,
// "vm-1:2000" for a disk (types: PbmServerObjectRef).
type storagePolicies struct {
	sync.Mutex
	by    map[string]string
	known func(id string) bool
}

var policies = &storagePolicies{by: map[string]string{}, known: func(string) bool { return true }}

// KnowPolicies tells the lab how to find out whether there is a policy of this id.
func KnowPolicies(known func(id string) bool) { policies.known = known }

// PolicyOf is the policy of an object, by its key; "" for none.
func PolicyOf(key string) string {
	policies.Lock()
	defer policies.Unlock()
	return policies.by[key]
}

func (p *storagePolicies) put(key, id string) {
	p.Lock()
	defer p.Unlock()
	if id == "" {
		delete(p.by, key)
	} else {
		p.by[key] = id
	}
}

func definedPolicy(specs []types.BaseVirtualMachineProfileSpec) (string, bool) {
	for _, spec := range specs {
		if of, ok := spec.(*types.VirtualMachineDefinedProfileSpec); ok {
			return of.ProfileId, true
		}
	}
	return "", len(specs) > 0
}

// unknownPolicy is the fault for a specification that names a policy which is not there.
func unknownPolicy(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if id, told := definedPolicy(spec.VmProfile); told && id != "" && !policies.known(id) {
		return &types.InvalidArgument{InvalidProperty: "configSpec.vmProfile.profileId"}
	}
	for n, change := range spec.DeviceChange {
		if id, told := definedPolicy(change.GetVirtualDeviceConfigSpec().Profile); told && id != "" && !policies.known(id) {
			return &types.InvalidArgument{InvalidProperty: fmt.Sprintf("configSpec.deviceChange[%d].profile.profileId", n)}
		}
	}
	return nil
}

func diskPolicyKey(vm *VirtualMachine, key int32) string {
	return fmt.Sprintf("%s:%d", vm.Self.Value, key)
}

func (vm *VirtualMachine) configureDevices(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if fault := unknownPolicy(spec); fault != nil {
		return fault
	}
	fault := vm.configureDevicesBase(spec)
	if fault != nil {
		return fault
	}
	if id, told := definedPolicy(spec.VmProfile); told {
		policies.put(vm.Self.Value, id)
	}
	for _, change := range spec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec()
		if _, ok := device.Device.(*types.VirtualDisk); !ok {
			continue
		}
		key := diskPolicyKey(vm, device.Device.GetVirtualDevice().Key)
		id, told := definedPolicy(device.Profile)
		switch {
		case device.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			policies.put(key, "")
		case told || device.Operation == types.VirtualDeviceConfigSpecOperationAdd:
			policies.put(key, id)
		}
	}
	return nil
}

// policySession: the policy service knows a login by the header of the call alone, never by a cookie of HTTP.
func policySession(ctx *Context) {
	if !strings.HasPrefix(ctx.Map.Path, "/pbm") {
		return
	}
	ctx.Session = nil
	if session, ok := ctx.svc.sm.getSession(ctx.Header.Cookie); ok {
		ctx.SetSession(session, false)
	}
}

var (
	plainFault = regexp.MustCompile(`(?s)<\w+Fault xmlns="urn:vim25" xsi:type="(\w+)">(.*?)</\w+Fault>`)
	plainTag   = regexp.MustCompile(`<(/?)(\w)`)
)

// policyFault gives a fault the shape that the policy service's have: a RuntimeFault of its own namespace that is one of
// vCenter's (a trace of a real one is in an issue of terraform-provider-vsphere, number 1216).
func policyFault(ctx *Context, out *bytes.Buffer) {
	if !strings.HasPrefix(ctx.Map.Path, "/pbm") {
		return
	}
	told := plainFault.ReplaceAllStringFunc(out.String(), func(fault string) string {
		parts := plainFault.FindStringSubmatch(fault)
		return `<RuntimeFaultFault xmlns="urn:pbm" xmlns:vim25="urn:vim25" xsi:type="vim25:` + parts[1] + `">` +
			plainTag.ReplaceAllString(parts[2], "<${1}vim25:$2") + "</RuntimeFaultFault>"
	})
	out.Reset()
	out.WriteString(told)
}
