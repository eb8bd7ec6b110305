package simulator

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
)

// CheckLogin is for the REST side, which the simulator leaves open to any password.
func CheckLogin(user, password string) bool {
	known := user == lab.user || user == lab.admin || user == lab.viewer
	return known && subtle.ConstantTimeCompare([]byte(password), []byte(lab.password)) == 1
}

// modern serves the tagging API under /api, as vCenter does since 7.0, on top of the simulator's older /rest: other
// paths, "action" for "~action", and answers without their "value" around them.
func modern(next http.Handler, w http.ResponseWriter, r *http.Request) {
	old := r.Clone(r.Context())
	created := false
	switch p := r.URL.Path; {
	case p == "/api/session":
		old.URL.Path = "/rest/com/vmware/cis/session"
		created = r.Method == http.MethodPost
	case strings.HasPrefix(p, "/api/cis/tagging/"):
		parts := strings.Split(strings.TrimPrefix(p, "/api/cis/tagging/"), "/")
		if len(parts) > 1 {
			parts[1] = "id:" + parts[1]
		}
		old.URL.Path = "/rest/com/vmware/cis/tagging/" + strings.Join(parts, "/")
		created = r.Method == http.MethodPost && len(parts) == 1 && parts[0] != "tag-association"
	default:
		http.NotFound(w, r)
		return
	}
	if action := r.URL.Query().Get("action"); action != "" {
		old.URL.RawQuery = "~action=" + action
	}
	if created && r.URL.Path != "/api/session" {
		body, _ := io.ReadAll(r.Body)
		wrapped, _ := json.Marshal(map[string]json.RawMessage{"create_spec": body})
		old.Body = io.NopCloser(bytes.NewReader(wrapped))
		old.ContentLength = int64(len(wrapped))
	}
	answer := httptest.NewRecorder()
	next.ServeHTTP(answer, old)
	var envelope struct {
		Value json.RawMessage `json:"value"`
	}
	_ = json.Unmarshal(answer.Body.Bytes(), &envelope)
	status := answer.Code
	w.Header().Set("Content-Type", "application/json")
	switch {
	case status != http.StatusOK:
		w.WriteHeader(status)
	case len(envelope.Value) == 0 || string(envelope.Value) == "null" && r.Method != http.MethodGet && !strings.Contains(r.URL.RawQuery, "list"):
		w.WriteHeader(http.StatusNoContent)
	case string(envelope.Value) == "null":
		_, _ = w.Write([]byte("[]"))
	case created:
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(envelope.Value)
	default:
		_, _ = w.Write(envelope.Value)
	}
}
