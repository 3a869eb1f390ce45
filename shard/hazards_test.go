package shard

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// forge steps a message as if another store's replica had sent it.
func forge(shard base.ShardID, from base.StoreID, to *testNode, m raftpb.Message) {
	d, _ := to.store.Descriptor(shard)
	a, _ := d.ReplicaOn(from)
	b, _ := d.ReplicaOn(to.id)
	m.From, m.To = uint64(a.Replica), uint64(b.Replica)
	to.store.Step([]wire.RaftMessage{{
		Shard: shard, From: a.Replica, To: b.Replica, FromStore: from, ToStore: to.id, Msg: m,
	}})
}

// Raft takes a message without a term for its own, and the place of entries for granted.
func TestMessagesThatNoReplicaSendsDoNoHarm(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "c", 1, 2, 3))
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	lead := c.leader(7)
	victim := c.nodes[lead.id%3+1]
	st, _ := victim.store.Status(7)
	next := st.LastIndex + 1
	for _, m := range []raftpb.Message{
		{Type: raftpb.MsgVote, Index: 1 << 30, LogTerm: 1 << 30},
		{Type: raftpb.MsgApp, Index: next - 1, LogTerm: st.Term, Entries: []raftpb.Entry{{Term: st.Term, Index: next}}},
		{Type: raftpb.MsgApp, Term: st.Term, Index: next - 1, LogTerm: st.Term,
			Entries: []raftpb.Entry{{Term: st.Term, Index: next}, {Term: st.Term, Index: next + 2}}},
	} {
		forge(7, lead.id, victim, m)
	}
	c.settle()
	if got, _ := victim.store.Status(7); got.Faulted != "" || got.LastIndex != st.LastIndex {
		t.Fatalf("faulted %q, log from %d to %d", got.Faulted, st.LastIndex, got.LastIndex)
	}
	c.put(7, "a", "2")
	c.everywhere(7, "a", "2")
}

func TestATransferIsAnsweredAlsoIfRaftPanicsBeforeIt(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "c", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	other := lead.id%3 + 1
	var got []error
	if err := lead.store.requestTransfer(7, other, func(_ uint64, err error) { got = append(got, err) }); err != nil {
		t.Fatal(err)
	}
	st, _ := lead.store.Status(7)
	forge(7, other, lead, raftpb.Message{Type: raftpb.MsgHeartbeat, Term: st.Term + 1, Commit: 1 << 40})
	c.settle()
	if st, _ = lead.store.Status(7); st.Faulted == "" {
		t.Fatal("the forged heartbeat did not fault the replica")
	}
	if len(got) != 1 || got[0] == nil {
		t.Fatalf("answers to the transfer: %v", got)
	}
}

// Slow followers of many groups that come back at once must not fill the memory (rules R7 and L2).
func TestWhatOnePassSendsIsBounded(t *testing.T) {
	const groups, writes, size, limit = 16, 64, 8 << 10, 1 << 20
	c := newCluster(t, 3, func(cfg *Config) { cfg.EntryBytes, cfg.PassBytes = size, limit })
	shard := func(i int) base.ShardID { return base.ShardID(100 + i) }
	for i := range groups {
		c.create(desc(shard(i), fmt.Sprintf("%02d", i), fmt.Sprintf("%02d", i+1), 1, 2, 3))
	}
	c.stop(c.nodes[3])
	a := newAnswers(t)
	for i := range groups {
		c.until("leader", func() bool { return c.leader(shard(i)) != nil })
		for range writes {
			c.write(c.leader(shard(i)), op(wire.OpPut, shard(i), fmt.Sprintf("%02d", i), strings.Repeat("x", size)), a, 0)
		}
	}
	c.until("writes", func() bool { return a.missing() == 0 })
	most, total := 0, 0
	for _, id := range []base.StoreID{1, 2} {
		c.nodes[id].tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			n := 0
			for i := range msgs {
				for _, e := range msgs[i].Msg.Entries {
					n += len(e.Data)
				}
			}
			most, total = max(most, n), total+n
		})
	}
	c.start(c.nodes[3])
	for i := range groups {
		c.everywhere(shard(i), fmt.Sprintf("%02d", i), strings.Repeat("x", size))
	}
	if group := writes * (size + 128); most > limit+group {
		t.Fatalf("%d bytes of entries in one call of Send, of %d in all", most, total)
	}
}

func TestABatchOfTheStateMachinesIsBounded(t *testing.T) {
	const groups, size = 24, 1 << 20
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	for i := range groups {
		c.create(desc(base.ShardID(100+i), fmt.Sprintf("%02d", i), fmt.Sprintf("%02d", i+1), 1))
	}
	n.hold = true
	a := newAnswers(t)
	for i := range groups {
		c.write(n, op(wire.OpPut, base.ShardID(100+i), fmt.Sprintf("%02d", i), strings.Repeat("x", size)), a, 0)
	}
	c.settle()
	batches := func() uint64 {
		families, err := n.store.cfg.Registerer.(*prometheus.Registry).Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "shardd_shard_apply_batch_groups" {
				return f.GetMetric()[0].GetHistogram().GetSampleCount()
			}
		}
		return 0
	}
	before := batches()
	n.hold = false
	c.settle()
	if got := batches() - before; a.missing() != 0 || got*applyBatchBytes < groups*size {
		t.Fatalf("%d batches for %d MiB, %d writes unanswered", got, groups*size>>20, a.missing())
	}
}

// A disk that stands still must not keep leaderships, neither of the group that has written nor of those that are idle.
func TestAStalledDiskLosesItsLeaderships(t *testing.T) {
	c := newCluster(t, 3, nil)
	shards := []base.ShardID{7, 8}
	c.create(desc(7, "a", "c", 1, 2, 3))
	c.create(desc(8, "c", "e", 1, 2, 3))
	n := c.nodes[1]
	for _, s := range shards {
		c.put(s, map[base.ShardID]string{7: "a", 8: "c"}[s], "1")
		if l := c.leader(s); l != n {
			if _, err := c.moveTo(l, s, n); err != nil {
				t.Fatal(err)
			}
		}
	}
	release := c.holdSyncs(n)
	a := newAnswers(t)
	c.write(n, op(wire.OpPut, 7, "a", "2"), a, 0)
	c.drain()
	for ok := true; ok; ok, _ = n.store.SyncHealthy() {
		runtime.Gosched()
	}
	left := func() bool {
		for _, s := range shards {
			if l := c.leader(s); l == nil || l == n {
				return false
			}
		}
		return true
	}
	for i := 0; !left(); i++ {
		if i == 200 {
			t.Fatal("the stalled store still leads")
		}
		c.tickDraining(n)
	}
	release()
	c.put(8, "c", "2")
}

// tickDraining ticks all stores without waiting for the syncs of the one whose disk stands still.
func (c *cluster) tickDraining(stalled *testNode) {
	c.clock.now.Add(int64(c.nodes[1].store.cfg.Tick))
	c.beat()
	c.each(func(n *testNode) { n.store.TickAll() })
	for busy := true; busy; {
		c.drain()
		busy = false
		c.each(func(n *testNode) { busy = busy || n != stalled && n.store.workers[0].syncing > 0 })
		runtime.Gosched()
	}
}

// moveTo transfers a leadership and waits for the outcome.
func (c *cluster) moveTo(from *testNode, shard base.ShardID, to *testNode) (term uint64, err error) {
	done := false
	err = from.store.requestTransfer(shard, to.id, func(t uint64, e error) { term, err, done = t, e, true })
	if err == nil {
		c.until("transfer", func() bool { return done })
	}
	return term, err
}

// The mark of a removed replica outlives it, over restarts too (rule I1).
func TestARemovedReplicaIsNotCreatedAgainAfterARestart(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	b := n.eng.NewBatch()
	b.SetMark(7, engine.ReplicaMark{NextReplicaID: 5})
	if err := n.eng.Commit(b, true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	c.crash(n, 0)
	c.start(n)
	var mark *MarkError
	if err := n.store.Create(desc(7, "a", "c", 1), nil, false); !errors.As(err, &mark) || mark.Next != 5 {
		t.Fatalf("create: %v", err)
	}
	if _, err := n.store.Transfer(context.Background(), 7, 1); err == nil {
		t.Fatal("the replica exists")
	}
}

func TestAskingAFaultedLeaderForProgressReturns(t *testing.T) {
	c := newCluster(t, 1, nil)
	const shard = 2
	c.create(desc(shard, "a", "z", 1))
	c.until("a leader", func() bool { return c.leader(shard) != nil })
	n := c.leader(shard)
	r := n.store.lookup(shard)
	// The question is taken by the very step in which raft panics.
	n.store.call(r, func(*replica) { panic("as raft would") })
	done := make(chan error, 1)
	go func() {
		_, err := n.store.Progress(t.Context(), shard)
		done <- err
	}()
	for {
		select {
		case <-done: // no progress, or the error that says why: either lets the caller go
			if _, bad := r.faultReason(); !bad {
				t.Fatal("the replica is not faulted")
			}
			return
		default:
			c.drain()
		}
	}
}
