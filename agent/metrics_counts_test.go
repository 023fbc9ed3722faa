package agent

import (
	"errors"
	"testing"

	"pvc.internal/cluster"
)

// A fence counts once, by how it ended; one that did not run under its refusal.
func TestFencesAreCountedByTheirEnd(t *testing.T) {
	var c fenceCounts
	if ends, codes := c.read(); len(ends)+len(codes) != 0 {
		t.Errorf("%v, %v", ends, codes)
	}
	c.add(cluster.FenceDone, nil, nil)
	c.add(cluster.FenceVerify, nil, errors.New("the role is over"))
	c.add("", &cluster.Refusal{Code: cluster.RefuseNoQuorum}, nil)
	c.add("", &cluster.Refusal{Code: cluster.RefuseNoQuorum}, nil)
	ends, codes := c.read()
	if len(ends) != 3 || ends["done"] != 1 || ends["failed"] != 1 || ends["refused"] != 2 || len(codes) != 1 || codes[cluster.RefuseNoQuorum] != 2 {
		t.Errorf("%v, %v", ends, codes)
	}
}
