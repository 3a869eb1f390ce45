package shard

import (
	"errors"
	"fmt"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// mergeSteps are the synced boundaries of a merge: what comes before each, the step, and what a disk holds after it.
func mergeSteps() []mergeStep {
	frozen := func(c *cluster) *wire.CommitMerge { return c.mustFreeze(1, 8, 7) }
	abort := func(c *cluster, cmd *wire.CommitMerge) {
		res := c.mergeOutcome("abort", c.abortMerge(c.leader(7), 7, wire.AbortMerge{ID: 1, Right: 8, Epoch: cmd.Epoch}))
		if res.out != apply.MergeAborted {
			c.t.Fatal(res)
		}
		c.untilThawed(8)
	}
	return []mergeStep{
		{"freeze", nil, func(c *cluster, _ *wire.CommitMerge) { frozen(c) }, func(l, r *engine.ReplicaState) bool {
			return r != nil && r.Applied.Freeze != nil && r.Applied.Freeze.ID == 1
		}},
		{"commit", frozen, func(c *cluster, cmd *wire.CommitMerge) {
			res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
			if res.err != nil {
				c.t.Fatal(res.err)
			}
			c.untilMerged(8, res.d)
		}, func(l, r *engine.ReplicaState) bool { return r == nil && string(l.Desc.End) == "\x02z" }},
		{"abort", frozen, abort, func(l, r *engine.ReplicaState) bool {
			return r != nil && l.Desc.Epoch.Version == 2 && len(l.Applied.Merges) == 1 && !l.Applied.Merges[0].Committed
		}},
		{"thaw", frozen, abort, func(l, r *engine.ReplicaState) bool { return r != nil && r.Applied.Freeze == nil }},
	}
}

type mergeStep struct {
	name   string
	before func(c *cluster) *wire.CommitMerge
	run    func(c *cluster, cmd *wire.CommitMerge)
	after  func(l, r *engine.ReplicaState) bool
}

// mergeSessions gives both shards records, of which 2 is newer on the left and 3 on the right.
func (c *cluster) mergeSessions() {
	c.each(func(n *testNode) {
		b := n.eng.NewBatch()
		for _, s := range []struct {
			shard   base.ShardID
			id, seq uint64
		}{{7, 1, 1}, {7, 2, 9}, {7, 3, 1}, {8, 2, 8}, {8, 3, 2}, {8, 4, 1}} {
			b.PutSession(s.shard, engine.Session{ID: s.id, Sequence: s.seq, Data: []byte(s.shard.String())})
		}
		if err := n.eng.Commit(b, true); err != nil {
			c.t.Fatal(err)
		}
		b.Close()
	})
}

func sessionText(t *testing.T, e *engine.Engine, shard base.ShardID) (out string) {
	t.Helper()
	all, err := e.Sessions(shard)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		out += fmt.Sprintf("%d.%d@%s ", s.ID, s.Sequence, s.Data)
	}
	return out
}

// TestACrashAroundAMergeLeavesAllOfAStepOrNothing: at each sync of freeze, commit, abort and thaw, at the leader of both
// shards and at a follower. A power loss of one store, or of all, at the end forgets nothing of what was published.
func TestACrashAroundAMergeLeavesAllOfAStepOrNothing(t *testing.T) {
	for _, step := range mergeSteps() {
		for _, leads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, leader %t", step.name, leads), func(t *testing.T) {
				c := newPair(t, 3, nil)
				for _, k := range []string{"b", "c"} {
					c.put(7, k, k)
				}
				for _, k := range []string{"n", "x"} {
					c.put(8, k, k)
				}
				c.everywhere(8, "x", "x")
				c.mergeSessions()
				var cmd *wire.CommitMerge
				if step.before != nil {
					cmd = step.before(c)
				}
				n := c.leader(7)
				if !leads {
					n = c.nodes[n.id%3+1]
				}
				old, done := 0, 0
				clones := c.inClones(n, func() { step.run(c, cmd) }, func(e *engine.Engine, states []engine.ReplicaState) {
					for _, k := range []string{"b", "c", "n", "x"} {
						if _, v, ok, err := e.Get(base.UserKey([]byte(k)), nil); !ok || err != nil || string(v) != k {
							t.Fatalf("%s is %q %t %v", k, v, ok, err)
						}
					}
					var l, r *engine.ReplicaState
					for i := range states {
						switch states[i].Shard {
						case 7:
							l = &states[i]
						case 8:
							r = &states[i]
						}
					}
					switch {
					case l == nil:
						t.Fatal("the left shard is gone")
					case r != nil && string(l.Desc.End) != "\x02m":
						t.Fatalf("both %s and %s", l.Desc, r.Desc)
					case r == nil:
						m, _, _ := e.Mark(8)
						if string(l.Desc.End) != "\x02z" || m.NextReplicaID != engine.MergedAway || l.Applied.Freeze != nil ||
							len(l.Applied.Merges) != 1 || !l.Applied.Merges[0].Committed {
							t.Fatalf("half of a merge: %+v, mark %+v", l, m)
						}
						if got, want := sessionText(t, e, 7), "1.1@s7 2.9@s7 3.2@s8 4.1@s8 "; got != want {
							t.Fatalf("sessions %s, want %s", got, want)
						}
						if got := sessionText(t, e, 8); got != "" {
							t.Fatalf("sessions of nobody: %s", got)
						}
					}
					if step.after(l, r) {
						done++
					} else {
						old++
					}
				})
				if old == 0 || done == 0 {
					t.Fatalf("%d clones: %d before, %d after", clones, old, done)
				}
				c.crash(n, 0) // it was durable when it was published
				c.start(n)
				c.until("led", func() bool { return c.leader(7) != nil })
				for _, id := range c.ids() {
					c.crash(c.nodes[id], 0)
				}
				for _, id := range c.ids() {
					c.start(c.nodes[id])
				}
				c.until("led again", func() bool { return c.leader(7) != nil })
				if step.name == "freeze" {
					c.until("frozen, after all", func() bool { return c.leader(8) != nil })
					if st, err := c.leader(8).store.MergeState(8); err != nil || st.Freeze == nil {
						t.Fatalf("%+v, %v", st, err)
					}
					return
				}
				if step.name == "commit" {
					c.put(7, "x", "again")
					c.everywhere(7, "x", "again")
					return
				}
				c.until("the right one is led", func() bool { return c.leader(8) != nil })
				c.untilThawed(8)
				c.put(8, "x", "again")
				c.everywhere(8, "x", "again")
				c.noFaults()
			})
		}
	}
}

// TestAMergeInTheLogIsAppliedAfterARestart, of every command: they are committed and nobody has applied them when the
// power goes everywhere.
func TestAMergeInTheLogIsAppliedAfterARestart(t *testing.T) {
	for _, kind := range []string{"freeze", "commit", "abort"} {
		for _, keep := range []int{0, 100} {
			t.Run(fmt.Sprint(kind, " keep ", keep), func(t *testing.T) {
				c := newPair(t, 3, nil)
				c.put(8, "x", "1")
				c.everywhere(8, "x", "1")
				var cmd *wire.CommitMerge
				f := freezeOf(c.leader(8), 1, 8, 7)
				if kind != "freeze" {
					cmd = c.mustFreeze(1, 8, 7)
				}
				c.each(func(n *testNode) { n.hold = true })
				var ch <-chan boundaryResult
				shard := base.ShardID(7)
				switch kind {
				case "freeze":
					shard = 8
					ch = c.freeze(c.leader(8), 8, f)
				case "commit":
					ch = c.commitMerge(c.leader(7), 7, cmd)
				case "abort":
					ch = c.abortMerge(c.leader(7), 7, wire.AbortMerge{ID: 1, Right: 8, Epoch: cmd.Epoch})
				}
				lead := c.leader(shard)
				c.soon("it is committed", func() bool {
					r := lead.store.lookup(shard)
					return r.commit.Load() > r.applied.Load()
				})
				c.each(func(n *testNode) {
					n.hold = false
					c.crash(n, keep)
				})
				for _, id := range c.ids() {
					c.start(c.nodes[id])
				}
				if res := <-ch; !errors.Is(res.err, ErrAmbiguousBoundary) {
					t.Fatalf("who waited was told %v", res.err)
				}
				c.until("the left one is led", func() bool { return c.leader(7) != nil })
				switch kind {
				case "freeze":
					c.until("frozen everywhere", func() bool {
						all := true
						c.each(func(n *testNode) {
							st, err := n.store.MergeState(8)
							all = all && err == nil && st.Freeze != nil
						})
						return all
					})
				case "commit":
					c.until("merged everywhere", func() bool {
						all := true
						c.each(func(n *testNode) { all = all && n.store.lookup(8) == nil })
						return all
					})
					c.mustGet(7, "x", "1")
					c.put(7, "x", "2")
					c.everywhere(7, "x", "2")
				case "abort":
					c.until("the right one is led", func() bool { return c.leader(8) != nil })
					c.untilThawed(8)
					c.put(8, "x", "2")
					c.everywhere(8, "x", "2")
				}
				c.noFaults()
			})
		}
	}
}
