package shard

import (
	"context"
	"testing"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Of most tests here: s7 [a, m) is L, s8 [m, z) is R.
func newPair(t *testing.T, stores int, tune func(*Config)) *cluster {
	t.Helper()
	c := newCluster(t, stores, tune)
	var all []base.StoreID
	for i := range stores {
		all = append(all, base.StoreID(i+1))
	}
	c.create(desc(7, "a", "m", all...))
	c.create(desc(8, "m", "z", all...))
	return c
}

// boundaryResult is what a boundary command came to.
type boundaryResult struct {
	d     *base.Descriptor
	index uint64
	out   MergeOutcome
	err   error
}

// mergeOutcome waits for one, moving what can move without a tick.
func (c *cluster) mergeOutcome(what string, ch <-chan boundaryResult) boundaryResult {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		select {
		case res := <-ch:
			return res
		case <-time.After(time.Millisecond):
			c.settle()
		}
	}
	c.t.Fatalf("%s: no outcome within a minute", what)
	return boundaryResult{}
}

// soon waits for what a goroutine has been asked to begin, without a tick.
func (c *cluster) soon(what string, cond func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if c.settle(); cond() {
			return
		}
	}
	c.t.Fatalf("%s: not within a minute", what)
}

func async(f func() boundaryResult) <-chan boundaryResult {
	ch := make(chan boundaryResult, 1)
	go func() { ch <- f() }()
	return ch
}

// freezeOf builds the Freeze of a merge as a store sees the two shards.
func freezeOf(n *testNode, id uint64, right, left base.ShardID) wire.Freeze {
	r, _ := n.store.Descriptor(right)
	l, _ := n.store.Descriptor(left)
	return wire.Freeze{ID: id, Into: left, IntoEpoch: l.Epoch, Epoch: r.Epoch}
}

func (c *cluster) freeze(n *testNode, right base.ShardID, f wire.Freeze) <-chan boundaryResult {
	store := n.store // a crash takes it from n
	return async(func() boundaryResult {
		index, d, err := store.Freeze(context.Background(), right, f)
		return boundaryResult{d: d, index: index, err: err}
	})
}

func (c *cluster) commitMerge(n *testNode, left base.ShardID, m *wire.CommitMerge) <-chan boundaryResult {
	store := n.store // a crash takes it from n
	return async(func() boundaryResult {
		d, err := store.CommitMerge(context.Background(), left, m)
		return boundaryResult{d: d, err: err}
	})
}

func (c *cluster) abortMerge(n *testNode, left base.ShardID, a wire.AbortMerge) <-chan boundaryResult {
	store := n.store // a crash takes it from n
	return async(func() boundaryResult {
		out, err := store.AbortMerge(context.Background(), left, a)
		return boundaryResult{out: out, err: err}
	})
}

// mustFreeze freezes a shard and waits until every live replica of it confirms; it returns what commits the merge.
func (c *cluster) mustFreeze(id uint64, right, left base.ShardID) *wire.CommitMerge {
	c.t.Helper()
	n := c.leader(right)
	if n == nil {
		c.t.Fatalf("%s has no leader", right)
	}
	f := freezeOf(n, id, right, left)
	res := c.mergeOutcome("freeze", c.freeze(n, right, f))
	if res.err != nil {
		c.t.Fatal(res.err)
	}
	c.until("every replica confirms", func() bool { return c.confirmed(right, id, res.index) })
	return &wire.CommitMerge{ID: id, Epoch: f.IntoEpoch, Frozen: res.index, Right: res.d}
}

func (c *cluster) confirmed(shard base.ShardID, id, index uint64) bool {
	all := true
	c.each(func(n *testNode) {
		if st, err := n.store.MergeState(shard); err != nil || !st.Confirms(id, index) {
			all = false
		}
	})
	return all
}

// mustMerge merges two shards, and waits until every live store has come to it.
func (c *cluster) mustMerge(id uint64, right, left base.ShardID) *base.Descriptor {
	c.t.Helper()
	cmd := c.mustFreeze(id, right, left)
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(left), left, cmd))
	if res.err != nil {
		c.t.Fatal(res.err)
	}
	c.untilMerged(right, res.d)
	return res.d
}

// untilMerged waits until every live store knows the merged shard and has nothing of the other but its mark.
func (c *cluster) untilMerged(right base.ShardID, wide *base.Descriptor) {
	c.t.Helper()
	c.until("merged everywhere", func() bool {
		all := true
		c.each(func(n *testNode) {
			d, ok := n.store.Descriptor(wide.Shard)
			if !ok || wide.Epoch.Newer(d.Epoch) || n.store.lookup(right) != nil {
				all = false
			}
		})
		return all
	})
	c.each(func(n *testNode) {
		if m, _, err := n.eng.Mark(right); err != nil || m != (engine.ReplicaMark{NextReplicaID: engine.MergedAway}) {
			c.t.Errorf("%s: mark of %s is %+v, %v", n.id, right, m, err)
		}
	})
}

// untilThawed waits until no live replica of a shard is frozen.
func (c *cluster) untilThawed(shard base.ShardID) {
	c.t.Helper()
	c.until("thawed", func() bool {
		all := true
		c.each(func(n *testNode) {
			if st, err := n.store.MergeState(shard); err != nil || st.Freeze != nil {
				all = false
			}
		})
		return all
	})
}

// noFaults fails if a replica has stopped anywhere.
func (c *cluster) noFaults() {
	c.t.Helper()
	c.each(func(n *testNode) {
		if len(n.faults) > 0 {
			c.t.Errorf("%s: %v", n.id, n.faults)
		}
	})
}

func TestAMergeTakesInRangeDataStampsAndStatistics(t *testing.T) {
	merged := map[base.StoreID]int{}
	c := newPair(t, 3, func(cfg *Config) {
		id := cfg.Store
		cfg.OnMerge = func(left *base.Descriptor, right base.ShardID) {
			if right == 8 && string(left.End) == "\x02z" {
				merged[id]++
			}
		}
	})
	c.put(7, "b", "left")
	for range 5 {
		c.put(8, "x", "right")
	}
	last := c.put(8, "y", "right").Arg
	d := c.mustMerge(77, 8, 7)
	if want := "s7[0261,027a) 1.2 (n1/1 n2/2 n3/3)"; d.String() != want {
		t.Fatalf("merged to %s, want %s", d, want)
	}
	c.mustGet(7, "b", "left")
	c.mustGet(7, "x", "right")
	if a := c.put(7, "y", "new"); a.Arg <= last {
		t.Errorf("version %d after %d", a.Arg, last)
	}
	c.everywhere(7, "y", "new")
	c.each(func(n *testNode) {
		st, _ := n.store.Status(7)
		if st.Stats.PutOps != 8 {
			t.Errorf("%s: statistics %+v", n.id, st.Stats)
		}
		out, err := n.store.MergeDecision(7, 77, base.Epoch{ConfVer: 1, Version: 1})
		if out != apply.MergeCommitted || err != nil || merged[n.id] != 1 {
			t.Errorf("%s: %s, %v, told %d times", n.id, out, err, merged[n.id])
		}
	})
	c.noFaults()
	for _, id := range c.ids() { // and again from disk
		n := c.nodes[id]
		c.crash(n, 0)
		c.start(n)
	}
	c.until("a leader again", func() bool { return c.leader(7) != nil })
	c.mustGet(7, "x", "right")
	c.mustGet(7, "y", "new")
}

func TestAFrozenShardRefusesReadsWritesAndChangesUntilItIsThawed(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(8, "x", "old")
	lead := c.leader(8)
	a := newAnswers(t)
	// Confirmed and queued reads, and a write in the queue, meet the freeze.
	cmd := c.mustFreeze(1, 8, 7)
	w := c.write(lead, op(wire.OpPut, 8, "x", "new"), a, 0)
	r := c.readIndex(lead, 8, a, 0)
	c.settle()
	for _, req := range []uint64{w, r} {
		if ans, ok := a.of(req); !ok || ans.Code != wire.Busy || ans.Arg == 0 {
			t.Fatalf("request %d: %t %s", req, ok, ans.Code)
		}
	}
	c.each(func(n *testNode) {
		get, scan := op(wire.OpGet, 8, "x", ""), op(wire.OpScan, 8, "m", string(base.UserKey([]byte("z"))))
		for _, o := range []wire.Op{get, scan} {
			var ans wire.Answer
			if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &ans); err != nil || ans.Code != wire.Busy {
				t.Errorf("%s on %s: %s, %v", o.Code, n.id, ans.Code, err)
			}
		}
	})
	if res := c.splitOutcome(c.split(lead, 8, side(9, "q"))); res.err == nil {
		t.Error("a frozen shard was split")
	}
	change := async(func() boundaryResult {
		_, err := lead.store.ChangeReplicas(context.Background(), 8, 0, []ReplicaChange{{Op: Demote, Store: 3}})
		return boundaryResult{err: err}
	})
	if res := c.mergeOutcome("change", change); res.err == nil {
		t.Error("the replicas of a frozen shard were changed")
	}
	// L is not frozen.
	c.put(7, "b", "1")
	if res := c.mergeOutcome("abort", c.abortMerge(c.leader(7), 7, wire.AbortMerge{ID: 1, Right: 8, Epoch: cmd.Epoch})); res.out != apply.MergeAborted {
		t.Fatal(res)
	}
	// L's replica beside R's leader wakes that one: no tick is needed.
	c.settle()
	c.each(func(n *testNode) {
		if st, _ := n.store.MergeState(8); st.Freeze != nil {
			t.Errorf("%s is still frozen: %+v", n.id, st.Freeze)
		}
	})
	c.mustGet(8, "x", "old")
	c.put(8, "x", "new")
	c.everywhere(8, "x", "new")
	c.noFaults()
}
