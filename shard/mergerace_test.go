package shard

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// testAsker asks the leader of the left shard as the node does, if there is one to be reached.
type testAsker struct {
	c   **cluster
	cut *atomic.Bool // nobody can be asked
}

// AskMerge implements MergeAsker. It is called while the test's goroutine moves the stores, so it can look at them.
func (a testAsker) AskMerge(q MergeQuestion, abort bool, done func(MergeOutcome)) {
	c := *a.c
	var lead *testNode
	if c != nil && !a.cut.Load() {
		lead = c.leader(q.Left)
	}
	if lead == nil {
		done(apply.MergeUnknown)
		return
	}
	if out, err := lead.store.MergeDecision(q.Left, q.ID, q.Epoch); err != nil || out.Final() || !abort {
		done(out)
		return
	}
	// Without a goroutine, which the test's time would outrun.
	cmd := wire.AbortMerge{ID: q.ID, Right: q.Right, Epoch: q.Epoch}
	lead.store.call(lead.store.lookup(q.Left), func(r *replica) {
		w := lead.store.workerOf(r.shard)
		err := w.mayPropose(r, abortMergeName)
		if err == nil {
			err = w.proposeBoundary(r, wire.EntryAbortMerge, abortMergeName, cmd.Append,
				func(*base.Descriptor, uint64, error) { done(apply.MergeUnknown) }) // the next question finds out
		}
		if err != nil {
			done(apply.MergeUnknown)
		}
	})
}

// askingPair is newPair whose frozen shards ask.
func askingPair(t *testing.T, stores int, tune func(*Config)) (*cluster, *atomic.Bool) {
	var c *cluster
	cut := new(atomic.Bool)
	made := newPair(t, stores, func(cfg *Config) {
		cfg.Merges = testAsker{&c, cut}
		if tune != nil {
			tune(cfg)
		}
	})
	c = made
	return c, cut
}

func TestAShardWhoseMergeNobodyCommitsThawsWhoeverLeads(t *testing.T) {
	for _, when := range []string{"at once", "the leader is cut off", "the leader moves", "all restart", "nobody can be asked for a while"} {
		t.Run(when, func(t *testing.T) {
			c, cut := askingPair(t, 3, nil)
			c.put(8, "x", "1")
			cmd := c.mustFreeze(1, 8, 7)
			lead := c.leader(8)
			switch when {
			case "the leader is cut off":
				c.net.Isolate(lead.id)
				c.until("another leader", func() bool { n := c.leader(8); return n != nil && n != lead })
			case "the leader moves":
				ch := c.transfer(lead, 8, lead.id%3+1)
				if res := c.outcome(ch); res.err != nil {
					t.Fatalf("a frozen shard may change its leader: %v", res.err)
				}
			case "all restart":
				for _, id := range c.ids() {
					c.crash(c.nodes[id], 0)
				}
				for _, id := range c.ids() {
					c.start(c.nodes[id])
				}
			case "nobody can be asked for a while":
				cut.Store(true)
				for range 300 {
					c.tick()
				}
				if st, _ := c.leader(8).store.MergeState(8); st.Freeze == nil {
					t.Fatal("thawed on a guess")
				}
				cut.Store(false)
			}
			thawed := func() bool {
				n := c.leader(8)
				if n == nil {
					return false
				}
				st, err := n.store.MergeState(8)
				return err == nil && st.Freeze == nil
			}
			for range 5 {
				c.untilOr(thawed)
			}
			if !thawed() {
				t.Fatal("still frozen")
			}
			c.net.HealAll()
			c.until("a leader of the left one", func() bool { return c.leader(7) != nil })
			// Too late, at whichever leader.
			var refused *BoundaryError
			if res := c.mergeOutcome("late commit", c.commitMerge(c.leader(7), 7, cmd)); !errors.As(res.err, &refused) {
				t.Fatalf("late commit: %v", res.err)
			}
			c.untilThawed(8)
			c.put(8, "x", "2")
			c.mustMerge(2, 8, 7)
			c.mustGet(7, "x", "2")
			c.noFaults()
		})
	}
}

// untilOr ticks until cond holds, or for 200 ticks.
func (c *cluster) untilOr(cond func() bool) {
	c.settle()
	for range 200 {
		if cond() {
			return
		}
		c.tick()
	}
}

// Leaders change between any two steps; the merge goes on with the new ones.
func TestAMergeGoesOnWithOtherLeaders(t *testing.T) {
	move := func(c *cluster, shard base.ShardID) {
		lead := c.leader(shard)
		if res := c.outcome(c.transfer(lead, shard, lead.id%3+1)); res.err != nil {
			c.t.Fatal(res.err)
		}
		c.until("the new leader's first commit", func() bool {
			n := c.leader(shard)
			return n != nil && n.store.lookup(shard).appliedState().Term == n.store.lookup(shard).lead.Load().term
		})
	}
	for _, before := range []string{"freeze", "confirm", "commit"} {
		for _, shard := range []base.ShardID{7, 8} {
			t.Run(fmt.Sprint(before, " ", shard), func(t *testing.T) {
				c, _ := askingPair(t, 3, nil)
				c.put(8, "x", "1")
				if before == "freeze" {
					move(c, shard)
				}
				f := freezeOf(c.leader(8), 1, 8, 7)
				res := c.mergeOutcome("freeze", c.freeze(c.leader(8), 8, f))
				if res.err != nil {
					t.Fatal(res.err)
				}
				if before == "confirm" {
					move(c, shard)
				}
				c.until("confirmed", func() bool { return c.confirmed(8, 1, res.index) })
				if before == "commit" {
					move(c, shard)
				}
				cmd := &wire.CommitMerge{ID: 1, Epoch: f.IntoEpoch, Frozen: res.index, Right: res.d}
				done := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
				if done.err != nil {
					t.Fatal(done.err)
				}
				c.untilMerged(8, done.d)
				c.mustGet(7, "x", "1")
				c.put(7, "x", "2")
				c.everywhere(7, "x", "2")
				c.noFaults()
			})
		}
	}
}

// Commit and abort race for one merge: proposed at the same time, by whoever leads, with leaders cut off in between.
// Exactly one comes true, on every store the same.
func TestOfCommitAndAbortOneComesTrue(t *testing.T) {
	committed, aborted := 0, 0
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			c, _ := askingPair(t, 3, nil)
			c.put(8, "x", "1")
			cmd := c.mustFreeze(1, 8, 7)
			abort := wire.AbortMerge{ID: 1, Right: 8, Epoch: cmd.Epoch}
			old := c.leader(7)
			var open []<-chan boundaryResult
			start := func(n *testNode, first bool) {
				a, b := func() { open = append(open, c.commitMerge(n, 7, cmd)) }, func() { open = append(open, c.abortMerge(n, 7, abort)) }
				if !first {
					a, b = b, a
				}
				a()
				b()
			}
			start(old, i%2 == 0)
			if i >= 4 { // its entries may or may not have left
				for range i % 3 {
					old.store.Poll()
				}
				c.net.Isolate(old.id)
				c.until("another leader", func() bool { n := c.leader(7); return n != nil && n != old })
				start(c.leader(7), i%4 < 2)
				c.net.HealAll()
			}
			for _, ch := range open {
				for len(ch) == 0 {
					c.mergeOutcomeTick(ch)
				}
			}
			c.until("decided everywhere", func() bool {
				outs := map[MergeOutcome]int{}
				c.each(func(n *testNode) {
					out, _ := n.store.MergeDecision(7, 1, cmd.Epoch)
					outs[out]++
				})
				return outs[apply.MergeCommitted] == 3 || outs[apply.MergeAborted] == 3
			})
			out, _ := c.nodes[1].store.MergeDecision(7, 1, cmd.Epoch)
			ok := 0
			for _, ch := range open {
				res := <-ch
				if res.err == nil && res.d != nil {
					ok++
					if out != apply.MergeCommitted {
						t.Fatal("a commit was reported that did not happen")
					}
				}
				if res.err == nil && res.out.Final() && res.out != out {
					t.Fatalf("reported %s, it is %s", res.out, out)
				}
			}
			if out == apply.MergeCommitted {
				committed++
				d, _ := c.leader(7).store.Descriptor(7)
				c.untilMerged(8, d)
				c.mustGet(7, "x", "1")
			} else {
				aborted++
				c.until("a leader", func() bool { return c.leader(8) != nil })
				c.untilThawed(8)
				c.mustGet(8, "x", "1")
			}
			c.noFaults()
		})
	}
	t.Logf("%d committed, %d aborted", committed, aborted)
	if committed == 0 || aborted == 0 {
		t.Errorf("%d committed, %d aborted: no race", committed, aborted)
	}
}

// mergeOutcomeTick lets things move while an outcome is awaited that needs an election.
func (c *cluster) mergeOutcomeTick(ch <-chan boundaryResult) {
	c.t.Helper()
	c.soonOrTick(func() bool { return len(ch) > 0 })
}

func (c *cluster) soonOrTick(cond func() bool) {
	for range 20 {
		if c.settle(); cond() {
			return
		}
	}
	c.tick()
}

// A replica that has not come to the second freeze of its shard must not be taken for one that has, since it still stands
// at the first.
func TestAnOldFreezeIsNotTakenForTheNewOne(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(8, "x", "1")
	first := c.mustFreeze(1, 8, 7)
	slow := c.nodes[3]
	if c.leader(8) == slow || c.leader(7) == slow {
		slow = c.nodes[2]
	}
	slow.hold = true // it hears all of it and applies nothing
	if res := c.mergeOutcome("abort", c.abortMerge(c.leader(7), 7, wire.AbortMerge{ID: 1, Right: 8, Epoch: first.Epoch})); res.out != apply.MergeAborted {
		t.Fatal(res)
	}
	lead := c.leader(8)
	c.until("thawed where it is led", func() bool {
		st, _ := lead.store.MergeState(8)
		return st.Freeze == nil
	})
	f := freezeOf(lead, 2, 8, 7)
	second := c.mergeOutcome("freeze", c.freeze(lead, 8, f))
	if second.err != nil {
		t.Fatal(second.err)
	}
	st, err := slow.store.MergeState(8)
	if err != nil || st.Freeze == nil || st.Freeze.ID != 1 || st.Confirms(2, second.index) {
		t.Fatalf("%+v, %v", st, err)
	}
	slow.hold = false
	c.until("confirmed", func() bool { return c.confirmed(8, 2, second.index) })
	if st, _ := slow.store.MergeState(8); st.Confirms(1, first.Frozen) {
		t.Fatal("it still confirms the first")
	}
	cmd := &wire.CommitMerge{ID: 2, Epoch: f.IntoEpoch, Frozen: second.index, Right: second.d}
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.untilMerged(8, res.d)
	c.noFaults()
}

func TestAMergeIsRefusedBeforeItCanHurt(t *testing.T) {
	c := newPair(t, 3, nil)
	c.create(desc(9, "z", "zz", 1, 2)) // on other stores
	c.put(8, "x", "1")
	lead := c.leader(8)
	refused := func(what string, res boundaryResult, retry bool) {
		t.Helper()
		var b *BoundaryError
		if !errors.As(res.err, &b) || b.Retry != retry {
			t.Errorf("%s: %v", what, res.err)
		}
	}
	f := freezeOf(lead, 1, 8, 7)
	wrong := f
	wrong.Epoch.Version++
	refused("another epoch", c.mergeOutcome("f", c.freeze(lead, 8, wrong)), false)
	wrong = f
	wrong.IntoEpoch.Version++
	refused("a later epoch of the left one", c.mergeOutcome("f", c.freeze(lead, 8, wrong)), true)
	wrong = f
	wrong.Into = 9
	refused("the right-hand neighbour", c.mergeOutcome("f", c.freeze(lead, 8, wrong)), false)
	n9 := c.leader(9)
	refused("other stores", c.mergeOutcome("f", c.freeze(n9, 9, freezeOf(n9, 1, 9, 8))), false)
	// A replica that does not keep up.
	away := c.nodes[lead.id%3+1]
	c.net.Isolate(away.id)
	for range 30 {
		c.tick()
	}
	lead = c.leader(8)
	refused("a replica is away", c.mergeOutcome("f", c.freeze(lead, 8, f)), true)
	c.net.HealAll()
	c.until("back", func() bool { return c.leader(7) != nil && c.leader(8) != nil })
	for range 30 {
		c.tick()
	}
	l := c.leader(7)
	d, _ := l.store.Descriptor(8)
	refused("not frozen", c.mergeOutcome("c", c.commitMerge(l, 7, &wire.CommitMerge{
		ID: 1, Epoch: f.IntoEpoch, Frozen: 20, Right: d,
	})), false)
	cmd := c.mustFreeze(1, 8, 7)
	for what, change := range map[string]func(m *wire.CommitMerge){
		"another merge": func(m *wire.CommitMerge) { m.ID = 2 }, "another index": func(m *wire.CommitMerge) { m.Frozen++ },
		"another epoch": func(m *wire.CommitMerge) { m.Epoch.Version++ },
		"another descriptor": func(m *wire.CommitMerge) {
			m.Right = m.Right.Clone()
			m.Right.NextReplicaID++
		},
	} {
		m := *cmd
		change(&m)
		refused(what, c.mergeOutcome("c", c.commitMerge(c.leader(7), 7, &m)), false)
	}
	if res := c.mergeOutcome("again", c.freeze(c.leader(8), 8, f)); res.err != nil || res.index != cmd.Frozen {
		t.Errorf("the same freeze again: %+v", res)
	}
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.untilMerged(8, res.d)
	refused("a second time", c.mergeOutcome("c", c.commitMerge(c.leader(7), 7, cmd)), false)
	c.noFaults()
}

// TestAFrozenShardWhoseLeftNeighbourWasMergedAwayThaws: that log has ended without it, and its successor knows.
func TestAFrozenShardWhoseLeftNeighbourWasMergedAwayThaws(t *testing.T) {
	c, _ := askingPair(t, 3, nil)
	c.create(desc(9, "z", "zz", 1, 2, 3))
	c.put(9, "zb", "1")
	c.mustFreeze(2, 9, 8) // nobody goes on with this
	c.mustMerge(1, 8, 7)
	c.untilThawed(9)
	c.put(9, "zb", "2")
	c.mustMerge(3, 9, 7)
	c.mustGet(7, "zb", "2")
	c.noFaults()
}

// Requests that wait at a shard when it is merged away are told where its range is, and that they have not happened.
func TestWhoWaitsAtAMergedShardIsSentToItsNeighbour(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	lead := c.leader(8)
	// A new leader that has not come to the freeze proposes behind it.
	r := lead.store.lookup(8)
	frozen := r.frozen.Load()
	c.net.Isolate(lead.id%3 + 1)
	c.net.Isolate((lead.id+1)%3 + 1)
	r.frozen.Store(nil)
	a := newAnswers(t)
	w := c.write(lead, op(wire.OpPut, 8, "x", "2"), a, 0)
	rd := c.readIndex(lead, 8, a, 0)
	c.settle()
	r.frozen.Store(frozen)
	if a.missing() != 2 {
		t.Fatalf("%d wait", a.missing())
	}
	c.net.HealAll()
	l := c.leader(7)
	res := c.mergeOutcome("commit", c.commitMerge(l, 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.until("answers", func() bool { return a.missing() == 0 })
	for _, req := range []uint64{w, rd} {
		switch ans, _ := a.of(req); ans.Code {
		case wire.Busy: // apply was quicker
		case wire.EpochMismatch:
			if ds, err := wire.DecodeDescriptors(ans.Payload); err != nil || len(ds) != 1 || ds[0].Shard != 7 {
				t.Errorf("sent to %v, %v", ds, err)
			}
		default:
			t.Errorf("request %d: %s %s", req, ans.Code, ans.Payload)
		}
	}
	c.untilMerged(8, res.d)
	late := c.write(lead, op(wire.OpPut, 8, "x", "3"), a, 0)
	c.settle()
	if ans, _ := a.of(late); ans.Code != wire.EpochMismatch {
		t.Errorf("late: %s", ans.Code)
	}
	c.mustGet(7, "x", "1")
}
