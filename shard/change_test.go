package shard

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

type changeOutcome struct {
	d   *base.Descriptor
	err error
}

// change asks for one and returns where its outcome will be.
func (c *cluster) change(n *testNode, shard base.ShardID, confVer uint64, changes ...ReplicaChange) chan changeOutcome {
	c.t.Helper()
	ch := make(chan changeOutcome, 1)
	req := &changeRequest{
		confVer: confVer, changes: changes, ticks: changeHeartbeats * n.store.cfg.HeartbeatTick,
		done: func(d *base.Descriptor, err error) { ch <- changeOutcome{d, err} },
	}
	w := n.store.workerOf(shard)
	if !n.store.call(n.store.lookup(shard), func(r *replica) { w.startChange(r, req) }) {
		c.t.Fatal("the replica takes no calls")
	}
	return ch
}

func (c *cluster) decided(ch chan changeOutcome) (out changeOutcome) {
	c.t.Helper()
	c.until("outcome of the change", func() bool {
		select {
		case out = <-ch:
			return true
		default:
			return false
		}
	})
	return out
}

// mustChange changes replicas at the leader.
func (c *cluster) mustChange(shard base.ShardID, changes ...ReplicaChange) *base.Descriptor {
	c.t.Helper()
	c.until("a leader", func() bool { return c.leader(shard) != nil })
	out := c.decided(c.change(c.leader(shard), shard, 0, changes...))
	if out.err != nil {
		c.t.Fatal(out.err)
	}
	return out.d
}

// shapes waits until all stores that have the shard show one shape.
func (c *cluster) shapes(shard base.ShardID, want string) {
	c.t.Helper()
	c.until("descriptor "+want, func() bool {
		all := true
		c.each(func(n *testNode) {
			if d, ok := n.store.Descriptor(shard); ok {
				all = all && shape(d) == want
			}
		})
		return all
	})
}

func promote(s base.StoreID) ReplicaChange { return ReplicaChange{Op: Promote, Store: s} }
func demote(s base.StoreID) ReplicaChange  { return ReplicaChange{Op: Demote, Store: s} }
func remove(s base.StoreID) ReplicaChange  { return ReplicaChange{Op: Remove, Store: s} }
func add(s base.StoreID) ReplicaChange     { return ReplicaChange{Op: AddLearner, Store: s} }

// learners makes the given stores' replicas of a descriptor learners.
func learners(d *base.Descriptor, stores ...base.StoreID) *base.Descriptor {
	for i := range d.Replicas {
		for _, s := range stores {
			if d.Replicas[i].Store == s {
				d.Replicas[i].Role = base.RoleLearner
			}
		}
	}
	return d
}

func TestAReplicaMovesInOneJointStepEvenIfItLeads(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(learners(desc(7, "", "", 1, 2, 3), 3))
	c.put(7, "a", "1")
	if c.leader(7).id != 1 {
		c.outcome(c.transfer(c.leader(7), 7, 1))
	}
	if d := c.mustChange(7, promote(3), demote(1)); shape(d) != "2 next 4: 1o 2v 3i" {
		t.Fatalf("after the change: %s", d)
	}
	// Nobody asks for it: the leader hands over and the next one leaves the joint configuration.
	c.shapes(7, "3 next 4: 1l 2v 3v")
	c.until("a voter leads", func() bool { n := c.leader(7); return n != nil && n.id != 1 })
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")

	if d := c.mustChange(7, remove(1)); shape(d) != "4 next 4: 2v 3v" {
		t.Fatalf("after the removal: %s", d)
	}
	gone := c.nodes[1]
	c.until("the replica is gone", func() bool { return gone.store.lookup(7) == nil })
	mark, ok, err := gone.eng.Mark(7)
	if err != nil || !ok || mark.ReplicaID != 0 || mark.NextReplicaID != 4 {
		t.Fatalf("mark %v %t %v", mark, ok, err)
	}
	c.put(7, "c", "3")
	c.crash(gone, 0) // the removal was synced
	c.start(gone)
	if gone.store.lookup(7) != nil {
		t.Fatal("a crash brings the removed replica back")
	}
	if v, ok, err := rawGet(gone, "a"); ok || err != nil {
		t.Fatalf("its data is still there: %q %v", v, err)
	}
}

func TestChangesThatWouldHurtAreRefusedWithTheirReason(t *testing.T) {
	c := newCluster(t, 5, nil)
	c.create(learners(desc(7, "", "", 1, 2, 3, 4), 4))
	c.put(7, "a", "1")
	lead := c.leader(7)
	follower := c.nodes[lead.id%3+1]
	refused := func(n *testNode, retry bool, why string, confVer uint64, changes ...ReplicaChange) {
		t.Helper()
		out := c.decided(c.change(n, 7, confVer, changes...))
		var ce *ChangeError
		if !errors.As(out.err, &ce) || !strings.Contains(ce.Reason, why) || ce.Retry != retry || ce.Shard != 7 {
			t.Errorf("%v: got %v, want %q, retry %t", changes, out.err, why, retry)
		}
	}
	refused(lead, false, "no change", 0)
	refused(lead, false, "ConfVer 9", 9, add(5))
	refused(lead, false, "holds replica 2", 0, add(2))
	refused(lead, false, "next id, 5", 0, ReplicaChange{Op: AddLearner, Store: 5, Replica: 3})
	refused(lead, false, "no replica on n5", 0, promote(5))
	refused(lead, false, "is 4, not 3", 0, ReplicaChange{Op: Promote, Store: 4, Replica: 3})
	refused(lead, false, "no store", 0, ReplicaChange{Op: Promote})
	refused(lead, false, "unknown", 0, ReplicaChange{Op: 9, Store: 1})
	refused(lead, false, "is a voter", 0, promote(2))
	refused(lead, false, "demote it first", 0, remove(2))
	refused(lead, false, "of its own", 0, add(5), promote(4))
	refused(lead, false, "changed twice", 0, promote(4), promote(4))
	refused(lead, false, "all voters", 0, demote(1), demote(2), demote(3))

	var not *NotLeaderError
	if out := c.decided(c.change(follower, 7, 0, add(5))); !errors.As(out.err, &not) || not.Leader != lead.id {
		t.Errorf("at a follower: %v", out.err)
	}

	// The learner is cut off: it must not become a voter. Then a voter as well: two of three are left, which is enough to
	// go on, and not to lose one more.
	c.net.Isolate(4)
	forget := func() { // raft asks twice in an election timeout or two who has been heard of
		for range 2 * lead.store.cfg.ElectionTick {
			c.tick()
		}
	}
	forget()
	refused(lead, true, "the learner on n4 has not been heard of", 0, promote(4))
	c.net.HealAll()
	c.net.Isolate(follower.id)
	forget()
	refused(lead, true, "1 of the 2 voters of the next configuration", 0, demote(6-lead.id-follower.id))
	c.net.HealAll()
	c.put(7, "b", "2")
	if d := c.mustChange(7, promote(4)); shape(d) != "2 next 5: 1v 2v 3v 4i" {
		t.Errorf("a healthy one: %s", d)
	}
	c.shapes(7, "3 next 5: 1v 2v 3v 4v")
}

func TestALaggingLearnerIsNotPromoted(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.EntryBytes = 1 })
	c.create(learners(desc(7, "", "", 1, 2, 3), 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	c.nodes[3].filter(func(m *wire.RaftMessage) bool { // hears and acknowledges nothing, and seems alive
		return m.Msg.Type != raftpb.MsgAppResp
	})
	a := newAnswers(t)
	for range maxPromoteLag + 10 {
		c.write(lead, op(wire.OpPut, 7, "k", "v"), a, time.Hour)
	}
	c.until("the writes", func() bool { return a.missing() == 0 })
	out := c.decided(c.change(lead, 7, 0, promote(3)))
	var ce *ChangeError
	if !errors.As(out.err, &ce) || !ce.Retry || !strings.Contains(ce.Reason, "the learner on n3") {
		t.Fatalf("%v", out.err)
	}
	c.nodes[3].filter(nil)
	c.mustChange(7, promote(3))
	c.shapes(7, "3 next 4: 1v 2v 3v")
}

func TestOfTwoChangesAtOnceOneIsRefused(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(learners(desc(7, "", "", 1, 2, 3, 4), 3, 4))
	c.put(7, "a", "1")
	lead := c.leader(7)
	first := c.change(lead, 7, 0, promote(3))
	second := c.change(lead, 7, 0, promote(4))
	if out := c.decided(first); out.err != nil {
		t.Fatal(out.err)
	}
	var ce *ChangeError
	if out := c.decided(second); out.err != nil && (!errors.As(out.err, &ce) || !ce.Retry) {
		t.Fatalf("second: %v", out.err)
	} else if out.err == nil {
		t.Fatal("both were accepted for one ConfVer")
	}
	c.shapes(7, "3 next 5: 1v 2v 3v 4l")
	c.mustChange(7, promote(4))
	c.shapes(7, "5 next 5: 1v 2v 3v 4v")
}

// Raft turns a conf change that it does not like into an empty entry: the waiter must hear a definite answer.
func TestAChangeThatRaftOrApplyRefusesIsDefinitelyNotDone(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	var ce *ChangeError
	expect := func(what string, ch chan error, why string) {
		t.Helper()
		select {
		case err := <-ch:
			if !errors.As(err, &ce) || !strings.Contains(ce.Reason, why) {
				t.Errorf("%s: %v, want %q", what, err, why)
			}
		default:
			t.Errorf("%s: no answer", what)
		}
	}
	expect("made for another descriptor",
		c.confChange(lead, 7, confContext{confVer: 5, ops: []confOp{{AddLearner, 4, 9}}}), "made for ConfVer 5")
	expect("leaving what is not joint", c.confChange(lead, 7, confContext{confVer: 1}), "raft")
	lead.hold = true
	first := c.confChange(lead, 7, confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 9}}})
	lead.hold = false
	if second := c.confChange(lead, 7, confContext{confVer: 2, ops: []confOp{{AddLearner, 5, 8}}}); len(first) != 1 {
		t.Error("the first has no answer")
	} else if err := <-first; err != nil {
		t.Error(err)
	} else if err := <-second; err != nil {
		t.Error(err)
	}
	c.shapes(7, "3 next 6: 1v 2v 3v 4l 5l")
}

func TestAChangeOfALeaderThatIsCutOffIsAmbiguous(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(learners(desc(7, "", "", 1, 2, 3), 3))
	c.put(7, "a", "1")
	old := c.leader(7)
	c.everywhere(7, "a", "1")
	// The acknowledgements are lost, then the leadership.
	c.each(func(n *testNode) {
		if n != old {
			n.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgAppResp })
		}
	})
	ch := c.change(old, 7, 0, add(9))
	c.until("the proposal", func() bool { return len(old.store.lookup(7).worker.tracked) == 1 })
	c.net.Isolate(old.id)
	if out := c.decided(ch); !errors.Is(out.err, ErrAmbiguousChange) {
		t.Fatalf("%v, want ambiguous", out.err)
	}
	var not *NotLeaderError
	if out := c.decided(c.change(old, 7, 0, add(9))); !errors.As(out.err, &not) {
		t.Fatalf("%v, want not leader", out.err)
	}
	c.each(func(n *testNode) { n.filter(nil) })
	c.net.HealAll()
	c.until("a leader", func() bool { return c.leader(7) != nil })
	c.put(7, "c", "3")
}
