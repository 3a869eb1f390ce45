package shard

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

func TestANewLearnerGetsASnapshotAndCatchesUp(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	for _, k := range []string{"a", "b", "c"} {
		c.put(7, k, "v"+k)
	}
	r := c.learner(7, 4)
	if r.id != 4 {
		t.Fatalf("replica %d", r.id)
	}
	c.put(7, "d", "vd")
	for _, k := range []string{"a", "b", "c", "d"} {
		c.everywhere(7, k, "v"+k)
	}
	d, _ := c.nodes[4].store.Descriptor(7)
	if rep, ok := d.ReplicaOn(4); !ok || rep.Role != base.RoleLearner {
		t.Fatalf("descriptor %s", d)
	}
	// It goes on after a restart, from the log alone.
	c.crash(c.nodes[4], 0)
	c.put(7, "e", "ve")
	c.start(c.nodes[4])
	c.everywhere(7, "e", "ve")
}

// follower returns what the leader knows of a replica.
func follower(lead *testNode, shard base.ShardID, id base.ReplicaID) (out tracker.Progress) {
	lead.store.lookup(shard).worker.rn.WithProgress(func(to uint64, _ raft.ProgressType, pr tracker.Progress) {
		if to == uint64(id) {
			out = pr
		}
	})
	return out
}

// TestEverySnapshotEndsInOneReport: success, a broken stream, and a decline with its wait; until the wait is over raft
// does not try again, and after the report it does (R10).
func TestEverySnapshotEndsInOneReport(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	lead := c.leader(7)
	lead.ship.hold = true
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
	w := func() replicaWorker { return lead.store.lookup(7).worker }
	wanted := func() { c.until("a snapshot is wanted", func() bool { return len(lead.ship.waiting()) == 1 }) }
	end := func(err error) SnapshotRequest {
		t.Helper()
		wanted()
		req := lead.ship.waiting()[0]
		if req.Shard != 7 || req.To != 4 || req.ToStore != 4 || req.Index == 0 || req.Recovery {
			t.Fatalf("request %+v", req)
		}
		if s := w().sending; len(s) != 1 || s[0].To != 4 || s[0].Index != req.Index || s[0].Started == 0 {
			t.Fatalf("in flight %+v", s)
		}
		lead.ship.mu.Lock()
		lead.ship.queue = nil
		lead.ship.mu.Unlock()
		req.Done(err)
		c.settle()
		if len(w().sending) != 0 {
			t.Fatalf("still in flight: %+v", w().sending)
		}
		return req
	}
	quiet := func(ticks int) {
		t.Helper()
		for i := range ticks {
			if len(lead.ship.waiting()) > 0 {
				t.Fatalf("asked again after %d ticks", i)
			}
			c.tick()
		}
	}
	for range 5 { // while it is in flight nobody asks again
		wanted()
		c.tick()
	}
	end(errors.New("the stream broke"))
	quiet(9)
	end(&DeclinedError{Shard: 7, Replica: 4, Reason: "no slot", Wait: 3 * time.Second})
	if pr := follower(lead, 7, 4); pr.State != tracker.StateSnapshot {
		t.Fatalf("state %s before the wait is over", pr.State)
	}
	quiet(29)
	req := end(&DeclinedError{Shard: 7, Replica: 4, Reason: "for ever"})
	quiet(9)
	wanted()
	req.Done(nil) // a second end of an old one is for nobody
	c.settle()
	if len(w().sending) != 1 {
		t.Fatalf("in flight: %+v", w().sending)
	}
	lead.ship.hold = false
	c.initialised(7, 4)
	c.until("fed from the log", func() bool { return follower(lead, 7, 4).State == tracker.StateReplicate })
	if len(w().sending)+len(w().reports) > 0 {
		t.Fatalf("left: %+v %+v", w().sending, w().reports)
	}
	// Without a sender raft is told that there are none.
	lead.store.cfg.Snapshots = nil
	if _, ok := lead.store.lookup(7).offer(); ok {
		t.Fatal("offered")
	}
}

// TestALeaderThatChangesWhileASnapshotTravelsHarmsNothing: the stream of the old leader ends in any way at any time, the
// new one sends its own.
func TestALeaderThatChangesWhileASnapshotTravelsHarmsNothing(t *testing.T) {
	for _, outcome := range []error{nil, errors.New("broken")} {
		c := newCluster(t, 4, nil)
		c.create(desc(7, "", "", 1, 2, 3))
		c.put(7, "a", "1")
		old := c.leader(7)
		old.ship.hold = true
		c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
		c.until("a snapshot is wanted", func() bool { return len(old.ship.waiting()) == 1 })
		req := old.ship.waiting()[0]
		m, st, err := old.ship.stage(req, c.nodes[4])
		if err != nil {
			t.Fatal(err)
		}
		c.net.Isolate(old.id)
		c.until("another leader", func() bool { n := c.leader(7); return n != nil && n != old })
		lead := c.leader(7)
		c.put(7, "b", "2")
		c.until("its snapshot is in", func() bool { return c.nodes[4].store.serving(7) != nil })
		c.everywhere4(7, "b", "2", lead)

		// Now the old leader's arrives: of an older term, and nobody needs it.
		n, was := c.nodes[4], c.nodes[4].store.lookup(7)
		ch := make(chan error, 1)
		n.store.installSnapshot(m, st, func(err error) { ch <- err })
		c.settle()
		declinedAs(t, <-ch, "term")
		if n.store.lookup(7) != was {
			t.Fatal("an old leader's snapshot was installed")
		}
		req.Done(outcome)
		c.net.HealAll()
		for range 20 {
			c.tick()
		}
		if w := old.store.lookup(7).worker; len(w.sending)+len(w.reports) > 0 {
			t.Fatalf("left at the old leader: %+v %+v", w.sending, w.reports)
		}
		old.ship.mu.Lock()
		old.ship.queue = nil
		old.ship.mu.Unlock()
		old.ship.hold = false
		c.put(7, "c", "3")
		c.everywhere(7, "c", "3")
		c.everywhere(7, "a", "1")
	}
}

// everywhere4 waits until a store that hears the leader has applied a value.
func (c *cluster) everywhere4(shard base.ShardID, key, want string, lead *testNode) {
	c.t.Helper()
	c.until(key+" on n4, led by "+lead.id.String(), func() bool {
		v, ok := c.local(c.nodes[4], shard, key)
		return ok && v == want
	})
}

// TestALeadershipThatComesBackFindsItsSnapshotInFlight: the one request answers the MsgSnap of both terms.
func TestALeadershipThatComesBackFindsItsSnapshotInFlight(t *testing.T) {
	c := newCluster(t, 2, nil)
	d := desc(7, "", "", 1, 2)
	d.Replicas[1].Role = base.RoleLearner
	if err := c.nodes[1].store.Create(d, nil, true); err != nil {
		t.Fatal(err)
	}
	lead := c.nodes[1]
	lead.ship.hold = true
	c.until("a snapshot is wanted", func() bool { return len(lead.ship.waiting()) == 1 })
	r := lead.store.lookup(7)
	term := r.worker.rn.BasicStatus().Term
	// A message of a later term deposes it, and it wins the next election alone.
	c.step(lead, message(raftpb.MsgAppResp, 7, 2, 1, 2, 1, term+3))
	c.until("a new term and a second MsgSnap", func() bool {
		return r.lead.Load().leads && r.lead.Load().term > term && follower(lead, 7, 2).State == tracker.StateSnapshot
	})
	if got := lead.ship.waiting(); len(got) != 1 || len(r.worker.sending) != 1 {
		t.Fatalf("%d requests, in flight %+v", len(got), r.worker.sending)
	}
	// It carries the old term, which the learner has left: declined, reported in the new term, sent again.
	lead.ship.hold = false
	c.initialised(7, 2)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
}

// TestAFollowerThatRestartsInMidInstallIsSentAnother: between staging and ingest, and just after the ingest.
func TestAFollowerThatRestartsInMidInstallIsSentAnother(t *testing.T) {
	for _, after := range []bool{false, true} {
		c := newCluster(t, 4, nil)
		c.create(desc(7, "", "", 1, 2, 3))
		c.put(7, "a", "1")
		lead, n := c.leader(7), c.nodes[4]
		crashed := 0
		lead.ship.staged = func(m *engine.SnapshotMeta, st *engine.Staging) {
			if crashed++; crashed > 1 {
				return
			}
			done := make(chan error, 1)
			n.store.installSnapshot(m, st, func(err error) { done <- err })
			for after && len(done) == 0 {
				n.store.Poll()
			}
			c.crash(n, 0)
		}
		lead.ship.down = func() bool { return crashed == 1 }
		c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
		c.until("staged", func() bool { return crashed == 1 })
		c.start(n)
		if got := n.store.serving(7) != nil; got != after {
			t.Fatalf("initialised %t, want %t", got, after)
		}
		crashed++
		c.noStagings(n)
		c.initialised(7, 4)
		c.put(7, "b", "2")
		c.everywhere(7, "a", "1")
		c.everywhere(7, "b", "2")
		if len(n.faults) > 0 {
			t.Fatal(n.faults)
		}
	}
}

// TestASnapshotRightAfterAConfChangeCarriesIt: its configuration is the one at its index (hazard matrixone#23281).
func TestASnapshotRightAfterAConfChangeCarriesIt(t *testing.T) {
	c := newCluster(t, 5, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	var metas []*engine.SnapshotMeta
	for _, n := range c.nodes {
		n.ship.touch = func(m *engine.SnapshotMeta) { metas = append(metas, m) }
	}
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 5})
	c.initialised(7, 4)
	c.initialised(7, 5)
	c.until("the learners are close", func() bool { return follower(c.leader(7), 7, 5).State == tracker.StateReplicate })
	c.changed(7, ReplicaChange{Op: Promote, Store: 5})
	if len(metas) < 2 {
		t.Fatalf("%d snapshots", len(metas))
	}
	for _, m := range metas {
		if err := m.Applied.Conf.Equivalent(engine.ConfStateOf(m.Desc)); err != nil || !lists(&m.Applied.Conf, m.To) {
			t.Errorf("snapshot for %d at %d: %v, configuration %v, descriptor %s",
				m.To, m.Applied.Index, err, m.Applied.Conf, m.Desc)
		}
	}
	c.until("the same configuration everywhere", func() bool {
		want, _ := c.leader(7).store.Status(7)
		same := len(want.Conf.VotersOutgoing) == 0 && len(want.Conf.Voters) == 4
		c.each(func(n *testNode) {
			st, _ := n.store.Status(7)
			same = same && st.Conf.Equivalent(want.Conf) == nil
		})
		return same
	})
}

// TestALeaderWhoseDataCannotBeReadForASnapshotStops: another replica leads and sends its own; the only voter stays.
func TestALeaderWhoseDataCannotBeReadForASnapshotStops(t *testing.T) {
	for _, stores := range [][]base.StoreID{{1, 2, 3}, {1}} {
		c := newCluster(t, 4, nil)
		c.create(desc(7, "", "", stores...))
		lead := c.leader(7)
		lead.ship.hold = true
		c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
		c.until("a snapshot is wanted", func() bool { return len(lead.ship.waiting()) == 1 })
		req := lead.ship.waiting()[0]
		lead.ship.mu.Lock()
		lead.ship.queue = nil
		lead.ship.mu.Unlock()
		req.Done(fmt.Errorf("chunk 3: %w", engine.ErrCorrupt))
		lead.ship.hold = false
		c.initialised(7, 4)
		if _, stopped := lead.store.lookup(7).faultReason(); stopped != (len(stores) > 1) {
			t.Fatalf("of %d voters: stopped %t", len(stores), stopped)
		}
	}
}
