package sandbox

import (
	"errors"
	"io"
	"testing"
)

func TestAnotherProcessAsksAndEndsASandbox(t *testing.T) {
	s := bareSandbox(t, 1)
	served := make(chan error, 1)
	go func() { served <- s.ServeControl(t.Context(), func() {}) }()
	var r *Remote
	until(t, "the control socket", func() bool {
		var err error
		r, err = Find(s.Dir())
		return err == nil
	})
	st, err := r.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Nodes) != 1 || !st.Nodes[0].Powered || st.Leader != "hv1" {
		t.Errorf("status %+v, want hv1 powered and leading its ensemble", st)
	}
	if _, err := r.Run(t.Context(), ScriptRequest{Faults: []string{"earthquake"}}, io.Discard); err == nil {
		t.Error("a fault that does not exist was run")
	}
	if _, err := r.order(t.Context(), controlRequest{Op: "down"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("ended with %v", err)
	}
	if _, err := Find(s.Dir()); !errors.Is(err, ErrDown) {
		t.Errorf("after down: %v, want ErrDown", err)
	}
}
