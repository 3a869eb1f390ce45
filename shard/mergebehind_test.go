package shard

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// behindMerge makes s7 and s8 on three stores and merges s8 into s7, which the returned store has missed: it is cut off,
// with its replica of s8 frozen.
func behindMerge(t *testing.T) (c *cluster, slow *testNode, wide *base.Descriptor) {
	c = newPair(t, 3, func(cfg *Config) {
		cfg.Compaction = Compaction{FloorBytes: 2 << 10, ShardCapBytes: 8 << 10, Factor: 1}
	})
	c.put(7, "b", "1")
	c.put(8, "p", "1")
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	slow = c.nodes[3]
	if c.leader(7) == slow {
		slow = c.nodes[2]
	}
	c.net.Isolate(slow.id)
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	return c, slow, res.d
}

// outgrow writes until the log of a shard begins above what a store has of it.
func (c *cluster) outgrow(shard base.ShardID, key string, slow *testNode) {
	c.t.Helper()
	for i := range 40 {
		c.put(shard, key, strings.Repeat("v", 1000)+fmt.Sprint(i))
	}
	c.until("the log has moved on", func() bool {
		st, _ := c.leader(shard).store.Status(shard)
		last, ok := slow.store.Status(shard)
		return !ok && st.FirstIndex > engine.InitialIndex+1 || ok && st.FirstIndex > last.LastIndex+1
	})
}

// TestAStoreBehindAMergeAndASplitOfWhatItMadeCatchesUp: the wide shard is divided inside what was the right one, so that
// no snapshot covers the frozen replica of that as a whole.
func TestAStoreBehindAMergeAndASplitOfWhatItMadeCatchesUp(t *testing.T) {
	for _, at := range []string{"d", "m", "q"} {
		t.Run("at "+at, func(t *testing.T) {
			c, slow, _ := behindMerge(t)
			if res := c.splitOutcome(c.split(c.leader(7), 7, side(9, at))); res.err != nil {
				t.Fatal(res.err)
			}
			c.until("s9 is led", func() bool { return c.leader(9) != nil })
			c.outgrow(7, "b", slow)
			c.net.HealAll()
			var removals sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			t.Cleanup(func() { // before the stores close
				cancel()
				removals.Wait()
			})
			behind := func() bool {
				d, ok := slow.store.Descriptor(7)
				_, right := slow.store.Descriptor(9)
				return !ok || string(d.End) != "\x02"+at || !right || slow.store.lookup(8) != nil
			}
			for i := 0; i < 600 && behind(); i++ {
				c.tick()
				// As the node does about orphans, whose shard other stores know to be merged away.
				for _, o := range slow.store.Orphans() {
					if o.Shard == 8 {
						removals.Go(func() { _ = slow.store.RemoveMerged(ctx, 8, o.Replica) })
					}
				}
			}
			if behind() {
				d, _ := slow.store.Descriptor(7)
				t.Fatalf("s7 is %v, s8 %v, s9 %v", d, slow.store.lookup(8), slow.store.lookup(9))
			}
			owner := func(key string) base.ShardID {
				if key >= at {
					return 9
				}
				return 7
			}
			for _, key := range []string{"c", "p", "x"} {
				c.put(owner(key), key, "2")
				c.everywhere(owner(key), key, "2")
			}
			c.noFaults()
		})
	}
}

// TestASnapshotDoesNotTakeWhatAMergeInTheLogNeeds: a shard that was split off the wide one covers the frozen replica, but
// the left one's log still comes to the merge here.
func TestASnapshotDoesNotTakeWhatAMergeInTheLogNeeds(t *testing.T) {
	c, slow, _ := behindMerge(t)
	if res := c.splitOutcome(c.split(c.leader(7), 7, side(9, "m"))); res.err != nil {
		t.Fatal(res.err)
	}
	c.until("s9 is led", func() bool { return c.leader(9) != nil })
	c.outgrow(9, "y", slow)
	c.net.HealAll()
	c.without(7) // its appends are late
	for range 300 {
		c.tick()
	}
	c.without()
	c.until("it has caught up", func() bool {
		d, ok := slow.store.Descriptor(7)
		return len(slow.faults) > 0 || ok && string(d.End) == "\x02m" && d.Epoch.Version > 2 && slow.store.serving(9) != nil
	})
	c.noFaults()
	c.put(9, "x", "2")
	c.everywhere(9, "x", "2")
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
}
