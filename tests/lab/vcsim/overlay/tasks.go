package simulator

import (
	"fmt"
	"log"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// background holds the tasks that run after their call has been answered, as all do in vCenter. The others are used
// by the simulator itself, which reads their result at once.
var background = map[string]bool{
	"createsnapshot": true, "createsnapshotex": true, "removesnapshot": true, "removeallsnapshots": true, "reverttosnapshot": true,
	"consolidatedisks": true, "reconfig": true, "relocate": true, "migrate": true,
}

// taskID brings a method's name and its task's name to one form: ReconfigVM_Task and ReconfigVm are both "reconfig".
func taskID(name string) string {
	id := strings.TrimSuffix(strings.ToLower(name), "_task")
	if id == "consolidatevmdisks" {
		return "consolidatedisks"
	}
	return strings.TrimSuffix(id, "vm")
}

var recentLock sync.Mutex

// tasksKept is how many finished tasks can still be asked about; vCenter forgets them after some minutes.
const tasksKept = 1000

var finished []types.ManagedObjectReference

// retire forgets the oldest of the finished tasks.
func (t *Task) retire() {
	recentLock.Lock()
	finished = append(finished, t.Self)
	var gone types.ManagedObjectReference
	if len(finished) > tasksKept {
		gone, finished = finished[0], finished[1:]
	}
	recentLock.Unlock()
	if gone.Value != "" {
		Map.Remove(gone)
	}
}

// Run is the simulator's, but with vCenter's TaskEvent, an event chain, recentTask, and the faults that tests ask for.
func (t *Task) Run() types.ManagedObjectReference {
	id := taskID(t.Info.Name)
	rule := faults.forTask(id, t.Info.Entity.Value)
	delay := rule.delay() + lab.delayOf(id)
	entity := t.Info.Entity
	vm, isVM := Map.Get(*entity).(*VirtualMachine)
	if e, ok := Map.Get(*entity).(mo.Entity); ok {
		t.Info.EntityName = e.Entity().Name
	}
	Map.Update(t, []types.PropertyChange{
		{Name: "info.startTime", Val: time.Now().UTC()},
		{Name: "info.state", Val: types.TaskInfoStateRunning},
	})
	if isVM && lab.ready {
		t.announce(vm)
	}
	if !background[id] && delay == 0 {
		t.perform(rule)
		return t.Self
	}
	go func() {
		time.Sleep(delay)
		Map.WithLock(*entity, func() { t.perform(rule) })
	}()
	return t.Self
}

func (l *labState) delayOf(id string) time.Duration {
	now := l.settings.get()
	ms := 0
	switch id {
	case "createsnapshot", "createsnapshotex":
		ms = now.SnapshotDelayMS
	case "removesnapshot", "removeallsnapshots":
		ms = now.RemovalDelayMS
	case "relocate", "migrate":
		ms = now.MoveDelayMS
	}
	return time.Duration(ms) * time.Millisecond
}

func (t *Task) announce(vm *VirtualMachine) {
	recentLock.Lock()
	recent := append(append([]types.ManagedObjectReference(nil), vm.RecentTask...), t.Self)
	if len(recent) > 8 {
		recent = recent[len(recent)-8:]
	}
	vm.RecentTask = recent
	recentLock.Unlock()
	touch(vm, "recentTask")
	event := &types.TaskEvent{Info: t.Info}
	event.Event = vm.event().Event
	internalContext.postEvent(event)
	t.Info.EventChainId = event.ChainId
}

func (t *Task) perform(rule *faultRule) {
	if t.Info.EventChainId != 0 {
		chains.Store(*t.Info.Entity, t.Info.EventChainId)
		defer chains.Delete(*t.Info.Entity)
	}
	var res types.AnyType
	var failure types.BaseMethodFault
	text := "injected by the lab"
	if failure = rule.taskFault(); failure == nil {
		res, failure = t.guarded()
		text = fmt.Sprintf("%T", failure)
	}
	state := types.TaskInfoStateSuccess
	var fault interface{}
	if failure != nil {
		state = types.TaskInfoStateError
		fault = types.LocalizedMethodFault{Fault: failure, LocalizedMessage: text}
	}
	Map.Update(t, []types.PropertyChange{
		{Name: "info.completeTime", Val: time.Now().UTC()},
		{Name: "info.result", Val: res},
		{Name: "info.error", Val: fault},
		{Name: "info.state", Val: state},
	})
	t.retire()
}

// guarded keeps a defect in one task from ending the whole simulator.
func (t *Task) guarded() (res types.AnyType, fault types.BaseMethodFault) {
	defer func() {
		if r := recover(); r != nil {
			log.Printf("task %s: %v\n%s", t.Info.Name, r, debug.Stack())
			res, fault = nil, &types.SystemError{Reason: fmt.Sprint(r)}
		}
	}()
	return t.Execute(t)
}
