package shard

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// without drops the messages of a shard between all stores.
func (c *cluster) without(shards ...base.ShardID) {
	c.each(func(n *testNode) {
		n.filter(func(m *wire.RaftMessage) bool {
			for _, s := range shards {
				if m.Shard == s {
					return false
				}
			}
			return true
		})
	})
}

// late makes shard 7 on three stores, of which the third has missed its split at m into 7 and 8. Store 1 leads both.
func late(t *testing.T, tune func(*Config)) (c *cluster, n *testNode) {
	c = newCluster(t, 3, tune)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "b", "1")
	c.put(7, "x", "1")
	c.everywhere(7, "x", "1")
	c.leads(7, 1)
	c.net.Isolate(3)
	res := c.splitOutcome(c.split(c.nodes[1], 7, side(8, "m")))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.until("s8 is led", func() bool { return c.leader(8) != nil })
	return c, c.nodes[3]
}

// TestASplitKeepsThePromisesOfARightSideThatHasVoted: hazards cockroach#7600 and #75918. Neither the split nor a crash
// on either side of it makes the replica vote twice in a term, or fall back to an earlier one.
func TestASplitKeepsThePromisesOfARightSideThatHasVoted(t *testing.T) {
	for _, crash := range []string{"never", "before", "after"} {
		t.Run("crash "+crash, func(t *testing.T) {
			c, n := late(t, nil)
			c.without(8)
			c.step(n, vote(8, 1, 3, 1, 3, 50))
			restart := func(when string) {
				if crash == when {
					c.crash(n, 0)
					c.start(n)
				}
			}
			restart("before")
			if r := n.store.lookup(8); r == nil || !r.uninitialised() {
				t.Fatalf("s8 on n3 is %v", r)
			}
			c.net.HealAll()
			c.without(8)
			c.until("the split on n3", func() bool { return n.store.serving(8) != nil })
			restart("after")
			st, _, err := n.eng.ReplicaState(8)
			if err != nil || st.Hard.Term != 50 || st.Hard.Vote != 1 || st.Hard.Commit != engine.InitialIndex {
				t.Fatalf("hard state %+v, %v", st.Hard, err)
			}
			sent := n.sentBy()
			c.step(n, vote(8, 2, 3, 2, 3, 50))
			for _, m := range *sent {
				if m.Msg.Type == raftpb.MsgVoteResp && !m.Msg.Reject {
					t.Fatal("it votes twice in term 50")
				}
			}
			n.tap(nil)
			c.without()
			c.until("s8 is led", func() bool { return c.leader(8) != nil })
			c.put(8, "x", "2")
			c.everywhere(8, "x", "2")
		})
	}
}

// TestTheSnapshotOfARightSideWaitsForTheSplit: hazard tikv#529. The data that it would bring is the left side's until
// the split, so the two never meet.
func TestTheSnapshotOfARightSideWaitsForTheSplit(t *testing.T) {
	c, n := late(t, func(cfg *Config) { cfg.Compaction = Compaction{FloorBytes: 1 << 10, ShardCapBytes: 4 << 10, Factor: 1} })
	c.fill2(8, "x", 32<<10)
	c.net.HealAll()
	c.without(7)
	lead := c.leader(8)
	c.until("a declined snapshot", func() bool { return len(lead.ship.done) > 0 })
	var declined *DeclinedError
	if err := lead.ship.done[0]; !errors.As(err, &declined) || declined.kind != "split-pending" || declined.Wait == 0 {
		t.Fatalf("the snapshot of s8 while s7 is undivided: %v", err)
	}
	if d, _ := n.store.Descriptor(7); d.Epoch.Version != 1 {
		t.Fatalf("s7 is %s", d)
	}
	c.without()
	c.until("both sides on n3", func() bool { return n.store.serving(8) != nil })
	c.put(8, "y", "2")
	c.everywhere(8, "y", "2")
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	if len(n.faults) > 0 {
		t.Fatal(n.faults)
	}
}

// fill2 writes until so many bytes have gone through the log of a shard, and lets the log be cut.
func (c *cluster) fill2(shard base.ShardID, key string, bytes int) {
	c.t.Helper()
	for i := 0; i < bytes; i += 1 << 10 {
		c.put(shard, key, fmt.Sprintf("%01024d", i))
	}
	c.until("a shorter log", func() bool {
		st, _ := c.leader(shard).store.Status(shard)
		return st.FirstIndex > engine.InitialIndex+1
	})
}

// TestASplitMayComeWithTheSnapshotOfTheLeftSide: the wider data goes with it, and the right side comes by its own.
func TestASplitMayComeWithTheSnapshotOfTheLeftSide(t *testing.T) {
	c, n := late(t, func(cfg *Config) { cfg.Compaction = Compaction{FloorBytes: 1 << 10, ShardCapBytes: 4 << 10, Factor: 1} })
	c.fill2(7, "b", 32<<10)
	c.net.HealAll()
	c.until("both sides on n3", func() bool {
		d, _ := n.store.Descriptor(7)
		return d.Epoch.Version == 2 && n.store.serving(8) != nil
	})
	c.put(8, "y", "2")
	c.put(7, "b", "2")
	c.everywhere(8, "y", "2")
	c.everywhere(7, "b", "2")
	c.everywhere(8, "x", "1")
}

// TestARightSideThatWasRemovedBeforeALateSplitIsDropped: hazards tikv#5852, yugabyte#27056. Its half goes with its data,
// whether only the mark is left of it or a newer replica waits for its snapshot, and whatever crashes.
func TestARightSideThatWasRemovedBeforeALateSplitIsDropped(t *testing.T) {
	for _, newer := range []bool{false, true} {
		t.Run(fmt.Sprint("newer ", newer), func(t *testing.T) {
			c, n := late(t, nil)
			c.step(n, vote(8, 1, 3, 1, 3, 2)) // it has heard of it once
			c.changed(8, ReplicaChange{Op: Demote, Store: 3})
			c.until("out of joint", func() bool { d := c.desc(8); return !isJoint(d) })
			proof := c.removed(8, 3)
			if err := c.removeReplica(n, 8, 3, proof); err != nil {
				t.Fatal(err)
			}
			if newer {
				c.net.HealAll()
				c.without(7)
				c.changed(8, ReplicaChange{Op: AddLearner, Store: 3})
				c.until("replica 4 waits", func() bool { r := n.store.lookup(8); return r != nil && r.id == 4 })
			}
			a, b := 0, 0
			c.inClones(n, func() {
				c.net.HealAll()
				c.without(8)
				c.until("the split on n3", func() bool { d, _ := n.store.Descriptor(7); return d.Epoch.Version == 2 })
			}, func(e *engine.Engine, states []engine.ReplicaState) {
				_, _, right, err := e.Get(base.UserKey([]byte("x")), nil)
				_, _, left, err2 := e.Get(base.UserKey([]byte("b")), nil)
				if err != nil || err2 != nil || !left {
					t.Fatalf("the left row is there: %t, %v, %v", left, err, err2)
				}
				for _, st := range states {
					switch {
					case st.Shard == 8 && (st.Desc != nil || !newer):
						t.Fatalf("the removed replica came back: %+v", st)
					case st.Shard == 7 && st.Desc.Epoch.Version == 1:
						if a++; !right {
							t.Fatal("a row went before the split")
						}
					case st.Shard == 7:
						if b++; right {
							t.Fatal("a row of the dropped half stayed")
						}
					}
				}
			})
			if a == 0 || b == 0 {
				t.Fatalf("%d moments before, %d after", a, b)
			}
			if n.store.lookup(7).leaving.Load() {
				t.Fatal("reads are turned away for ever")
			}
			c.without()
			if !newer {
				c.crash(n, 0)
				c.start(n)
				if r := n.store.lookup(8); r != nil {
					t.Fatalf("%s is back after a restart", r)
				}
				c.changed(8, ReplicaChange{Op: AddLearner, Store: 3})
			}
			c.initialised(8, 3)
			c.put(8, "y", "2")
			c.put(7, "b", "2")
			c.everywhere(8, "y", "2")
			c.everywhere(8, "x", "1")
			c.everywhere(7, "b", "2")
		})
	}
}

// TestARightSideThatIsHereAlreadyIsKept, with what it has come to meanwhile.
func TestARightSideThatIsHereAlreadyIsKept(t *testing.T) {
	c, n := late(t, nil)
	c.put(8, "x", "newer")
	// It cannot be: its range is the left side's until the split. But what is on disk wins, whatever wrote it.
	d := c.desc(8)
	b := n.eng.NewBatch()
	b.CreateReplica(d, 3, 99, nil)
	b.SetApplied(8, &engine.AppliedState{Index: 33, Term: 7, Conf: engine.ConfStateOf(d), Stamp: 99})
	b.SetTruncated(8, engine.TruncatedState{Index: 33, Term: 7, Conf: engine.ConfStateOf(d)})
	b.SetHardState(8, raftpb.HardState{Term: 9, Vote: 2, Commit: 33})
	if err := n.eng.Commit(b, true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	c.net.HealAll()
	c.without(8)
	c.until("the split on n3", func() bool { d, _ := n.store.Descriptor(7); return d.Epoch.Version == 2 })
	st, ok, err := n.eng.ReplicaState(8)
	if !ok || err != nil || st.Applied.Index != 33 || st.Hard.Term != 9 || st.Hard.Vote != 2 || len(n.faults) > 0 {
		t.Fatalf("%+v %t %v, faults %v", st, ok, err, n.faults)
	}
}

// TestARightSideTakesWritesBeforeTheNextHeartbeat, also if its followers hear of it before they have split: what comes
// too early is kept. No tick passes.
func TestARightSideTakesWritesBeforeTheNextHeartbeat(t *testing.T) {
	for name, slow := range map[string]func(n *testNode, yes bool){
		"nothing but raft": func(n *testNode, yes bool) { n.hold = yes },
		"all but apply":    func(n *testNode, yes bool) { n.lazy = yes },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.create(desc(7, "a", "z", 1, 2, 3))
			c.put(7, "x", "1")
			lead := c.leader(7)
			c.each(func(n *testNode) {
				if n != lead {
					slow(n, true)
				}
			})
			ch := c.split(lead, 7, side(8, "m"))
			c.settle()
			select {
			case res := <-ch:
				if res.err != nil {
					t.Fatal(res.err)
				}
			default:
				t.Fatal("the leader waits for its followers' apply")
			}
			c.each(func(n *testNode) { slow(n, false) })
			c.settle()
			if c.leader(8) != lead {
				t.Fatal("s8 is not led where s7 is")
			}
			a := newAnswers(t)
			o := op(wire.OpPut, 8, "x", "2")
			o.Version = 2
			req := c.write(lead, o, a, 0)
			c.settle()
			if ans, ok := a.of(req); !ok || ans.Code != wire.OK {
				t.Fatalf("write to s8: %t %s", ok, ans.Code)
			}
			c.each(func(n *testNode) {
				if n.store.serving(8) == nil {
					t.Errorf("%s has not split", n.id)
				}
			})
		})
	}
}

// TestAnAppendToARightSideIsAnsweredAfterTenSeconds, if no split comes: the left side may have left the store.
func TestAnAppendToARightSideIsAnsweredAfterTenSeconds(t *testing.T) {
	c, n := late(t, nil)
	c.net.HealAll()
	c.without(7)
	lead := c.leader(8)
	c.until("an uninitialised s8", func() bool { return n.store.lookup(8) != nil })
	if c.tick(); len(lead.ship.done) > 0 {
		t.Fatalf("a snapshot was asked for at once: %v", lead.ship.done)
	}
	c.until("a snapshot", func() bool { return len(lead.ship.done) > 0 })
	if age := c.clock.Boot() - n.store.lookup(8).born; age < splitPending {
		t.Fatalf("asked for after %s", age)
	}
}

// TestAVoteAskedForDuringTheSplitIsGivenAfterIt: the uninitialised replica stands still then, and another object takes
// its place; what it was sent is stepped into that.
func TestAVoteAskedForDuringTheSplitIsGivenAfterIt(t *testing.T) {
	c, n := late(t, nil)
	c.without(8)
	c.step(n, vote(8, 1, 3, 1, 3, 50))
	n.lazy = true
	c.net.HealAll()
	c.until("the split is committed on n3", func() bool {
		r := n.store.lookup(7)
		return r.commit.Load() == c.nodes[1].store.lookup(7).commit.Load() && n.store.workers[0].syncing == 0
	})
	release := c.holdSyncs(n)
	n.lazy = false
	c.drain()
	if r := n.store.lookup(8); !r.uninitialised() || !r.worker.still {
		t.Fatal("the split is not under way")
	}
	sent := n.sentBy()
	n.store.Step([]wire.RaftMessage{vote(8, 2, 3, 2, 3, 60)})
	c.drain()
	if len(*sent) > 0 {
		t.Fatalf("it was not still: %v", *sent)
	}
	release()
	c.settle()
	for _, m := range *sent {
		if m.Shard == 8 && m.Msg.Type == raftpb.MsgVoteResp && m.Msg.Term == 60 && !m.Msg.Reject {
			return
		}
	}
	t.Fatalf("no vote: %v", *sent)
}
