package shardtest

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/apply"
)

// changeRole demotes a voter of a random shard, or promotes the first learner there is: shards whose roles differ are not
// merged.
func (m *moving) changeRole(rng *rand.Rand) {
	c := m.c
	lead, d := c.leads(c.shards[rng.IntN(len(c.shards))])
	if lead == nil {
		return
	}
	change := shard.ReplicaChange{Op: shard.Demote, Store: d.Replicas[rng.IntN(len(d.Replicas))].Store}
	if rng.IntN(4) > 0 {
		if lead, d, change.Store = m.learner(); lead == nil {
			return
		}
		change.Op = shard.Promote
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := lead.mu.store.ChangeReplicas(ctx, d.Shard, d.Epoch.ConfVer, []shard.ReplicaChange{change}); err == nil {
		m.count(change.Op.String())
	}
}

// handOver transfers a random shard.
func (m *moving) handOver(rng *rand.Rand) {
	c := m.c
	lead, d := c.leads(c.shards[rng.IntN(len(c.shards))])
	if lead == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	to := d.Replicas[rng.IntN(len(d.Replicas))].Store
	if _, err := lead.mu.store.Transfer(ctx, d.Shard, to); err == nil && to != lead.id {
		m.count("handed over")
	}
}

// learner returns the leader of a shard with a learner, and the store of that.
func (m *moving) learner() (*liveNode, *base.Descriptor, base.StoreID) {
	for _, sh := range m.c.shards {
		if lead, d := m.c.leads(sh); lead != nil {
			for _, r := range d.Replicas {
				if r.Role == base.RoleLearner {
					return lead, d, r.Store
				}
			}
		}
	}
	return nil, nil, 0
}

// each calls f with every running store, from any goroutine, until it returns false.
func (c *live) each(f func(s *shard.Store) bool) {
	for _, n := range c.nodes {
		if s, _, ok := n.use(); ok {
			more := f(s)
			n.using.Done()
			if !more {
				return
			}
		}
	}
}

// atLeader calls f with the store that leads a shard, if there is one.
func (c *live) atLeader(sh base.ShardID, f func(s *shard.Store)) {
	c.each(func(s *shard.Store) bool {
		if st, ok := s.Status(sh); ok && st.Leads && st.Desc != nil {
			f(s)
			return false
		}
		return true
	})
}

// mergeAll drives one merge after the other, as nodes do, and leaves some of them alone at any step.
func (m *moving) mergeAll() {
	c := m.c
	rng := rand.New(rand.NewPCG(uint64(c.seed), 6))
	for id := uint64(1); ; id++ {
		select {
		case <-c.stop:
			return
		case <-time.After(time.Duration(rng.IntN(1000)) * time.Millisecond):
		}
		var left, right *base.Descriptor
		for try := 0; right == nil && try < 20; try++ {
			if left = c.route(base.UserKey([]byte(splitKey(rng.IntN(3), rng.IntN(splitKeys))))); left != nil {
				right = c.route(left.End)
			}
		}
		if right != nil {
			m.merge(rng, id, left, right)
		}
	}
}

// merge takes a shard into its left neighbour.
func (m *moving) merge(rng *rand.Rand, id uint64, left, right *base.Descriptor) {
	c := m.c
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd := wire.CommitMerge{ID: id, Epoch: left.Epoch}
	c.atLeader(right.Shard, func(s *shard.Store) {
		cmd.Frozen, cmd.Right, _ = s.Freeze(ctx, right.Shard, wire.Freeze{
			ID: id, Into: left.Shard, IntoEpoch: left.Epoch, Epoch: right.Epoch,
		})
	})
	if cmd.Right == nil {
		return
	}
	m.count("frozen")
	if rng.IntN(5) == 0 {
		return // the driver has died: the frozen shard has it decided
	}
	for !m.confirmed(&cmd) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick / 4):
		}
	}
	c.atLeader(left.Shard, func(s *shard.Store) {
		if _, err := s.CommitMerge(ctx, left.Shard, &cmd); err == nil {
			m.count("merged")
		}
	})
}

// confirmed reports whether every replica of a shard stands frozen for a merge.
func (m *moving) confirmed(cmd *wire.CommitMerge) bool {
	n := 0
	m.c.each(func(s *shard.Store) bool {
		if st, err := s.MergeState(cmd.Right.Shard); err == nil && st.Confirms(cmd.ID, cmd.Frozen) {
			n++
		}
		return true
	})
	return n == len(cmd.Right.Replicas)
}

// AskMerge implements shard.MergeAsker.
func (n *liveNode) AskMerge(q shard.MergeQuestion, abort bool, done func(shard.MergeOutcome)) {
	c := n.c
	c.wg.Go(func() {
		time.Sleep(tick / 10)
		out := apply.MergeUnknown
		c.each(func(s *shard.Store) bool { // what is final is so at any replica
			if o, err := s.MergeDecision(q.Left, q.ID, q.Epoch); err == nil && o.Final() {
				out = o
			}
			return !out.Final()
		})
		if !out.Final() && abort {
			c.atLeader(q.Left, func(s *shard.Store) {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				if o, err := s.AbortMerge(ctx, q.Left, wire.AbortMerge{ID: q.ID, Right: q.Right, Epoch: q.Epoch}); err == nil {
					out = o
				}
			})
		}
		if out == apply.MergeAborted {
			c.moving.count("found aborted")
		}
		done(out)
	})
}

// TestLeasesUnderPausesTransfersChangesSplitsAndMergesAreLinearizable: three stores whose clocks run apart by the stated
// margin and that stand still for up to five promises, while shards are split, merged by drivers that die, handed over, and
// their voters change. No read by a lease is stale, every write that was acknowledged stays, and the shards tile the key
// space in the end.
func TestLeasesUnderPausesTransfersChangesSplitsAndMergesAreLinearizable(t *testing.T) {
	stood, counts := map[string]bool{}, map[string]int{}
	eachSeed(t, 5, func(t *testing.T, seed int64) {
		var c *live
		how := course{stores: 3, splits: true, merges: true, lasts: 90 * time.Second}
		synctest.Test(t, func(t *testing.T) { c = runMoving(t, seed, how) })
		if t.Failed() {
			return
		}
		t.Logf("%d operations, %d shards, %v", len(c.hist.mu.ops), len(c.shards), c.moving.mu.counts)
		c.checkLeases(t)
		c.hist.check(t)
		for what, n := range c.moving.mu.counts {
			counts[what] += n
		}
		for _, n := range c.nodes {
			n.time.stood.Range(func(name, _ any) bool { stood[name.(string)] = true; return true })
		}
	})
	if t.Failed() {
		return
	}
	for _, what := range []string{"split", "merged", "found aborted", "demote", "promote", "handed over"} {
		if counts[what] == 0 {
			t.Errorf("too little happened to prove anything: nothing of %q", what)
		}
	}
	for _, name := range standStill {
		if !stood[name] {
			t.Errorf("no store ever stood still in %s", name)
		}
	}
}
