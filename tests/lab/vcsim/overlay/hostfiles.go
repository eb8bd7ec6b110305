package simulator

import (
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"path"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ticketBook holds what was granted and not used yet, by the ticket: the method and the address.
type ticketBook struct {
	sync.Mutex
	granted map[string]string
}

var tickets = &ticketBook{granted: map[string]string{}}

func (b *ticketBook) grant(method, address string) string {
	b.Lock()
	defer b.Unlock()
	id := uuid.New().String()
	b.granted[id] = method + " " + address
	return id
}

// take tells whether the ticket is for this, and ends it in any case.
func (b *ticketBook) take(id, method, address string) bool {
	b.Lock()
	defer b.Unlock()
	granted, known := b.granted[id]
	delete(b.granted, id)
	return known && granted == method+" "+address
}

// AcquireGenericServiceTicket stands in the place of the simulator's own, whose tickets are for nothing.
func (s *SessionManager) AcquireGenericServiceTicket(ctx *Context, req *types.AcquireGenericServiceTicket) soap.HasFault {
	body := &methods.AcquireGenericServiceTicketBody{}
	spec, ok := req.Spec.(*types.SessionManagerHttpServiceRequestSpec)
	if !ok || !strings.HasPrefix(spec.Method, "http") {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "spec"})
		return body
	}
	u, err := url.Parse(spec.Url)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		body.Fault_ = Fault("", &types.InvalidArgument{InvalidProperty: "spec.url"})
		return body
	}
	ticket := types.SessionManagerGenericServiceTicket{
		Id: tickets.grant(strings.ToUpper(strings.TrimPrefix(spec.Method, "http")), spec.Url), HostName: "localhost.localdomain",
	}
	for _, host := range sortedHosts() {
		if host.Name == u.Hostname() {
			ticket.SslThumbprint = lab.settings.get().TicketThumbprint
			if ticket.SslThumbprint == "" {
				ticket.SslThumbprint = host.Summary.Config.SslThumbprint
			}
			if ticket.SslThumbprint == "none" {
				ticket.SslThumbprint = ""
			}
		}
	}
	body.Res = &types.AcquireGenericServiceTicketResponse{Returnval: ticket}
	return body
}

func sortedHosts() []*HostSystem {
	var hosts []*HostSystem
	for _, e := range Map.All("HostSystem") {
		hosts = append(hosts, e.(*HostSystem))
	}
	sort.Slice(hosts, func(i, j int) bool { return hosts[i].Self.Value < hosts[j].Self.Value })
	return hosts
}

// addressHosts names each host by an address of loopback of its own, as hosts are that were added by their address.
func addressHosts() {
	for i, host := range sortedHosts() {
		host.Name = fmt.Sprintf("127.0.0.%d", i+2)
		host.Summary.Config.Name = host.Name
	}
}

// ServeHosts lets each host that was named by its address serve its files, all at the same port, which it answers.
func ServeHosts(certificate tls.Certificate, thumbprint string) (int, error) {
	listeners, err := listenSame()
	if err != nil {
		return 0, err
	}
	for i, host := range sortedHosts() {
		host.Summary.Config.SslThumbprint = thumbprint
		server := &http.Server{
			Handler:   &hostFiles{host, listeners[i].Addr().String()},
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
			ErrorLog:  log.Default(),
		}
		go func(l net.Listener) { _ = server.ServeTLS(l, "", "") }(listeners[i])
	}
	return listeners[0].Addr().(*net.TCPAddr).Port, nil
}

// listenSame listens at each host's address, at one port that is free at all of them.
func listenSame() ([]net.Listener, error) {
	var err error
	for tries := 0; tries < 50; tries++ {
		var listeners []net.Listener
		port := "0"
		for _, host := range sortedHosts() {
			var l net.Listener
			if l, err = net.Listen("tcp", net.JoinHostPort(host.Name, port)); err != nil {
				break
			}
			listeners = append(listeners, l)
			port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
		}
		if err == nil {
			return listeners, nil
		}
		for _, l := range listeners {
			_ = l.Close()
		}
	}
	return nil, err
}

// hostFiles is /folder of one host, which knows tickets and no login.
type hostFiles struct {
	host    *HostSystem
	address string
}

func (h *hostFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.Method + " /folder at " + h.host.Name
	faults.Lock()
	faults.calls[name]++
	faults.Unlock()
	if rule := faults.take(func(f *faultRule) bool { return f.Method == name }); rule != nil {
		time.Sleep(time.Duration(rule.DelayMS) * time.Millisecond)
		if rule.Fault != "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if rule.Drop {
			w = &cutOff{ResponseWriter: w, left: 100}
		}
	}
	cookie, err := r.Cookie("vmware_cgi_ticket")
	if err != nil || !tickets.take(cookie.Value, r.Method, "https://"+h.address+r.URL.RequestURI()) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	query := r.URL.Query()
	ds := lab.stores[query.Get("dsName")]
	if r.Method != http.MethodGet || ds == nil || !mountedOn(ds, h.host) || query.Get("dcPath") != "ha-datacenter" {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	file := path.Join(lab.datastore(ds.Name), strings.TrimPrefix(r.URL.Path, folderPrefix))
	if by := logOpenBy(file); by != nil && *by != h.host.Self {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	http.ServeFile(w, r, file)
}

// logOpenBy is the host whose running VM has the file as its log.
func logOpenBy(file string) *types.ManagedObjectReference {
	for _, e := range Map.All("VirtualMachine") {
		vm := e.(*VirtualMachine)
		var by *types.ManagedObjectReference
		Map.WithLock(vm, func() {
			if vm.log == file && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
				by = vm.Runtime.Host
			}
		})
		if by != nil {
			return by
		}
	}
	return nil
}
