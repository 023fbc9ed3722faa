package api

import (
	"strings"
	"testing"
)

// A copy outside its record is told of by its workload and by its node, with what to
// do, and by no other.
func TestStraysAreExplained(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	w.store.faults["STRAY_web.hv1"] = map[string]string{"first_time": "2026-01-02 03:04:05", "status": "new", "delta": "50",
		"message": "workload web has a copy on node hv1, where its record has none (chain: hv2), and it could not be stopped for 15s"}
	for _, what := range []string{"web", "hv1"} {
		e := decode[Explanation](t, second(w.get("/api/v1/explain/"+what)))
		all := strings.Join(append(append([]string{e.Why}, e.Evidence...), e.Missing...), "\n")
		for _, want := range []string{"fault STRAY_web.hv1, since 2026-01-02 03:04:05: workload web has a copy on node hv1", "end it there, or have the node's power taken (`pvc fence now hv1`)"} {
			if strings.Count(all, want) != 1 {
				t.Errorf("%s: %q is told %d times in\n%s", what, want, strings.Count(all, want), all)
			}
		}
		if strings.Contains(e.Why, "nothing is missing") || !strings.Contains(e.Why, "record") {
			t.Errorf("%s: why: %s", what, e.Why)
		}
	}
	for _, what := range []string{"cache", "hv2", "primary"} {
		if _, body := w.get("/api/v1/explain/" + what); strings.Contains(body, "STRAY_") {
			t.Errorf("%s: %s", what, body)
		}
	}
	if _, body := w.get("/api/v1/faults/STRAY_web.hv1"); !strings.Contains(body, "node hv1") || !strings.Contains(body, `"health_delta":50`) {
		t.Errorf("the fault: %s", body)
	}
}
