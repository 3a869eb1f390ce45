package shard

import (
	"errors"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// bare checks that nothing is left of a shard in an engine but a mark.
func bare(t *testing.T, e *engine.Engine, shard base.ShardID, next base.ReplicaID) {
	t.Helper()
	states, err := e.LoadReplicas() // refuses whatever has no replica
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range states {
		if st.Shard == shard {
			t.Fatalf("%s is still there: %+v", shard, st)
		}
	}
	if mark, ok, err := e.Mark(shard); err != nil || !ok || mark != (engine.ReplicaMark{NextReplicaID: next}) {
		t.Fatalf("mark %+v, %t, %v; want next %d", mark, ok, err, next)
	}
	it, err := e.NewIter(base.UserKey(nil), base.UserEnd(), false)
	if err != nil {
		t.Fatal(err)
	}
	if it.Valid() {
		t.Errorf("data is left: %x", it.Key())
	}
	if err := errors.Join(it.Err(), it.Close()); err != nil {
		t.Fatal(err)
	}
}

// removeReplica drives a removal by proof to its end.
func (c *cluster) removeReplica(n *testNode, shard base.ShardID, id base.ReplicaID, proof *base.Descriptor) error {
	c.t.Helper()
	for {
		ch := make(chan error, 1)
		busy, err := n.store.removeReplica(shard, id, proof, func(err error) { ch <- err })
		c.settle()
		switch {
		case err != nil:
			return err
		case busy == nil:
			return <-ch
		}
		<-busy
	}
}

// TestARemovalIsOneStep: a crash at any sync around the application of the conf change leaves the whole replica, which
// then removes itself, or its mark and nothing else (hazard tikv#1262).
func TestARemovalIsOneStep(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.learner(7, 4)
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	n := c.nodes[4]
	it, err := n.eng.NewIter(base.UserKey(nil), base.UserEnd(), false)
	if err != nil {
		t.Fatal(err)
	}
	whole, gone := 0, 0
	clones := c.inClones(n, func() {
		c.removed(7, 4)
		c.until("removal", func() bool { return n.store.lookup(7) == nil })
	}, func(e *engine.Engine, states []engine.ReplicaState) {
		if len(states) == 0 {
			gone++
			bare(t, e, 7, 5)
			return
		}
		whole++
		if _, _, ok, err := e.Get(base.UserKey([]byte("a")), nil); !ok || err != nil {
			t.Errorf("the replica is there and its data is not: %v", err)
		}
	})
	if clones == 0 || whole == 0 || gone == 0 {
		t.Fatalf("%d clones, %d with the replica, %d without", clones, whole, gone)
	}
	bare(t, n.eng, 7, 5)
	if !it.Valid() || string(it.Value()) != "1" {
		t.Error("a view that was open lost its rows")
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if n.store.pool.Queued(0) > 0 || len(n.store.workers[0].replicas) != 0 || len(n.faults) > 0 {
		t.Fatalf("left at the worker: %v, faults %v", n.store.workers[0].replicas, n.faults)
	}
	c.crash(n, 0)
	c.start(n)
	bare(t, n.eng, 7, 5)
}

// TestACrashBeforeTheRemovalIsDurableRemovesAgain restarts from the moment at which the conf change is in the log and
// the removal is not.
func TestACrashBeforeTheRemovalIsDurableRemovesAgain(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.learner(7, 4)
	n := c.nodes[4]
	n.hold = true // apply and life stand still, the log goes on
	c.removed(7, 4)
	for range 5 {
		c.tick()
	}
	if n.store.lookup(7) == nil {
		t.Fatal("removed without apply")
	}
	c.crash(n, 0)
	n.hold = false
	c.start(n)
	c.until("the log is applied or the orphan asks", func() bool {
		return n.store.lookup(7) == nil || len(n.store.Orphans()) > 0
	})
	if r := n.store.lookup(7); r != nil {
		d, _ := c.leader(7).store.Descriptor(7)
		if err := c.removeReplica(n, 7, r.id, d); err != nil {
			t.Fatal(err)
		}
	}
	bare(t, n.eng, 7, 5)
}

// TestOldMessagesNeverBringARemovedReplicaBack delivers everything that was ever sent to a removed replica again, before
// and after restarts: the mark outlives everything (hazard tikv#10533).
func TestOldMessagesNeverBringARemovedReplicaBack(t *testing.T) {
	c := newCluster(t, 4, nil)
	var old []wire.RaftMessage
	for _, id := range []base.StoreID{1, 2, 3} {
		c.nodes[id].tap(func(to base.StoreID, msgs []wire.RaftMessage) {
			if to == 4 {
				old = append(old, msgs...)
			}
		})
	}
	c.create(desc(7, "", "", 1, 2, 3))
	c.learner(7, 4)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.removed(7, 4)
	n := c.nodes[4]
	c.until("removal", func() bool { return n.store.lookup(7) == nil })
	if len(old) < 5 {
		t.Fatalf("only %d messages", len(old))
	}
	for range 3 {
		c.step(n, old...)
		for i := range old {
			c.step(n, old[i], vote(7, 1, 4, 1, 4, 99))
		}
		if n.store.lookup(7) != nil {
			t.Fatal("the replica is back")
		}
		bare(t, n.eng, 7, 5)
		c.crash(n, 0)
		c.start(n)
	}
}

// TestAReplicaComesBackUnderANewIDOnly adds, removes and adds again on one store, and replays what was meant for the
// first replica at the second: messages, reports of lost appends, the end of a snapshot (hazard tikv#17469).
func TestAReplicaComesBackUnderANewIDOnly(t *testing.T) {
	c := newCluster(t, 4, nil)
	var old []wire.RaftMessage
	for _, id := range []base.StoreID{1, 2, 3} {
		c.nodes[id].tap(func(to base.StoreID, msgs []wire.RaftMessage) {
			for _, m := range msgs {
				if to == 4 && m.To == 4 {
					old = append(old, m)
				}
			}
		})
	}
	c.create(desc(7, "", "", 1, 2, 3))
	lead := c.leader(7)
	var dones []func(error)
	lead.ship.hold = true
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
	c.until("a snapshot is wanted", func() bool { return len(lead.ship.waiting()) == 1 })
	dones = append(dones, lead.ship.waiting()[0].Done)
	lead.ship.hold = false
	c.initialised(7, 4)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.removed(7, 4)
	n := c.nodes[4]
	c.until("removal", func() bool { return n.store.lookup(7) == nil })

	lead.ship.hold = true
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
	c.until("a snapshot is wanted", func() bool { return len(lead.ship.waiting()) == 1 })
	for _, f := range dones {
		f(nil) // again: of the first replica's snapshot
		f(errors.New("broken"))
	}
	c.step(n, old...)
	r := n.store.lookup(7)
	if r == nil || r.id != 5 || !r.uninitialised() {
		t.Fatalf("replica %v", r)
	}
	if got := lead.store.lookup(7).worker.sending; len(got) != 1 || got[0].To != 5 {
		t.Fatalf("in flight: %+v", got)
	}
	lead.ship.hold = false
	c.initialised(7, 4)
	r = n.store.lookup(7)
	before := r.worker.rn.BasicStatus()
	c.step(n, old...)
	n.store.Unreachable(7, 4, 1)
	c.settle()
	if after := r.worker.rn.BasicStatus(); after.HardState != before.HardState || len(n.faults) > 0 {
		t.Fatalf("an old message moved it: %+v to %+v, faults %v", before, after, n.faults)
	}
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	c.everywhere(7, "a", "1")
	if d, _ := n.store.Descriptor(7); d.NextReplicaID != 6 {
		t.Fatalf("descriptor %s", d)
	}
	if mark, _, _ := n.eng.Mark(7); mark.ReplicaID != 5 || mark.NextReplicaID < 6 {
		t.Fatalf("mark %+v", mark)
	}
}

// TestAReplicaThatMissedItsRemovalGoesOnProofOnly: no descriptor but an applied one that was made after the replica and
// does not list it (I5).
func TestAReplicaThatMissedItsRemovalGoesOnProofOnly(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	before, _ := c.leader(7).store.Descriptor(7)
	c.learner(7, 4)
	listed, _ := c.leader(7).store.Descriptor(7)
	c.net.Isolate(4)
	c.removed(7, 4)
	n := c.nodes[4]
	c.changed(7, ReplicaChange{Op: AddLearner, Store: 4})
	proof, _ := c.leader(7).store.Descriptor(7)
	c.net.HealAll()
	for range 5 {
		c.tick()
	}
	// The newer replica is not created beside the older one, which knows now that it has to ask.
	if r := n.store.lookup(7); r == nil || r.id != 4 {
		t.Fatalf("replica %v", r)
	}
	if o := n.store.Orphans(); len(o) != 1 || o[0].Replica != 4 || o[0].Desc == nil {
		t.Fatalf("orphans %+v", o)
	}
	other := proof.Clone()
	other.Shard = 8
	for what, d := range map[string]*base.Descriptor{"none": nil, "older": before, "listing": listed, "other": other} {
		if err := c.removeReplica(n, 7, 4, d); !errors.As(err, new(*ProofError)) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if n.store.lookup(7) == nil {
		t.Fatal("removed without proof")
	}
	if err := c.removeReplica(n, 7, 4, proof); err != nil {
		t.Fatal(err)
	}
	if err := c.removeReplica(n, 7, 4, proof); err != nil { // again
		t.Fatal(err)
	}
	if err := c.removeReplica(c.nodes[1], 9, 4, &base.Descriptor{Shard: 9, NextReplicaID: 9}); !errors.As(err, new(*NotFoundError)) {
		t.Fatalf("never had one: %v", err)
	}
	c.initialised(7, 4)
	if r := n.store.lookup(7); r.id != 5 {
		t.Fatalf("replica %v", r)
	}
	c.everywhere(7, "a", "1")
	if err := c.removeReplica(n, 7, 4, proof); err != nil || n.store.lookup(7) == nil {
		t.Fatalf("an old proof removed the new replica: %v", err)
	}
}

func TestFaultedAndUninitialisedReplicasGoOnProofToo(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.learner(7, 4)
	n := c.nodes[4]
	n.store.fault(n.store.lookup(7), "bad block", nil)
	c.removed(7, 4)
	c.tick()
	proof, _ := c.leader(7).store.Descriptor(7)
	clones := c.inClones(n, func() {
		if err := c.removeReplica(n, 7, 4, proof); err != nil {
			t.Error(err)
		}
	}, func(e *engine.Engine, states []engine.ReplicaState) {
		if len(states) == 0 {
			bare(t, e, 7, 5)
		}
	})
	if clones == 0 {
		t.Fatal("no sync was seen")
	}
	bare(t, n.eng, 7, 5)

	c.step(n, message(raftpb.MsgHeartbeat, 7, 1, 5, 1, 4, 50))
	if r := n.store.lookup(7); r == nil || !r.uninitialised() {
		t.Fatalf("replica %v", r)
	}
	proof = proof.Clone()
	proof.NextReplicaID = 6
	if err := c.removeReplica(n, 7, 5, proof); err != nil {
		t.Fatal(err)
	}
	bare(t, n.eng, 7, 6)
}

// TestRequestsAtARemovedReplicaAreAnswered: what never was proposed goes elsewhere, what was is ambiguous.
func TestRequestsAtARemovedReplicaAreAnswered(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	n := c.leader(7)
	c.net.Isolate(n.id)
	a := newAnswers(t)
	proposed := c.write(n, op(wire.OpPut, 7, "a", "1"), a, 0)
	rd := c.readIndex(n, 7, a, 0)
	c.settle()
	r := n.store.lookup(7)
	queued := c.write(n, op(wire.OpPut, 7, "b", "1"), a, 0)
	moved := make(chan error, 1)
	if err := n.store.requestTransfer(7, 0, func(_ uint64, err error) { moved <- err }); err != nil {
		t.Fatal(err)
	}
	proof := desc(7, "", "", 1, 2, 3)
	proof.Replicas = proof.Replicas[:0]
	proof.NextReplicaID = 9
	ch := make(chan error, 1)
	if busy, err := n.store.removeReplica(7, r.id, proof, func(err error) { ch <- err }); busy != nil || err != nil {
		t.Fatal(err)
	}
	c.settle()
	if err := <-ch; err != nil {
		t.Fatal(err)
	}
	for id, want := range map[uint64]wire.Code{proposed: wire.Ambiguous, rd: wire.ShardNotFound, queued: wire.ShardNotFound} {
		if ans, ok := a.of(id); !ok || ans.Code != want {
			t.Errorf("request %d: %s %t, want %s", id, ans.Code, ok, want)
		}
	}
	if err := <-moved; !errors.As(err, new(*NotFoundError)) {
		t.Errorf("transfer: %v", err)
	}
	late := c.write(n, op(wire.OpPut, 7, "c", "1"), a, 0)
	if ans, ok := a.of(late); !ok || ans.Code != wire.ShardNotFound {
		t.Errorf("late: %s %t", ans.Code, ok)
	}
	if a.missing() > 0 {
		t.Errorf("%d requests have no answer", a.missing())
	}
	for _, used := range []int64{
		n.store.used.inbox.Load(), n.store.used.queue.Load(), n.store.used.uncommitted.Load(), n.store.used.apply.Load(),
		n.store.used.reads.Load(),
	} {
		if used != 0 {
			t.Errorf("the store still counts %d", used)
		}
	}
}

// TestARemovalDoesNotShowInReads: the deletions are visible before they are durable and before the replica is out of
// the maps. A read that a leader confirmed earlier must not find the keys gone meanwhile (V6).
func TestARemovalDoesNotShowInReads(t *testing.T) {
	c := newCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	r := c.learner(7, 4)
	c.everywhere(7, "a", "1")
	n := c.nodes[4]
	proof := r.desc.Load().Clone()
	proof.Replicas = proof.Replicas[:3]
	proof.NextReplicaID = r.id + 1

	read := func(code wire.OpCode) wire.Code {
		o := op(code, 7, "a", "")
		if code == wire.OpScan {
			o.Value = base.UserEnd()
		}
		var a wire.Answer
		if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &a); err != nil {
			t.Fatal(err)
		}
		if code == wire.OpScan && a.Code == wire.OK && len(a.Payload) == 0 {
			return wire.NotFound
		}
		return a.Code
	}
	for _, code := range []wire.OpCode{wire.OpGet, wire.OpScan} {
		if got := read(code); got != wire.OK {
			t.Fatalf("%s before the removal: %s", code, got)
		}
	}
	release := c.holdSyncs(n)
	if _, err := n.store.removeReplica(7, r.id, proof, func(error) {}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c.drain()
	}
	if _, _, ok, err := n.eng.Get(base.UserKey([]byte("a")), nil); ok || err != nil || n.store.lookup(7) == nil {
		t.Fatalf("the removal is not under way: %t, %v", ok, err)
	}
	for _, code := range []wire.OpCode{wire.OpGet, wire.OpScan} {
		if got := read(code); got != wire.NotLeader {
			t.Errorf("%s during the removal: %s", code, got)
		}
	}
	release()
	c.until("removal", func() bool { return n.store.lookup(7) == nil })
}

// TestAStopAnswersAtAReplacedReplica: a replica that has left the maps, and whose worker has not heard of it when the
// store stops, still answers what waits there.
func TestAStopAnswersAtAReplacedReplica(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	n := c.leader(7)
	a := newAnswers(t)
	c.write(n, op(wire.OpPut, 7, "a", "1"), a, 0)
	c.readIndex(n, 7, a, 0)
	n.store.unpublish(n.store.lookup(7), engine.ReplicaMark{NextReplicaID: 5}, "for the test")
	c.stop(n)
	if a.missing() > 0 {
		t.Fatalf("%d requests have no answer", a.missing())
	}
}
