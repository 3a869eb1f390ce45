package shard

import (
	"testing"
)

// changed says which of the shards of a store may have changed.
func (n *testNode) changed() (shards []uint64, gone int) {
	sums, ended := n.store.Changed()
	for i := range sums {
		shards = append(shards, uint64(sums[i].Shard))
	}
	return shards, len(ended)
}

func TestAReplicaThatSleepsAndDoesNothingIsNoNewsUntilItIsUsed(t *testing.T) {
	c, lead := liveShard(t, nil)
	if got, _ := lead.changed(); len(got) != 1 || got[0] != 7 {
		t.Fatalf("the first time shards %v are told, want 7", got)
	}
	c.untilAsleep(7)
	// told is in how many of so many ticks the shard is told. The looks at its size that are due now and then count.
	told := func(ticks int) (n int) {
		for range ticks {
			c.tick()
			got, gone := lead.changed()
			n += len(got) + gone
		}
		return n
	}
	told(1000) // the load of its beginning has faded
	if n := told(1000); n > 5 {
		t.Fatalf("a shard that nothing happens to is told in %d of 1000 ticks", n)
	}
	c.mustReadNow(lead, 7, "a", "1")
	if got, _ := lead.changed(); len(got) != 1 {
		t.Fatalf("after a read, which wakes nobody, shards %v are told, want 7", got)
	}
	if n := told(1000); n < 100 || n > 900 {
		t.Fatalf("a shard that was read is told in %d of 1000 ticks, want until its load has faded", n)
	}
	c.put(7, "a", "2")
	sums, _ := lead.store.Changed()
	if len(sums) != 1 || sums[0].Load.Writes == 0 && sums[0].Stats.PutBytes == 0 {
		t.Fatalf("after a write %+v is told", sums)
	}
}

// What is reported of a fault before the worker has come by is not the last word.
func TestNewsOfASleepingLeaderThatIsFaultedEndsWithThatItDoesNotLead(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	r := lead.store.lookup(7)
	for r.noted.Load() { // its load fades
		c.tick()
		lead.changed()
	}
	lead.store.fault(r, "as by a damaged disk", nil)
	sums, _ := lead.store.Changed()
	if len(sums) != 1 || sums[0].Faulted == "" || !sums[0].Leads {
		t.Fatalf("before the worker has come by %+v is told", sums)
	}
	lead.store.pool.Enqueue(7)
	c.settle()
	if sums, _ = lead.store.Changed(); len(sums) != 1 || sums[0].Leads {
		t.Fatalf("behind the worker's visit %+v is told", sums)
	}
	lead.faults = nil
}
