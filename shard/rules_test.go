package shard

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// withLearner is a shard with one voter, on store 1, and a learner on store 2.
func withLearner(shard base.ShardID) *base.Descriptor {
	d := desc(shard, "", "", 1, 2)
	d.Replicas[1].Role = base.RoleLearner
	return d
}

func TestR1NoCommitLeavesBeforeTheSyncThatMakesItTrue(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.create(withLearner(7))
	c.put(7, "a", "1")
	c.settle()
	n := c.nodes[1]
	durable := n.store.lookup(7).applied.Load()

	var sent []raftpb.Message
	n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			sent = append(sent, msgs[i].Msg)
		}
	})
	release := c.holdSyncs(n)
	a := newAnswers(t)
	req := c.write(n, op(wire.OpPut, 7, "b", "2"), a, 0)
	for range 5 { // ticks too: heartbeats carry commit indexes as well
		c.clock.now.Add(int64(100 * time.Millisecond))
		n.store.TickAll()
		c.drain()
	}
	for _, m := range sent {
		if m.Commit > durable {
			t.Fatalf("%s with commit %d left before the sync of entry %d", m.Type, m.Commit, durable+1)
		}
	}
	if _, ok := a.of(req); ok {
		t.Fatal("answered before the sync")
	}
	if got := n.store.lookup(7).applied.Load(); got != durable {
		t.Fatalf("applied %d before the sync, %d is durable", got, durable)
	}
	release()
	c.until("the answer", func() bool { _, ok := a.of(req); return ok })
	c.everywhere(7, "b", "2")
}

func TestR1AppendsLeaveBeforeTheSyncAndVotesDoNot(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.settle()
	lead := c.leader(7)
	release := c.holdSyncs(lead)
	entries := 0
	lead.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			entries += len(msgs[i].Msg.Entries)
		}
	})
	a := newAnswers(t)
	req := c.write(lead, op(wire.OpPut, 7, "b", "2"), a, 0)
	c.drain()
	if entries != 2 {
		t.Fatalf("%d entries left before the leader's sync, want one to each follower", entries)
	}
	release()
	c.until("the answer", func() bool { _, ok := a.of(req); return ok })

	// The followers elect; no vote leaves a store whose disk stands still.
	var votes []raftpb.MessageType
	var releases []func()
	c.each(func(n *testNode) {
		if n == lead {
			return
		}
		releases = append(releases, c.holdSyncs(n))
		n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			for i := range msgs {
				if m := msgs[i].Msg; m.Type == raftpb.MsgVote || m.Type == raftpb.MsgVoteResp && !m.Reject {
					votes = append(votes, m.Type)
				}
			}
		})
	})
	c.stop(lead)
	for range 60 {
		c.clock.now.Add(int64(100 * time.Millisecond))
		c.each(func(n *testNode) { n.store.TickAll() })
		c.drain()
	}
	if len(votes) > 0 {
		t.Fatalf("left before the sync: %v", votes)
	}
	for _, f := range releases {
		f()
	}
	c.until("a leader", func() bool { return c.leader(7) != nil })
	if len(votes) == 0 {
		t.Fatal("no vote was seen")
	}
	c.mustGet(7, "b", "2")
}

func TestR2AReadyWithAConfChangeWaitsForApply(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	lead.hold = true
	r := lead.store.lookup(7)
	c.confChange(lead, 7, confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 9}}})
	c.settle()
	if !r.worker.inflight || r.worker.confs != 1 {
		t.Fatalf("in flight %t with %d conf changes, want the Ready held until apply has run",
			r.worker.inflight, r.worker.confs)
	}
	if cs := r.worker.rn.Status().Config; len(cs.Learners) != 0 {
		t.Fatalf("raft has configuration %s before it is applied", cs)
	}
	lead.hold = false
	c.settle()
	if r.worker.inflight {
		t.Fatal("still in flight after apply")
	}
	if cs := r.worker.rn.Status().Config; len(cs.Learners) != 1 {
		t.Fatalf("raft has configuration %s, want the learner", cs)
	}
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	for _, id := range c.ids() {
		c.crash(c.nodes[id], 100)
		c.start(c.nodes[id])
		st, _ := c.nodes[id].store.Status(7)
		if len(st.Conf.Learners) != 1 || st.Conf.Learners[0] != 4 || shape(st.Desc) != "2 next 5: 1v 2v 3v 4l" {
			t.Fatalf("store %s restarts with %v, %s", id, st.Conf, st.Desc)
		}
	}
}

func TestR8AnInvalidConfChangeIsRefusedByAllAndFaultsNobody(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	lead := c.leader(7)
	c.confChange(lead, 7, confContext{confVer: 1, ops: []confOp{{Demote, 1, 1}, {Demote, 2, 2}, {Demote, 3, 3}}})
	c.put(7, "a", "1")
	lead.store.call(lead.store.lookup(7), func(r *replica) { // of a binary before contexts, or of none
		cc := raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeAddLearnerNode, NodeID: 9}}}
		if err := r.worker.rn.ProposeConfChange(cc); err != nil {
			t.Error(err)
		}
	})
	c.put(7, "a", "2")
	c.everywhere(7, "a", "2")
	c.each(func(n *testNode) {
		st, _ := n.store.Status(7)
		if st.Faulted != "" || len(st.Conf.Voters) != 3 || len(st.Conf.VotersOutgoing) != 0 ||
			shape(st.Desc) != "1 next 4: 1v 2v 3v" {
			t.Errorf("store %s: %q %v %s", n.id, st.Faulted, st.Conf, st.Desc)
		}
	})
}

// confChange proposes a change as it is, without the checks before a proposal.
func (c *cluster) confChange(n *testNode, shard base.ShardID, cc confContext) (outcome chan error) {
	c.t.Helper()
	outcome = make(chan error, 1)
	n.store.call(n.store.lookup(shard), func(r *replica) {
		done := func(_ *base.Descriptor, err error) { outcome <- err }
		if err := n.store.workerOf(shard).proposeConf(r, &cc, done); err != nil {
			c.t.Error(err)
		}
	})
	c.settle()
	return outcome
}

func TestR3AStateAppliedAboveTheStoredCommitIndexLoads(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	for range 5 {
		c.put(7, "a", "1")
	}
	n := c.nodes[1]
	c.crash(n, 100)
	commit, applied := stored(t, n)
	if commit >= applied {
		t.Fatalf("stored commit %d, applied %d: the commit-only write that R3 is about is back", commit, applied)
	}
	c.start(n)
	if got := n.store.lookup(7).commit.Load(); got < applied {
		t.Fatalf("commit %d after the restart, applied %d", got, applied)
	}
	c.until("leader", func() bool { return c.leader(7) != nil })
	c.mustGet(7, "a", "1")
}

// stored returns what a stopped store has on disk about its first replica.
func stored(t *testing.T, n *testNode) (commit, applied uint64) {
	t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "data", FS: n.fs})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = eng.Close() }()
	st, err := eng.LoadReplicas()
	if err != nil {
		t.Fatal(err)
	}
	return st[0].Hard.Commit, st[0].Applied.Index
}

func TestR4ReadContextsAreNeverReused(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	seen := map[string]int{} // context -> life of the store that sent it
	watch := func(n *testNode) {
		life := int(n.life)
		n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			for i := range msgs {
				m := msgs[i].Msg
				if m.Type != raftpb.MsgHeartbeat || len(m.Context) == 0 {
					continue
				}
				key := string(m.Context)
				if len(key) != contextSize || binary.BigEndian.Uint64(m.Context) != uint64(msgs[i].From) {
					t.Errorf("context %x of replica %s", m.Context, msgs[i].From)
				}
				if was, ok := seen[key]; ok && was != life {
					t.Errorf("context %x of life %d comes back in life %d", m.Context, was, life)
				}
				seen[key] = life
			}
		})
	}
	c.each(watch)
	c.create(desc(7, "", "", 1, 2, 3))
	const lives, reads = 3, 4
	for range lives {
		c.until("leader", func() bool { return c.leader(7) != nil })
		for range reads {
			_, _ = c.get(7, "a")
		}
		lead := c.leader(7)
		c.crash(lead, 100)
		c.start(lead)
		watch(lead)
	}
	if len(seen) != lives*reads {
		t.Fatalf("%d contexts for %d reads", len(seen), lives*reads)
	}
}

func TestR5PendingReadsFailWhenLeadershipIsLost(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	old := c.leader(7)
	c.net.Isolate(old.id)
	a := newAnswers(t)
	for range 3 {
		c.readIndex(old, 7, a, time.Hour)
	}
	c.settle()
	if a.missing() != 3 {
		t.Fatal("a cut-off leader answered reads")
	}
	c.until("reads fail", func() bool { return a.missing() == 0 })
	for _, ans := range a.mu.got {
		if ans.Code != wire.NotLeader {
			t.Fatalf("%s, want not-leader", ans.Code)
		}
	}
	c.net.HealAll()
	c.until("a leader", func() bool { return c.leader(7) != nil })
	c.mustGet(7, "a", "1")
}

func TestR5ReadsBeforeTheFirstCommitOfATermWaitBoundedAndNotInRaft(t *testing.T) {
	const limit = 5
	c := newPlainCluster(t, 3, func(cfg *Config) { cfg.Limits.GroupReads = limit })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	old := c.leader(7)
	// Votes pass and appends do not: the next leader cannot commit in its term.
	c.each(func(n *testNode) {
		n.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgAppResp })
	})
	c.stop(old)
	var lead *testNode
	c.until("a leader", func() bool { lead = c.leader(7); return lead != nil })
	indexes := lead.store.contexts.Load()
	a := newAnswers(t)
	var reqs []uint64
	for range 3 * limit {
		reqs = append(reqs, c.readIndex(lead, 7, a, time.Hour))
	}
	c.settle()
	for i, req := range reqs {
		ans, ok := a.of(req)
		if i < limit && ok {
			t.Fatalf("read %d got %s before the term's first commit", i, ans.Code)
		}
		if i >= limit && (!ok || ans.Code != wire.Busy || string(ans.Payload) != "group-reads" || ans.Arg == 0) {
			t.Fatalf("read %d over the limit: %v %s %q", i, ok, ans.Code, ans.Payload)
		}
	}
	if got := lead.store.contexts.Load(); got != indexes {
		t.Fatalf("%d read indexes were put to raft before the first commit", got-indexes)
	}
	c.each(func(n *testNode) { n.filter(nil) })
	c.until("the reads", func() bool { return a.missing() == 0 })
	for _, req := range reqs[:limit] {
		if ans, _ := a.of(req); ans.Code != wire.OK {
			t.Fatalf("read got %s", ans.Code)
		}
	}
	if got := lead.store.contexts.Load(); got != indexes+1 {
		t.Fatalf("%d read indexes for reads that waited together, want 1", got-indexes)
	}
}

func TestR9APanicOfRaftStopsOneReplicaOnly(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "c", 1, 2, 3))
	c.create(desc(8, "c", "e", 1, 2, 3))
	c.put(7, "a", "1")
	c.put(8, "c", "1")
	lead := c.leader(7)
	var victim *testNode
	c.each(func(n *testNode) {
		if n != lead {
			victim = n
		}
	})
	from, _ := desc(7, "a", "c", 1, 2, 3).ReplicaOn(lead.id)
	to, _ := desc(7, "a", "c", 1, 2, 3).ReplicaOn(victim.id)
	victim.store.Step([]wire.RaftMessage{{
		Shard: 7, From: from.Replica, To: to.Replica, FromStore: lead.id, ToStore: victim.id,
		Msg: raftpb.Message{
			Type: raftpb.MsgHeartbeat, From: uint64(from.Replica), To: uint64(to.Replica), Commit: 1 << 40,
			Term: lead.store.lookup(7).lead.Load().term,
		},
	}})
	c.settle()
	st, _ := victim.store.Status(7)
	if !strings.Contains(st.Faulted, "out of range") || len(victim.faults) != 1 {
		t.Fatalf("status %q, callbacks %v", st.Faulted, victim.faults)
	}
	a := newAnswers(t)
	w, rd := c.write(victim, op(wire.OpPut, 7, "a", "2"), a, 0), c.readIndex(victim, 7, a, 0)
	for _, req := range []uint64{w, rd} {
		if ans, _ := a.of(req); ans.Code != wire.Failed {
			t.Fatalf("request at a faulted replica: %s", ans.Code)
		}
	}
	var faulted *FaultedError
	if _, err := victim.store.Transfer(context.Background(), 7, lead.id); !errors.As(err, &faulted) {
		t.Fatalf("transfer: %v", err)
	}
	c.put(7, "a", "2") // the other two go on
	c.put(8, "c", "2")
	if v, _ := c.local(victim, 8, "c"); v != "2" {
		c.everywhere(8, "c", "2")
	}
	if len(victim.faults) != 1 {
		t.Fatalf("faults %v", victim.faults)
	}
}

func TestR9AnEntryThatCannotBeAppliedFaultsItsGroupAndNotItsNeighboursInTheBatch(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "a", "c", 1))
	c.create(desc(8, "c", "e", 1))
	n := c.nodes[1]
	n.hold = true
	a := newAnswers(t)
	good := c.write(n, op(wire.OpPut, 7, "a", "1"), a, 0)
	bad := c.write(n, op(wire.OpPut, 8, "c", "1"), a, 0)
	c.settle()
	// Shard 8 comes second in the batch: by then the machine of shard 7 has moved on and has to go back.
	n.store.call(n.store.lookup(8), func(r *replica) {
		if err := r.worker.rn.Propose([]byte("an entry of a later version")); err != nil {
			t.Error(err)
		}
	})
	c.settle()
	n.hold = false
	c.settle()
	if ans, ok := a.of(good); !ok || ans.Code != wire.OK {
		t.Fatalf("neighbour: %v %s", ok, ans.Code)
	}
	if ans, ok := a.of(bad); !ok || ans.Code != wire.Ambiguous {
		t.Fatalf("own write in the run that failed: %v %s", ok, ans.Code)
	}
	st, _ := n.store.Status(8)
	if st.Faulted == "" || len(n.faults) != 1 {
		t.Fatalf("status %q, callbacks %v", st.Faulted, n.faults)
	}
	c.mustGet(7, "a", "1")
	if got, ok, err := rawGet(n, "c"); ok || err != nil {
		t.Fatalf("half a run reached the engine: %q %v", got, err)
	}
}

func rawGet(n *testNode, key string) ([]byte, bool, error) {
	_, v, ok, err := n.eng.Get(base.UserKey([]byte(key)), nil)
	return v, ok, err
}
