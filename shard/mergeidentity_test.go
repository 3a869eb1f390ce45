package shard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// TestAStoreBehindTheMergeGetsTheWiderShardBySnapshot: its replicas of both, the right one frozen, go into it in one step.
func TestAStoreBehindTheMergeGetsTheWiderShardBySnapshot(t *testing.T) {
	c := newPair(t, 3, func(cfg *Config) {
		cfg.Compaction = Compaction{FloorBytes: 2 << 10, ShardCapBytes: 8 << 10, Factor: 1}
	})
	c.put(7, "b", "1")
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	slow := c.nodes[3]
	if c.leader(7) == slow {
		slow = c.nodes[2]
	}
	c.net.Isolate(slow.id)
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	for i := range 40 {
		c.put(7, "y", strings.Repeat("v", 1000)+fmt.Sprint(i))
	}
	c.until("the log has moved on", func() bool {
		st, _ := c.leader(7).store.Status(7)
		last, _ := slow.store.Status(7)
		return st.FirstIndex > last.LastIndex+1
	})
	if st, err := slow.store.MergeState(8); err != nil || st.Freeze == nil {
		t.Fatalf("%+v, %v", st, err)
	}
	c.net.HealAll()
	c.untilMerged(8, res.d)
	c.put(7, "x", "2")
	c.everywhere(7, "x", "2")
	c.noFaults()
	// What the neighbours knew of the merge has come along.
	if out, err := slow.store.MergeDecision(7, 1, cmd.Epoch); out != apply.MergeCommitted || err != nil {
		t.Fatal(out, err)
	}
}

// TestASnapshotOfAFrozenShardFreezes: a replica that gets it confirms like the others.
func TestASnapshotOfAFrozenShardFreezes(t *testing.T) {
	c := newPair(t, 3, func(cfg *Config) {
		cfg.Compaction = Compaction{FloorBytes: 2 << 10, ShardCapBytes: 8 << 10, Factor: 1}
	})
	c.put(8, "x", "1")
	slow := c.nodes[3]
	if c.leader(8) == slow {
		slow = c.nodes[2]
	}
	lead := c.leader(8)
	c.net.Isolate(slow.id)
	f := freezeOf(lead, 1, 8, 7)
	res := c.mergeOutcome("freeze", c.freeze(lead, 8, f)) // it was heard of a moment ago
	if res.err != nil {
		t.Fatal(res.err)
	}
	// The log of a frozen shard goes on: with terms, and with verifications.
	for range 150 {
		v := async(func() boundaryResult {
			_, index, err := lead.store.Verify(context.Background(), 8, 0)
			return boundaryResult{index: index, err: err}
		})
		if res := c.mergeOutcome("verification", v); res.err != nil {
			t.Fatal(res.err)
		}
	}
	c.until("the log has moved on", func() bool {
		st, _ := c.leader(8).store.Status(8)
		last, _ := slow.store.Status(8)
		return st.FirstIndex > last.LastIndex+1
	})
	if c.confirmed(8, 1, res.index) {
		t.Fatal("a replica that is cut off confirms")
	}
	c.net.HealAll()
	c.until("confirmed", func() bool { return c.confirmed(8, 1, res.index) })
	cmd := &wire.CommitMerge{ID: 1, Epoch: f.IntoEpoch, Frozen: res.index, Right: res.d}
	c.until("the left one is led", func() bool { return c.leader(7) != nil })
	done := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if done.err != nil {
		t.Fatal(done.err)
	}
	c.untilMerged(8, done.d)
	c.put(7, "x", "2")
	c.everywhere(7, "x", "2")
	c.noFaults()
}

// TestAReplicaOfAMergedShardStaysWhileTheMergeMayNeedIt, and goes on the mark of another store when it does not.
func TestAReplicaOfAMergedShardStaysWhileTheMergeMayNeedIt(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	slow := c.nodes[3]
	if c.leader(7) == slow {
		slow = c.nodes[2]
	}
	c.net.Isolate(slow.id)
	if res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd)); res.err != nil {
		t.Fatal(res.err)
	}
	r := slow.store.lookup(8)
	c.until("it asks", func() bool {
		for _, o := range slow.store.Orphans() {
			if o.Shard == 8 {
				return true
			}
		}
		return false
	})
	var proof *ProofError
	if err := slow.store.RemoveMerged(context.Background(), 8, r.id); !errors.As(err, &proof) {
		t.Fatalf("removed what the merge needs: %v", err)
	}
	// Its replica of the left one stops: nothing here comes to the merge any more.
	slow.store.fault(slow.store.lookup(7), "for the test", nil)
	gone := async(func() boundaryResult {
		return boundaryResult{err: slow.store.RemoveMerged(context.Background(), 8, r.id)}
	})
	if res := c.mergeOutcome("removal", gone); res.err != nil {
		t.Fatal(res.err)
	}
	if m, _, _ := slow.eng.Mark(8); m.NextReplicaID != engine.MergedAway {
		t.Fatalf("mark %+v", m)
	}
	if _, _, ok, _ := slow.eng.Get(base.UserKey([]byte("x")), nil); ok {
		t.Fatal("its data is left")
	}
}

// TestAStoreThatLostTheRightReplicaDoesNotMergeWithoutItsData: its left replica stops, to be replaced; the others go on.
func TestAStoreThatLostTheRightReplicaDoesNotMergeWithoutItsData(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(8, "x", "1")
	cmd := c.mustFreeze(1, 8, 7)
	bad := c.nodes[3]
	if c.leader(7) == bad {
		bad = c.nodes[2]
	}
	bad.store.fault(bad.store.lookup(8), "for the test", nil)
	res := c.mergeOutcome("commit", c.commitMerge(c.leader(7), 7, cmd))
	if res.err != nil {
		t.Fatal(res.err)
	}
	c.until("its left replica has stopped", func() bool {
		_, stopped := bad.store.lookup(7).faultReason()
		return stopped
	})
	if d, _ := bad.store.Descriptor(7); string(d.End) != "\x02m" {
		t.Fatalf("it owns %s", d)
	}
	c.mustGet(7, "x", "1")
	c.put(7, "x", "2")
	if bad.store.lookup(8) == nil {
		t.Fatal("the right replica is gone")
	}
}

// TestSnapshotsOfBeforeAMergeAreRefused, of both shards, whoever still has them on their way.
func TestSnapshotsOfBeforeAMergeAreRefused(t *testing.T) {
	c := newPair(t, 3, nil)
	c.put(7, "b", "1")
	c.put(8, "x", "1")
	n := c.nodes[3]
	old := map[base.ShardID]*engine.SnapshotMeta{}
	for _, id := range []base.ShardID{7, 8} {
		r := c.leader(id).store.lookup(id)
		old[id] = &engine.SnapshotMeta{
			Shard: id, From: r.id, To: 3, FromStore: c.leader(id).id, ToStore: 3, RaftTerm: r.lead.Load().term + 5,
			Desc: r.desc.Load(), Applied: r.appliedState(),
		}
	}
	c.mustMerge(1, 8, 7)
	for id, kind := range map[base.ShardID]string{7: "epoch", 8: "mark"} {
		var declined *DeclinedError
		if err := n.store.AcceptSnapshot(old[id]); !errors.As(err, &declined) || declined.kind != kind || declined.Wait != 0 {
			t.Errorf("%s: %v, want it declined for its %s", id, err, kind)
		}
	}
}
