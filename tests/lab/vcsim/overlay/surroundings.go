package simulator

import (
	"encoding/json"
	"net/http"

	"github.com/vmware/govmomi/vim25/types"
)

type surroundingsOrder struct {
	User      string   `json:"user"`
	Denied    []string `json:"denied"` // privileges that the user lacks from now on, and no others
	Datastore string   `json:"datastore"`
	Kind      string   `json:"kind"` // summary.type
	FreeBytes *int64   `json:"free_bytes"`
	Edition   string   `json:"edition"` // of every host's licence
	Version   string   `json:"version"` // of every host
}

// Surroundings takes orders about what is around the VMs: privileges, datastores, licences, versions.
func Surroundings(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/surroundings" {
			next.ServeHTTP(w, r)
			return
		}
		var o surroundingsOrder
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(err.Error())
			return
		}
		if o.User != "" {
			privileges.deny(o.User, o.Denied)
		}
		if ds := lab.stores[o.Datastore]; ds != nil {
			Map.WithLock(ds, func() {
				if o.Kind != "" {
					ds.Summary.Type = o.Kind
				}
				if o.FreeBytes != nil {
					ds.Summary.FreeSpace = *o.FreeBytes
				}
			})
		}
		if o.Edition != "" {
			EvalLicense.EditionKey = o.Edition
		}
		if o.Version != "" {
			for _, e := range Map.All("HostSystem") {
				host := e.(*HostSystem)
				Map.WithLock(host, func() {
					config := types.HostConfigInfo{}
					if host.Config != nil {
						config = *host.Config
					}
					config.Product.Version = o.Version
					host.Config = &config
				})
			}
		}
		_ = json.NewEncoder(w).Encode(nil)
	})
}
