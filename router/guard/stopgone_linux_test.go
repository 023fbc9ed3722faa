package guard

import (
	"context"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A stop is carried through though its caller leaves: in order, as long as its own time
// lasts, and then the copy is forgotten and can be started anew.
func TestAStopGoesOnWithoutItsCaller(t *testing.T) {
	c, _ := newCopies(t, 10*time.Minute)
	hook := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Env: []string{"DIR=" + c.dir}, StopTimeout: 10 * time.Minute,
		Command: []string{"/bin/sh", "-c", `cd $DIR; trap 'echo >stopping; while [ -e hang ]; do sleep 0.05; done; echo >saved; exit 0' TERM; echo >ready; while :; do sleep 0.05; done`},
		Check:   []string{"test", "-e", c.file("ready")}, StartTimeout: patience}
	actions := c.agent("copy-web")
	actions.Stop = []string{"/bin/sh", "-c", `cd $DIR; echo >stopping; while [ -e hang ]; do sleep 0.05; done; rm -f up; echo >saved`}
	actions.StopTimeout = 10 * time.Minute
	for _, spec := range []cluster.ServiceSpec{hook, actions} {
		for _, name := range []string{"stopping", "saved", "ready"} {
			c.remove(name)
		}
		c.mustStart(spec)
		c.touch("hang")
		ctx, leave := context.WithCancel(context.Background())
		left := make(chan error, 1)
		go func() { left <- c.client.StopCopy(ctx, may(77), spec.Name) }()
		c.eventually(patience, "its stop runs", func() bool { return c.there("stopping") })
		leave()
		if err := <-left; err == nil {
			t.Errorf("%s: a stop whose caller has left is said to be done", spec.Name)
		}
		pause(100 * time.Millisecond) // in which it could be killed
		if s, held := c.held(spec.Name); !held || c.there("saved") {
			t.Errorf("%s: while it is being stopped: %+v, over %v", spec.Name, s, c.there("saved"))
		}
		c.remove("hang")
		c.eventually(patience, "it is stopped in order and forgotten", func() bool {
			_, held := c.held(spec.Name)
			return !held && c.there("saved")
		})
		c.mustStart(spec)
		if err := c.stopCopy(spec.Name); err != nil {
			t.Errorf("%s: stopped again: %v", spec.Name, err)
		}
	}
}
