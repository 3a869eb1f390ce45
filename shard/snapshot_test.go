package shard

import (
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestANewLearnerGetsASnapshotAndCatchesUp(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	for _, k := range []string{"a", "b", "c"} {
		c.put(7, k, "v"+k)
	}
	r := c.learner(7, 4)
	if r.id != 4 {
		t.Fatalf("replica %d", r.id)
	}
	c.put(7, "d", "vd")
	for _, k := range []string{"a", "b", "c", "d"} {
		c.everywhere(7, k, "v"+k)
	}
	d, _ := c.nodes[4].store.Descriptor(7)
	if rep, ok := d.ReplicaOn(4); !ok || rep.Role != base.RoleLearner {
		t.Fatalf("descriptor %s", d)
	}
	// It goes on after a restart, from the log alone.
	c.crash(c.nodes[4], 0)
	c.put(7, "e", "ve")
	c.start(c.nodes[4])
	c.everywhere(7, "e", "ve")
}
