package simulator

import (
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// updateTick is how long updates gather before WaitForUpdatesEx answers.
const updateTick = 20 * time.Millisecond

// apply answers each property of the filter that an update touches, from above or below, with its value now.
func (f *PropertyFilter) apply(ctx *Context, update types.ObjectUpdate) types.ObjectUpdate {
	touched := update.ChangeSet
	update.ChangeSet = nil
	value, found := getObject(ctx, update.Obj)
	if !found {
		return update
	}
	seen := map[string]bool{}
	for _, spec := range f.Spec.PropSet {
		if spec.Type != update.Obj.Type {
			field, ok := value.Type().FieldByName(spec.Type)
			if !ok || !field.Anonymous {
				continue
			}
		}
		paths := spec.PathSet
		if isTrue(spec.All) {
			for _, c := range touched {
				paths = append(paths, strings.SplitN(c.Name, ".", 2)[0])
			}
		}
		for _, p := range paths {
			if seen[p] || !concernsPath(touched, p) {
				continue
			}
			seen[p] = true
			update.ChangeSet = append(update.ChangeSet, types.PropertyChange{
				Name: p, Op: types.PropertyChangeOpAssign, Val: currentValue(ctx, update.Obj, value, p),
			})
		}
	}
	return update
}

func currentValue(ctx *Context, ref types.ManagedObjectReference, value reflect.Value, p string) (val types.AnyType) {
	ctx.WithLock(ref, func() { val, _ = fieldValue(value, p) })
	return val
}

func concernsPath(touched []types.PropertyChange, p string) bool {
	for _, c := range touched {
		if c.Name == p || strings.HasPrefix(c.Name, p+".") || strings.HasPrefix(p, c.Name+".") {
			return true
		}
	}
	return false
}

// collectOnce looks for objects that entered a filter once for all the updates, and only where they could have.
func collectOnce(updates []types.ObjectUpdate, collect func() bool) func() bool {
	needed := false
	for _, u := range updates {
		switch u.Obj.Type {
		case "Task":
		case "ContainerView", "ListView", "Folder":
			needed = true
		default:
			needed = needed || u.Kind == types.ObjectUpdateKindEnter
		}
	}
	ok := true
	return func() bool {
		if needed {
			needed = false
			ok = collect()
		}
		return ok
	}
}

// watchers are the sessions' default collectors. They share one reference, so that the registry, which knows handlers
// by their reference, would keep only one of them.
var watchers struct {
	sync.Mutex
	of map[string]*PropertyCollector // by session
}

func watch(ctx *Context, pc *PropertyCollector) {
	if pc.Self != Map.content().PropertyCollector {
		ctx.Map.AddHandler(pc)
		return
	}
	watchers.Lock()
	defer watchers.Unlock()
	if watchers.of == nil {
		watchers.of = map[string]*PropertyCollector{}
	}
	watchers.of[ctx.Session.Key] = pc
}

func unwatch(session string) {
	watchers.Lock()
	defer watchers.Unlock()
	delete(watchers.of, session)
}

func unwatchAll() {
	watchers.Lock()
	defer watchers.Unlock()
	for session, pc := range watchers.of {
		pc.interrupt()
		delete(watchers.of, session)
	}
}

func watching(r *Registry) []RegisterObject {
	if r != Map {
		return nil
	}
	watchers.Lock()
	defer watchers.Unlock()
	all := make([]RegisterObject, 0, len(watchers.of))
	for _, pc := range watchers.of {
		all = append(all, pc)
	}
	return all
}

// interrupt ends a wait for updates.
func (pc *PropertyCollector) interrupt() {
	pc.mu.Lock()
	defer pc.mu.Unlock()
	if pc.cancel != nil {
		pc.cancel()
	}
}

// filterCreated makes the next WaitForUpdatesEx tell what the new filter selects, also when nothing else changes.
func (pc *PropertyCollector) filterCreated(filter types.ManagedObjectReference) {
	pc.update(types.ObjectUpdate{Obj: filter, Kind: types.ObjectUpdateKindEnter})
}
