package simulator

import (
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// callRecord numbers the calls of one account, and ends its session at one of them.
type callRecord struct {
	sync.Mutex
	User string `json:"user"` // whose calls; empty: nobody's
	At   int    `json:"at"`   // the session is over when this call comes, counted from 1; 0: never
	Lose bool   `json:"lose"` // the call is carried out all the same, and its answer lost
	done bool
	seen []string
}

var record callRecord

// order begins anew.
func (r *callRecord) order(o *callRecord) {
	r.Lock()
	defer r.Unlock()
	r.User, r.At, r.Lose, r.done, r.seen = o.User, o.At, o.Lose, false, nil
}

func (r *callRecord) calls() []string {
	r.Lock()
	defer r.Unlock()
	return append([]string{}, r.seen...)
}

// note counts a call; the same call many times in a row, as of somebody who waits for a task, counts as one.
func (r *callRecord) note(ctx *Context, method *Method) (cut, lose bool) {
	r.Lock()
	defer r.Unlock()
	if r.User == "" || ctx.Session == nil || ctx.Session.UserName != r.User {
		return false, false
	}
	name := describeCall(method)
	if len(r.seen) == 0 || r.seen[len(r.seen)-1] != name {
		r.seen = append(r.seen, name)
	}
	if r.done || r.At == 0 || len(r.seen) != r.At {
		return false, false
	}
	r.done = true
	return true, r.Lose
}

func describeCall(method *Method) string {
	read, ok := method.Body.(*types.RetrievePropertiesEx)
	if !ok {
		return fmt.Sprintf("%s %s", method.Name, method.This.Type)
	}
	told := []string{method.Name}
	for _, spec := range read.SpecSet {
		for _, object := range spec.ObjectSet {
			told = append(told, object.Obj.Type)
			break
		}
		for _, properties := range spec.PropSet {
			told = append(told, strings.Join(properties.PathSet, ","))
		}
	}
	return strings.Join(told, " ")
}

// endOnOrder ends the session of the caller where that was ordered. It answers nil where the call may go on.
func endOnOrder(ctx *Context, method *Method) soap.HasFault {
	cut, lose := record.note(ctx, method)
	if !cut {
		return nil
	}
	if lose {
		quiet := *ctx
		quiet.req = nil
		ctx.svc.call(&quiet, method)
	}
	Map.SessionManager().delSession(ctx.Session.Key)
	unwatch(ctx.Session.Key)
	if lose {
		panic(http.ErrAbortHandler)
	}
	return &serverFaultBody{Reason: Fault("", &types.NotAuthenticated{
		NoPermission: types.NoPermission{Object: method.This, PrivilegeId: "System.View"},
	})}
}
