package shard

import (
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// TestACrashForgetsNoCommittedConfChange: a follower has acknowledged the end of a joint change, so it knows that its
// beginning is committed, and crashes before it has applied either. In its old configuration it could win an election
// with voters that the shard has left behind, so it must not stand for one before it has caught up with itself (R2).
func TestACrashForgetsNoCommittedConfChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.until("everything applied", func() bool {
		return c.nodes[2].store.lookup(7).applied.Load() == c.nodes[1].store.lookup(7).applied.Load()
	})
	n := c.nodes[2]
	r := n.store.lookup(7)
	_, last := r.worker.log.Bounds()
	lastTerm, err := r.worker.log.Term(last)
	if err != nil {
		t.Fatal(err)
	}
	c.net.Crash(1)
	c.net.Crash(3)
	n.hold = true // what is committed is not applied any more

	enter := confContext{confVer: 1, id: 1, ops: []confOp{{Demote, 1, 1}}}
	leave := confContext{confVer: 2, id: 2}
	term := r.lead.Load().term
	m := wire.RaftMessage{
		Shard: 7, From: 1, To: 2, FromStore: 1, ToStore: 2,
		Msg: raftpb.Message{
			Type: raftpb.MsgApp, From: 1, To: 2, Term: term, Index: last, LogTerm: lastTerm, Commit: last + 1,
		},
	}
	for i, cc := range []*confContext{&enter, &leave} {
		change := cc.change()
		data, err := change.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		m.Msg.Entries = append(m.Msg.Entries, raftpb.Entry{
			Type: raftpb.EntryConfChangeV2, Term: term, Index: last + 1 + uint64(i), Data: data,
		})
	}
	acked := false
	n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			acked = acked || msgs[i].Msg.Type == raftpb.MsgAppResp && msgs[i].Msg.Index == last+2
		}
	})
	n.store.Step([]wire.RaftMessage{m})
	c.settle()
	if !acked {
		t.Fatal("the follower has not acknowledged the end of the change")
	}

	c.crash(n, 0)
	n.hold = true
	c.start(n)
	n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			if typ := msgs[i].Msg.Type; typ == raftpb.MsgPreVote || typ == raftpb.MsgVote {
				t.Fatalf("%s in a configuration that is known to be on its way out", typ)
			}
		}
	})
	for range 60 {
		c.tick()
	}
	if r := n.store.lookup(7); r.commit.Load() < last+1 || r.applied.Load() > last {
		t.Fatalf("commit %d, applied %d; the change begins at %d", r.commit.Load(), r.applied.Load(), last+1)
	}
}
