package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// A workload that no order could carry is refused where it is added, and where it is
// changed, with the bound; one that just fits is taken.
func TestAWorkloadThatIsTooLarge(t *testing.T) {
	params := func(bytes int) string {
		all := map[string]string{}
		for i := 0; bytes > 0; i++ {
			n := min(bytes, cluster.MaxWorkloadParam)
			all[fmt.Sprintf("p%02d", i)] = strings.Repeat("v", n)
			bytes -= n
		}
		raw, _ := json.Marshal(all)
		return url.QueryEscape(string(raw))
	}
	bound := fmt.Sprint(cluster.MaxWorkloadBytes)
	w := newWorld(t)
	w.leased()
	if status, body := w.post(workloadsPath, "name=big&driver=exec&params="+params(cluster.MaxWorkloadBytes)); status != 400 || !strings.Contains(body, bound) || !strings.Contains(body, "files on the nodes") || w.store.commits != 0 {
		t.Errorf("added: %d %s, %d writes", status, body, w.store.commits)
	}
	if status, body := w.post(workloadsPath, "name=fits&driver=exec&params="+params(cluster.MaxWorkloadBytes-1024)); status != 202 {
		t.Fatalf("one that fits: %d %.300s", status, body)
	}
	if status, body := w.do("PUT", workloadsPath+"/fits", "application/x-www-form-urlencoded", "params="+url.QueryEscape(`{"more":"`+strings.Repeat("v", 2048)+`"}`)); status != 400 || !strings.Contains(body, bound) {
		t.Errorf("changed: %d %.300s", status, body)
	}
	if _, more := w.record("fits").Params["more"]; more {
		t.Error("it was written all the same")
	}
}
