package simulator

import (
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// folderMethod is what fault rules call a request for a file of a datastore: "GET /folder", "PUT /folder".
const folderMethod = " /folder"

// serveFolder stands before the simulator's own handler of /folder, which asks for no login, knows no privileges and
// gives away the disks of running VMs.
func (s *Service) serveFolder(w http.ResponseWriter, r *http.Request) {
	name := r.Method + folderMethod
	faults.Lock()
	faults.calls[name]++
	faults.Unlock()
	var session Session
	known := false
	if cookie, err := r.Cookie(soap.SessionCookieName); err == nil {
		session, known = Map.SessionManager().getSession(cookie.Value)
	}
	if !known {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	for _, id := range []string{"Datastore.Browse", "Datastore.FileManagement"} {
		if !privileges.held(session.UserName, id) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
	}
	if r.URL.Query().Get("dcPath") == "" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	flat := path.Join(lab.datastore(r.URL.Query().Get("dsName")), strings.TrimPrefix(r.URL.Path, folderPrefix))
	if openByHost(flat) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if lab.settings.get().LogsLocked && logOpenBy(flat) != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	rule := faults.take(func(f *faultRule) bool { return f.Method == name })
	if rule == nil {
		s.ServeDatastore(w, r)
		return
	}
	time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
	if rule.Fault != "" {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if rule.Drop {
		w = &cutOff{ResponseWriter: w, left: 1000}
	}
	s.ServeDatastore(w, r)
}

// cutOff breaks the connection after so many bytes of the answer.
type cutOff struct {
	http.ResponseWriter
	left int
}

func (c *cutOff) Write(data []byte) (int, error) {
	if len(data) >= c.left {
		_, _ = c.ResponseWriter.Write(data[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(data)
	return c.ResponseWriter.Write(data)
}

// openByHost tells whether a running VM has the flat file in the chain of one of its disks.
func openByHost(flat string) bool {
	for _, e := range Map.All("VirtualMachine") {
		vm := e.(*VirtualMachine)
		open := false
		Map.WithLock(vm, func() {
			if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
				return
			}
			for _, device := range vm.Config.Hardware.Device {
				if b := flatBacking(device); b != nil && flatOf(b.FileName) == flat {
					open = true
				}
			}
		})
		if open {
			return true
		}
	}
	return false
}
