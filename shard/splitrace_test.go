package shard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestASplitIsRefusedBeforeItReachesTheLog(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.create(desc(7, "b", "y", 1, 2))
	c.put(7, "x", "1")
	lead := c.leader(7)
	follower := c.nodes[3-lead.id]
	before, _ := lead.store.Status(7)
	many := make([]SplitSide, wire.MaxSplitRights+1)
	for i := range many {
		many[i] = SplitSide{ID: base.ShardID(100 + i), Start: base.UserKey(fmt.Appendf(nil, "m%03d", i))}
	}
	long := SplitSide{ID: 8, Start: base.UserKey(bytes.Repeat([]byte{'m'}, wire.MaxSplitBound))}
	for name, sides := range map[string][]SplitSide{
		"no key":             nil,
		"at the start":       {side(8, "b")},
		"at the end":         {side(8, "y")},
		"before":             {side(8, "a")},
		"not ascending":      {side(8, "m"), side(9, "k")},
		"the same key twice": {side(8, "m"), side(9, "m")},
		"one id twice":       {side(8, "k"), side(8, "m")},
		"its own id":         {side(7, "m")},
		"id 0":               {side(0, "m")},
		"shares":             {side(8, "k"), side(9, "m"), side(10, "o")},
		"too many":           many,
		"too long a key":     {long},
	} {
		var refused *BoundaryError
		if res := c.splitOutcome(c.split(lead, 7, sides...)); !errors.As(res.err, &refused) || refused.Retry {
			t.Errorf("%s: %v", name, res.err)
		}
	}
	var not *NotLeaderError
	if res := c.splitOutcome(c.split(follower, 7, side(8, "m"))); !errors.As(res.err, &not) || not.Leader != lead.id {
		t.Errorf("at a follower: %v", res.err)
	}
	if _, _, err := lead.store.Split(context.Background(), 99, base.Epoch{}, nil); !errors.As(err, new(*NotFoundError)) {
		t.Errorf("of no shard: %v", err)
	}
	if after, _ := lead.store.Status(7); after.LastIndex != before.LastIndex {
		t.Errorf("the log went from %d to %d", before.LastIndex, after.LastIndex)
	}
	c.mustSplit(7, side(8, "m"))
}

func TestTheMetaShardIsNeverSplit(t *testing.T) {
	c := newCluster(t, 1, nil)
	d := desc(base.MetaShard, "", "", 1)
	d.Start, d.End = base.SystemStart(), base.SystemEnd()
	c.create(d)
	var refused *BoundaryError
	res := c.splitOutcome(c.split(c.nodes[1], base.MetaShard, SplitSide{ID: 8, Start: []byte{base.SpaceSystem, 'm'}}))
	if !errors.As(res.err, &refused) || refused.Retry {
		t.Fatal(res.err)
	}
}

// TestASplitMakesAsManyShardsAsAsked in one step.
func TestASplitMakesAsManyShardsAsAsked(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "m050x", "1")
	var sides []SplitSide
	for i := range wire.MaxSplitRights {
		sides = append(sides, SplitSide{
			ID: base.ShardID(100 + i), Start: base.UserKey(fmt.Appendf(nil, "m%03d", i)), Share: 1_000_000 / 129,
		})
	}
	c.mustSplit(7, sides...)
	c.each(func(n *testNode) { checkTiles(t, n, "a", "z") })
	c.until("all led", func() bool {
		for i := range sides {
			if c.leader(sides[i].ID) == nil {
				return false
			}
		}
		return true
	})
	c.mustGet(150, "m050x", "1")
}

// checkTiles checks that the shards of a store cover a range of user keys without a gap or an overlap.
func checkTiles(t *testing.T, n *testNode, start, end string) {
	t.Helper()
	at := base.UserKey([]byte(start))
	n.store.mu.RLock()
	defer n.store.mu.RUnlock()
	shards := 0
	n.store.mu.ranges.overlapping(at, base.UserKey([]byte(end)), func(d *base.Descriptor) bool {
		if !bytes.Equal(d.Start, at) {
			t.Errorf("%s: %s should begin at %x", n.id, d, at)
		}
		at, shards = d.End, shards+1
		return true
	})
	if !bytes.Equal(at, base.UserKey([]byte(end))) || shards != len(n.store.mu.replicas) {
		t.Errorf("%s: %d of %d shards end at %x", n.id, shards, len(n.store.mu.replicas), at)
	}
}

// TestALearnerSplitsWithItsShard: it stays one on both sides.
func TestALearnerSplitsWithItsShard(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "x", "1")
	c.learner(7, 4)
	res := c.mustSplit(7, side(8, "m"))
	if want := "s8[026d,027a) 1.2 (n1/1 n2/2 n3/3 n4/4:learner)"; res.rights[0].String() != want {
		t.Fatalf("%s, want %s", res.rights[0], want)
	}
	c.until("s8 on n4", func() bool { return c.nodes[4].store.serving(8) != nil })
	c.put(8, "x", "2")
	c.put(7, "b", "2")
	c.everywhere(8, "x", "2")
	c.everywhere(7, "b", "2")
}

func TestASplitWaitsForItsTurn(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "x", "1")
	var refused *BoundaryError

	// A transfer under way.
	lead := c.leader(7)
	to := c.nodes[lead.id%3+1]
	c.net.Isolate(to.id)
	moved := c.transfer(lead, 7, to.id)
	c.drain()
	if res := c.splitOutcome(c.split(lead, 7, side(8, "m"))); !errors.As(res.err, &refused) || !refused.Retry {
		t.Fatalf("beside a transfer: %v", res.err)
	}
	c.outcome(moved)
	c.net.HealAll()
	c.until("a leader that takes proposals", func() bool {
		lead = c.leader(7)
		return lead != nil && lead.store.lookup(7).worker.rn.BasicStatus().LeadTransferee == 0
	})

	// A joint configuration, and a change behind the split in the same step.
	c.learner(7, 4)
	lead = c.leader(7)
	split := c.split(lead, 7, side(8, "m"))
	changed := c.change(lead, 7, 0, ReplicaChange{Op: Promote, Store: 4})
	res, out := c.splitOutcome(split), c.decided(changed)
	if res.err != nil || out.err != nil {
		t.Fatalf("split %v, change %v", res.err, out.err)
	}
	if out.d.Epoch.Version != 2 || len(out.d.Replicas) != 4 {
		t.Fatalf("the change led to %s", out.d)
	}
	c.until("out of joint", func() bool { return !isJoint(c.desc(7)) })
	if rep, _ := c.desc(8).ReplicaOn(4); rep.Role != base.RoleLearner {
		t.Fatalf("s8 is %s", c.desc(8))
	}
	c.put(7, "b", "2")
	c.put(8, "x", "2")
	c.everywhere(7, "b", "2")
	c.everywhere(8, "x", "2")
}

// TestASplitWhoseLeaderIsCutOffIsAmbiguous: the next leader may have it in its log, or not.
func TestASplitWhoseLeaderIsCutOffIsAmbiguous(t *testing.T) {
	for _, reaches := range []bool{false, true} {
		t.Run(fmt.Sprint("reaches the others ", reaches), func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.create(desc(7, "a", "z", 1, 2, 3))
			c.put(7, "x", "1")
			old := c.leader(7)
			if reaches { // appends get through, their answers do not
				c.each(func(n *testNode) {
					if n != old {
						n.filter(func(m *wire.RaftMessage) bool { return m.ToStore != old.id })
					}
				})
			} else {
				c.net.Isolate(old.id)
			}
			ch := c.split(old, 7, side(8, "m"))
			res := c.splitOutcome(ch)
			if !errors.Is(res.err, ErrAmbiguousBoundary) {
				t.Fatal(res.err)
			}
			if !reaches { // else the old leader, whose log is the longest, may win again, and commit the split
				c.until("another leader", func() bool { n := c.leader(7); return n != nil && n != old })
			}
			c.net.HealAll()
			c.without()
			c.until("led again", func() bool { return c.leader(7) != nil })
			c.put(7, "b", "2")
			c.everywhere(7, "b", "2")
			if got := c.desc(7).Epoch.Version == 2; got != reaches {
				t.Fatalf("s7 is %s", c.desc(7))
			}
			if reaches {
				c.until("s8 led", func() bool { return c.leader(8) != nil })
				c.put(8, "x", "2")
			} else {
				c.put(7, "x", "2")
			}
		})
	}
}

// TestAWriteBehindASplitIsSentOn: it is in the log already, with the version of before. The answer names both sides.
func TestAWriteBehindASplitIsSentOn(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "x", "1")
	lead := c.leader(7)
	split := c.split(lead, 7, side(8, "m"))
	a := newAnswers(t)
	left := c.write(lead, op(wire.OpPut, 7, "b", "2"), a, 0)
	right := c.write(lead, op(wire.OpPut, 7, "x", "2"), a, 0)
	read := c.readIndex(lead, 7, a, 0)
	if res := c.splitOutcome(split); res.err != nil {
		t.Fatal(res.err)
	}
	c.settle()
	for req, want := range map[uint64]int{left: 1, right: 2} {
		ans, _ := a.of(req)
		ds, err := wire.DecodeDescriptors(ans.Payload)
		if ans.Code != wire.EpochMismatch || err != nil || len(ds) != want || ds[0].Epoch.Version != 2 {
			t.Errorf("write behind the split: %s %v %v, want %d descriptors", ans.Code, ds, err, want)
		}
	}
	// A read that was confirmed in time is refused when it looks: the key may have a newer value by then.
	if ans, ok := a.of(read); !ok || ans.Code != wire.OK {
		t.Fatalf("read index: %t %s", ok, ans.Code)
	}
	o := op(wire.OpGet, 7, "x", "")
	var ans wire.Answer
	if _, err := wire.DecodeAnswer(lead.store.Read(&o, nil), &ans); err != nil || ans.Code != wire.EpochMismatch {
		t.Fatalf("read: %s %v", ans.Code, err)
	}
	c.mustGet(8, "x", "1")
}

// halted makes store 3's replica of shard 7 halt at a split that cannot go on, with a conf change behind it in the same
// Ready: another step holds shard 8. It returns what lets that go.
func halted(t *testing.T, tune func(*Config)) (c *cluster, n *testNode, release func()) {
	c = newCluster(t, 4, tune)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "x", "1")
	c.everywhere(7, "x", "1")
	c.leads(7, 1)
	n = c.nodes[3]
	op := newBoundary(nil, nil, 8)
	n.store.mu.Lock()
	n.store.reserveLocked(op)
	n.store.mu.Unlock()
	split := c.split(c.nodes[1], 7, side(8, "m"))
	changed := c.change(c.nodes[1], 7, 0, ReplicaChange{Op: AddLearner, Store: 4})
	if res, out := c.splitOutcome(split), c.decided(changed); res.err != nil || out.err != nil {
		t.Fatal(res.err, out.err)
	}
	r := n.store.lookup(7)
	c.until("n3 halts", func() bool { return r.handed.halted.Load() && r.worker.inflight && r.worker.synced })
	if d := r.desc.Load(); d.Epoch.Version != 1 {
		t.Fatalf("it went on: %s", d)
	}
	return c, n, func() { n.store.finish(op, nil) }
}

func TestASplitGoesOnWhenTheStepInItsWayHasEnded(t *testing.T) {
	c, n, release := halted(t, nil)
	release()
	c.until("both sides on n3", func() bool { return n.store.serving(8) != nil })
	c.put(7, "b", "2")
	c.put(8, "x", "2")
	c.everywhere(7, "b", "2")
	c.everywhere(8, "x", "2")
	c.idle(n)
}

// idle checks that nothing of apply is counted, halted or reserved any more.
func (c *cluster) idle(n *testNode) {
	c.t.Helper()
	c.settle()
	n.store.mu.RLock()
	defer n.store.mu.RUnlock()
	if used := n.store.used.apply.Load(); used != 0 || len(n.store.mu.busy) > 0 || len(n.faults) > 0 {
		c.t.Errorf("%s: %d bytes in apply, %d steps, faults %v", n.id, used, len(n.store.mu.busy), n.faults)
	}
	for _, r := range n.store.mu.replicas {
		if r.handed.halted.Load() || r.worker.still || r.parking.Load() {
			c.t.Errorf("%s stands still", r)
		}
	}
}

// TestARemovalTakesAReplicaThatHasHalted: the two wait for nothing of each other's, though the replica's Ready waits for
// a conf change behind the halt.
func TestARemovalTakesAReplicaThatHasHalted(t *testing.T) {
	c, n, release := halted(t, nil)
	c.without(7)
	proof := c.desc(7).Clone()
	for i, rep := range proof.Replicas {
		if rep.Store == n.id {
			proof.Replicas = append(proof.Replicas[:i], proof.Replicas[i+1:]...)
			break
		}
	}
	if err := c.removeReplica(n, 7, 3, proof); err != nil {
		t.Fatal(err)
	}
	release()
	c.settle()
	if r := n.store.lookup(7); r != nil {
		t.Fatalf("%s is still there", r)
	}
	if _, _, ok, _ := n.eng.Get(base.UserKey([]byte("x")), nil); ok || n.store.serving(8) != nil {
		t.Error("the split went on without its replica")
	}
	c.idle(n)
}

// TestASnapshotReplacesAReplicaThatHasHalted, and the step gives up: the new object is beyond it.
func TestASnapshotReplacesAReplicaThatHasHalted(t *testing.T) {
	c, n, release := halted(t, nil)
	c.without(7)
	a := newAnswers(t)
	o := op(wire.OpPut, 7, "b", "2")
	o.Version = 2
	c.without()
	c.net.Isolate(3)
	c.write(c.nodes[1], o, a, 0)
	c.until("written", func() bool { return a.missing() == 0 })
	st, _ := c.nodes[1].store.Status(7)
	v, err := c.nodes[1].eng.OpenView(7)
	if err != nil {
		t.Fatal(err)
	}
	m := &engine.SnapshotMeta{
		Shard: 7, From: 1, To: 3, FromStore: 1, ToStore: 3, RaftTerm: st.Term, Desc: v.Desc(), Applied: v.Applied(),
	}
	staging, err := stageView(v, m, n.eng, c.stagings())
	if err := errors.Join(err, v.Close()); err != nil {
		t.Fatal(err)
	}
	old := n.store.lookup(7)
	ch := make(chan error, 1)
	n.store.installSnapshot(m, staging, func(err error) { ch <- err })
	c.settle()
	if err := <-ch; err != nil {
		t.Fatal(err)
	}
	release()
	c.settle()
	if r := n.store.lookup(7); r == old || r.desc.Load().Epoch.Version != 2 {
		t.Fatalf("s7 is %s", r.desc.Load())
	}
	c.net.HealAll()
	c.until("s8 on n3", func() bool { return n.store.serving(8) != nil })
	c.everywhere(8, "x", "1")
	c.everywhere(7, "b", "2")
	c.idle(n)
}

// TestAFaultedReplicaDoesNotGoOnBehindItsHalt: the step gives up, and so does the store's stop.
func TestAFaultedReplicaDoesNotGoOnBehindItsHalt(t *testing.T) {
	c, n, release := halted(t, nil)
	n.store.fault(n.store.lookup(7), "for a test", nil)
	n.store.pool.Enqueue(7)
	c.settle()
	release()
	c.settle()
	if n.store.serving(8) != nil || n.store.lookup(7).handed.halted.Load() || n.store.used.apply.Load() != 0 {
		t.Error("it went on")
	}
	c.crash(n, 100)
	n.faults = nil
	c.start(n)
	c.until("both sides on n3", func() bool { return n.store.serving(8) != nil })
}

func TestAStoreStopsWhileAReplicaIsHalted(t *testing.T) {
	c, n, _ := halted(t, nil)
	s := n.store
	c.crash(n, 0)
	if used := s.used.apply.Load(); used != 0 {
		t.Errorf("%d bytes are left in apply", used)
	}
	c.start(n)
	c.until("both sides on n3", func() bool { return n.store.serving(8) != nil })
}

// TestABoundaryEntryThatIsNotKnownStopsItsReplicaOnly.
func TestABoundaryEntryThatIsNotKnownStopsItsReplicaOnly(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "a", "m", 1))
	c.create(desc(9, "m", "z", 1))
	n := c.nodes[1]
	n.store.call(n.store.lookup(7), func(r *replica) {
		h := wire.EntryHeader{Kind: wire.EntrySplit, Proposal: 1}
		if err := r.worker.rn.Propose(append(h.Append(nil), 99)); err != nil {
			t.Error(err)
		}
	})
	c.settle()
	if st, _ := n.store.Status(7); st.Faulted == "" {
		t.Fatal("an unknown layout was skipped")
	}
	c.put(9, "x", "1")
}
