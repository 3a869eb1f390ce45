package shard

import (
	"errors"
	"testing"
)

// TestARecoveryKeepsAMergeThatIsInTheLog: with what was acknowledged behind it. The right shard made new first would no
// longer be what the merge names.
func TestARecoveryKeepsAMergeThatIsInTheLog(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(7, "b", "1")
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	c.tellNothingCommitted(7)
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.put(7, "b", "2")
	c.put(7, "x", "2")
	n := c.nodes[3]
	c.until("store 3 has it all in its log", func() bool {
		have, _ := n.store.Status(7)
		want, _ := c.nodes[1].store.Status(7)
		return have.LastIndex == want.LastIndex
	})
	left, _ := n.store.Descriptor(7)
	right, here := n.store.Descriptor(8)
	if !here || left.Epoch != cmd.Epoch {
		t.Fatalf("store 3 has come to the merge: %s", left)
	}
	c.lose(1, 2)
	for range 30 {
		c.tick()
	}
	var refused *RecoverError
	if err := c.recover(n, renewed(right, 3), 100); !errors.As(err, &refused) {
		t.Fatalf("the right shard is made new under the merge: %v", err)
	}
	// The first attempt settles the log, and then sees that it was made for another range.
	if err := c.recover(n, renewed(left, 3), 100); !errors.As(err, &refused) {
		t.Fatal(err)
	}
	wide, _ := n.store.Descriptor(7)
	if wide.Epoch != res.d.Epoch || n.store.lookup(8) != nil {
		t.Fatalf("not merged: %s", wide)
	}
	if err := c.recover(n, renewed(wide, 3), 100); err != nil {
		t.Fatal(err)
	}
	c.until("it leads", func() bool { return c.leader(7) == n })
	c.mustGet(7, "b", "2")
	c.mustGet(7, "x", "2")
	c.noFaults()
}
