package shard

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// sessions writes synthetic session records into a shard on every live store, as apply would.
func (c *cluster) sessions(shard base.ShardID, ids ...uint64) {
	c.t.Helper()
	c.each(func(n *testNode) {
		b := n.eng.NewBatch()
		for _, id := range ids {
			b.PutSession(shard, engine.Session{ID: id, Data: fmt.Appendf(nil, "session %d", id)})
		}
		if err := n.eng.Commit(b, true); err != nil {
			c.t.Fatal(err)
		}
		b.Close()
	})
}

func sessionIDs(t *testing.T, e *engine.Engine, shard base.ShardID) (out []uint64) {
	t.Helper()
	all, err := e.Sessions(shard)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if want := fmt.Sprintf("session %d", s.ID); string(s.Data) != want {
			t.Fatalf("session %d of %s holds %q", s.ID, shard, s.Data)
		}
		out = append(out, s.ID)
	}
	return out
}

// TestACrashAroundASplitLeavesTheWholeShardOrAllOfItsParts: at each sync of a leader and of a follower, with sessions
// and without, and with an uninitialised right-hand replica in the way.
func TestACrashAroundASplitLeavesTheWholeShardOrAllOfItsParts(t *testing.T) {
	for _, leads := range []bool{true, false} {
		for _, voted := range []bool{false, true} {
			if leads && voted && testing.Short() {
				continue
			}
			t.Run(fmt.Sprintf("leader %t, voted %t", leads, voted), func(t *testing.T) {
				c := newCluster(t, 3, nil)
				c.create(desc(7, "a", "z", 1, 2, 3))
				for _, k := range []string{"b", "n", "x"} {
					c.put(7, k, k)
				}
				c.everywhere(7, "x", "x")
				c.sessions(7, 3, 1, 4)
				n := c.leader(7)
				if !leads {
					n = c.nodes[n.id%3+1]
				}
				if voted {
					from := base.ReplicaID(n.id%3 + 1)
					v := vote(8, from, base.ReplicaID(n.id), base.StoreID(from), n.id, 40)
					c.step(n, v)
				}
				whole, parts := 0, 0
				clones := c.inClones(n, func() {
					c.mustSplit(7, side(8, "m"), side(9, "s"))
				}, func(e *engine.Engine, states []engine.ReplicaState) {
					for _, k := range []string{"b", "n", "x"} {
						if _, v, ok, err := e.Get(base.UserKey([]byte(k)), nil); !ok || err != nil || string(v) != k {
							t.Fatalf("%s is %q %t %v", k, v, ok, err)
						}
					}
					states = slices.DeleteFunc(states, func(st engine.ReplicaState) bool { return st.Desc == nil })
					if len(states) == 1 {
						whole++
						if d := states[0].Desc; d.Epoch.Version != 1 || string(d.End) != string(base.UserKey([]byte("z"))) {
							t.Fatalf("half of a split: %s", d)
						}
						return
					}
					parts++
					checkParts(t, e, states, voted)
				})
				if whole == 0 || parts == 0 {
					t.Fatalf("%d clones: %d whole, %d in parts", clones, whole, parts)
				}
				c.crash(n, 0) // it was durable when it was published
				c.start(n)
				c.until("all led", func() bool { return c.leader(7) != nil && c.leader(8) != nil && c.leader(9) != nil })
				for _, k := range []string{"b", "n", "x"} {
					shard := map[string]base.ShardID{"b": 7, "n": 8, "x": 9}[k]
					c.put(shard, k, "again")
					c.everywhere(shard, k, "again")
				}
			})
		}
	}
}

// checkParts checks what a split at m and s has left on a disk.
func checkParts(t *testing.T, e *engine.Engine, states []engine.ReplicaState, voted bool) {
	t.Helper()
	if len(states) != 3 {
		t.Fatalf("%d replicas", len(states))
	}
	start := base.UserKey([]byte("a"))
	for i, st := range states {
		if st.Shard != base.ShardID(7+i) || st.Desc.Epoch.Version != 2 || string(st.Desc.Start) != string(start) {
			t.Fatalf("part %d is %s", i, st.Desc)
		}
		start = st.Desc.End
		if got := sessionIDs(t, e, st.Shard); !slices.Equal(got, []uint64{1, 3, 4}) {
			t.Fatalf("%s has the sessions %v", st.Shard, got)
		}
		if st.Applied.Stamp < states[0].Applied.Stamp {
			t.Fatalf("%s is at stamp %d, its left side at %d", st.Shard, st.Applied.Stamp, states[0].Applied.Stamp)
		}
		if i == 0 {
			continue
		}
		if st.Applied.Index < engine.InitialIndex || st.Truncated.Index != engine.InitialIndex {
			t.Fatalf("%s: %+v", st.Shard, st)
		}
		if voted && st.Shard == 8 && (st.Hard.Term < 40 || st.Hard.Term == 40 && st.Hard.Vote == 0) {
			t.Fatalf("a vote was forgotten: %+v", st.Hard)
		}
	}
	if string(start) != string(base.UserKey([]byte("z"))) {
		t.Fatalf("the parts end at %x", start)
	}
}

// TestASplitInTheLogIsAppliedAfterARestart, whether the store led or followed.
func TestASplitInTheLogIsAppliedAfterARestart(t *testing.T) {
	for _, keep := range []int{0, 100} {
		t.Run(fmt.Sprint("keep ", keep), func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.create(desc(7, "a", "z", 1, 2, 3))
			c.put(7, "x", "1")
			c.everywhere(7, "x", "1")
			lead := c.leader(7)
			c.each(func(n *testNode) { n.hold = true })
			ch := c.split(lead, 7, side(8, "m"))
			c.settle()
			if r := lead.store.lookup(7); r.commit.Load() <= r.applied.Load() {
				t.Fatal("nothing is committed and not applied")
			}
			c.each(func(n *testNode) {
				n.hold = false
				c.crash(n, keep)
				c.start(n)
			})
			if res := <-ch; !errors.Is(res.err, ErrAmbiguousBoundary) {
				t.Fatalf("who waited was told %v", res.err)
			}
			c.until("both sides led", func() bool { return c.leader(7) != nil && c.leader(8) != nil })
			c.mustGet(8, "x", "1")
			c.put(8, "x", "2")
			c.everywhere(8, "x", "2")
		})
	}
}

// TestARefusedSplitChangesNothingButTheIndex, on every replica alike: its epoch is that of before a conf change which
// came first.
func TestARefusedSplitChangesNothingButTheIndex(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "x", "1")
	lead := c.leader(7)
	changed := c.change(lead, 7, 1, ReplicaChange{Op: AddLearner, Store: 4})
	split := c.split(lead, 7, side(8, "m")) // in the same step: neither is in the log when the other is checked
	a := newAnswers(t)
	req := c.write(lead, op(wire.OpPut, 7, "y", "2"), a, 0)
	if out := c.decided(changed); out.err != nil {
		t.Fatal(out.err)
	}
	res := c.splitOutcome(split)
	var refused *BoundaryError
	if !errors.As(res.err, &refused) || !refused.Retry {
		t.Fatalf("split for an epoch that had passed: %v", res.err)
	}
	if ans, ok := a.of(req); !ok || ans.Code != wire.OK {
		t.Fatalf("the write behind it: %t %s", ok, ans.Code)
	}
	c.initialised(7, 4)
	c.everywhere(7, "y", "2")
	c.each(func(n *testNode) {
		if d, _ := n.store.Descriptor(7); d.Epoch != (base.Epoch{ConfVer: 2, Version: 1}) || n.store.lookup(8) != nil {
			t.Errorf("%s: %s, s8 %v", n.id, d, n.store.lookup(8))
		}
	})
	c.mustSplit(7, side(8, "m"))
}
