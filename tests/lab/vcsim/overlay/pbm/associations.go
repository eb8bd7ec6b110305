package simulator

import (
	"github.com/vmware/govmomi/pbm"
	"github.com/vmware/govmomi/pbm/methods"
	"github.com/vmware/govmomi/pbm/types"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
)

// The policy service answers at /pbm and at /pbm/sdk, and tells which policies the lab's VMs and disks have.

func init() {
	simulator.RegisterEndpoint(func(s *simulator.Service, r *simulator.Registry) {
		if r.IsVPX() {
			also := New()
			also.Path = pbm.Path + "/sdk"
			s.RegisterSDK(also)
		}
	})
	simulator.KnowPolicies(func(id string) bool {
		for _, p := range profiles {
			if p.GetPbmProfile().ProfileId.UniqueId == id {
				return true
			}
		}
		return false
	})
}

// categoryOf is what kind of policy one is of which nothing is said: one for VMs.
func categoryOf(told string) string {
	if told == "" {
		return string(types.PbmProfileCategoryEnumREQUIREMENT)
	}
	return told
}

func associated(of types.PbmServerObjectRef) []types.PbmProfileId {
	if id := simulator.PolicyOf(of.Key); id != "" {
		return []types.PbmProfileId{{UniqueId: id}}
	}
	return nil
}

// PbmQueryAssociatedProfile tells the policy of one object.
func (m *ProfileManager) PbmQueryAssociatedProfile(req *types.PbmQueryAssociatedProfile) soap.HasFault {
	return &methods.PbmQueryAssociatedProfileBody{
		Res: &types.PbmQueryAssociatedProfileResponse{Returnval: associated(req.Entity)},
	}
}

// PbmQueryAssociatedProfiles tells the policies of many, leaving out who has none.
func (m *ProfileManager) PbmQueryAssociatedProfiles(req *types.PbmQueryAssociatedProfiles) soap.HasFault {
	body := &methods.PbmQueryAssociatedProfilesBody{Res: new(types.PbmQueryAssociatedProfilesResponse)}
	for _, of := range req.Entities {
		if ids := associated(of); len(ids) > 0 {
			found := types.PbmQueryProfileResult{Object: of, ProfileId: ids}
			body.Res.Returnval = append(body.Res.Returnval, found)
		}
	}
	return body
}
