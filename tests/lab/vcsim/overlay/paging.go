package simulator

import (
	"fmt"
	"sync"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Answers of the property collectors come in parts: what a client asks for at most, or the lab's own limit, whichever
// is smaller. A server may always do so (RetrieveResult.token, UpdateSet.truncated).

// heldResults are the rests of answers, by the token that their clients hold.
var heldResults struct {
	sync.Mutex
	next int
	of   map[string]heldResult
}

type heldResult struct {
	session   string
	collector types.ManagedObjectReference
	most      int
	objects   []types.ObjectContent
}

// partSize is how many objects one answer holds; 0: all of them.
func partSize(asked int32) int {
	own := lab.settings.get().PageObjects
	if own <= 0 || (asked > 0 && int(asked) < own) {
		return int(asked)
	}
	return own
}

func sessionKey(ctx *Context) string {
	if ctx.Session == nil {
		return ""
	}
	return ctx.Session.Key
}

// firstPart keeps what does not fit and gives the rest's token.
func (h heldResult) firstPart() *types.RetrieveResult {
	if h.most <= 0 || len(h.objects) <= h.most {
		return &types.RetrieveResult{Objects: h.objects}
	}
	part := &types.RetrieveResult{Objects: h.objects[:h.most]}
	h.objects = h.objects[h.most:]
	heldResults.Lock()
	defer heldResults.Unlock()
	if heldResults.of == nil {
		heldResults.of = map[string]heldResult{}
	}
	part.Token = fmt.Sprint(heldResults.next)
	heldResults.next++
	heldResults.of[part.Token] = h
	return part
}

// takeHeld gives a token up; only the session and the collector that it was given to may.
func takeHeld(ctx *Context, collector types.ManagedObjectReference, token string) (heldResult, bool) {
	heldResults.Lock()
	defer heldResults.Unlock()
	held, ok := heldResults.of[token]
	if !ok || held.session != sessionKey(ctx) || held.collector != collector {
		return heldResult{}, false
	}
	delete(heldResults.of, token)
	return held, true
}

// RetrievePropertiesEx gives no more objects than asked for, and a token for the rest.
func (pc *PropertyCollector) RetrievePropertiesEx(ctx *Context, r *types.RetrievePropertiesEx) soap.HasFault {
	body := pc.retrieveBase(ctx, r).(*methods.RetrievePropertiesExBody)
	if body.Res != nil && body.Res.Returnval != nil {
		all := heldResult{sessionKey(ctx), pc.Self, partSize(r.Options.MaxObjects), body.Res.Returnval.Objects}
		body.Res.Returnval = all.firstPart()
	}
	return body
}

func (pc *PropertyCollector) ContinueRetrievePropertiesEx(
	ctx *Context, r *types.ContinueRetrievePropertiesEx,
) soap.HasFault {
	body := &methods.ContinueRetrievePropertiesExBody{}
	held, ok := takeHeld(ctx, pc.Self, r.Token)
	if !ok {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "token"})
		return body
	}
	body.Res = &types.ContinueRetrievePropertiesExResponse{Returnval: *held.firstPart()}
	return body
}

func (pc *PropertyCollector) CancelRetrievePropertiesEx(
	ctx *Context, r *types.CancelRetrievePropertiesEx,
) soap.HasFault {
	body := &methods.CancelRetrievePropertiesExBody{}
	if _, ok := takeHeld(ctx, pc.Self, r.Token); !ok {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "token"})
		return body
	}
	body.Res = new(types.CancelRetrievePropertiesExResponse)
	return body
}

// WaitForUpdatesEx tells no more objects than asked for; what is left comes at the next call, at once.
func (pc *PropertyCollector) WaitForUpdatesEx(ctx *Context, r *types.WaitForUpdatesEx) soap.HasFault {
	most := 0
	if r.Options != nil {
		most = partSize(r.Options.MaxObjectUpdates)
	}
	if r.Version == "" {
		pc.held = nil
	}
	if len(pc.held) == 0 {
		body := pc.waitBase(ctx, r).(*methods.WaitForUpdatesExBody)
		if body.Res == nil || body.Res.Returnval == nil {
			return body
		}
		pc.held, pc.version = body.Res.Returnval.FilterSet, body.Res.Returnval.Version
	}
	set := &types.UpdateSet{Version: pc.version, FilterSet: pc.takeUpdates(most)}
	if len(pc.held) > 0 {
		set.Truncated = types.NewBool(true)
	}
	return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{Returnval: set}}
}

// takeUpdates takes so many objects out of what is to be told; 0: all of them.
func (pc *PropertyCollector) takeUpdates(most int) []types.PropertyFilterUpdate {
	if most <= 0 {
		all := pc.held
		pc.held = nil
		return all
	}
	var told []types.PropertyFilterUpdate
	for most > 0 && len(pc.held) > 0 {
		next := pc.held[0]
		if len(next.ObjectSet) <= most {
			told, pc.held, most = append(told, next), pc.held[1:], most-len(next.ObjectSet)
			continue
		}
		part := next
		part.ObjectSet = next.ObjectSet[:most]
		pc.held[0].ObjectSet = next.ObjectSet[most:]
		told, most = append(told, part), 0
	}
	return told
}
