package shard

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// eachSync runs f on a goroutine of its own and calls at at each moment at which a sync of the store's disk waits.
func eachSync(n *testNode, f func(), at func()) {
	release := n.fs.HoldSyncs()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		select {
		case <-done:
			release()
			return
		default:
		}
		if n.fs.HeldSyncs() == 0 {
			runtime.Gosched()
			continue
		}
		at()
		next := n.fs.HoldSyncs() // before the release: the next sync waits again
		release()
		release = next
	}
}

// inClones opens what a power loss at each sync of f could leave of the store.
func (c *cluster) inClones(n *testNode, f func(), check func(e *engine.Engine, states []engine.ReplicaState)) int {
	c.t.Helper()
	var clones []*engine.FS
	eachSync(n, f, func() {
		for _, keep := range []int{0, 50, 100} {
			clones = append(clones, n.fs.CrashClone(keep, int64(len(clones))))
		}
	})
	for i, fs := range clones {
		e, err := engine.Open(engine.Options{Dir: "data", FS: fs, Fatal: func(err error) { c.t.Error(err) }})
		if err != nil {
			c.t.Fatalf("clone %d: %v", i, err)
		}
		states, err := e.LoadReplicas()
		if err != nil {
			c.t.Fatalf("clone %d: %v", i, err)
		}
		check(e, states)
		if err := e.Close(); err != nil {
			c.t.Fatal(err)
		}
	}
	return len(clones)
}

// message is one raft message between stores.
func message(t raftpb.MessageType, shard base.ShardID, from, to base.ReplicaID, fromStore, toStore base.StoreID, term uint64) wire.RaftMessage {
	return wire.RaftMessage{
		Shard: shard, From: from, To: to, FromStore: fromStore, ToStore: toStore,
		Msg: raftpb.Message{Type: t, From: uint64(from), To: uint64(to), Term: term},
	}
}

// vote asks for one with a log that is ahead of everybody's.
func vote(shard base.ShardID, from, to base.ReplicaID, fromStore, toStore base.StoreID, term uint64) wire.RaftMessage {
	m := message(raftpb.MsgVote, shard, from, to, fromStore, toStore, term)
	m.Msg.Index, m.Msg.LogTerm = 1000, term-1
	return m
}

func (c *cluster) step(n *testNode, msgs ...wire.RaftMessage) {
	n.store.Step(msgs)
	c.settle()
}

// sentBy collects what a store sends.
func (n *testNode) sentBy() *[]wire.RaftMessage {
	var out []wire.RaftMessage
	n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) { out = append(out, msgs...) })
	return &out
}

func TestAMessageCreatesAReplicaOnlyWhereItMay(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	hb := func(to base.ReplicaID) wire.RaftMessage {
		return message(raftpb.MsgHeartbeat, 9, 1, to, 2, 1, 6)
	}
	wrong := map[string]wire.RaftMessage{
		"an answer":            message(raftpb.MsgAppResp, 9, 1, 4, 2, 1, 6),
		"an order":             message(raftpb.MsgTimeoutNow, 9, 1, 4, 2, 1, 6),
		"for another store":    message(raftpb.MsgHeartbeat, 9, 1, 4, 2, 3, 6),
		"without a term":       message(raftpb.MsgHeartbeat, 9, 1, 4, 2, 1, 0),
		"from nobody":          message(raftpb.MsgHeartbeat, 9, 0, 4, 2, 1, 6),
		"from itself":          message(raftpb.MsgHeartbeat, 9, 4, 4, 2, 1, 6),
		"from this very store": message(raftpb.MsgHeartbeat, 9, 1, 4, 1, 1, 6),
		"to nobody":            message(raftpb.MsgHeartbeat, 9, 1, 0, 2, 1, 6),
		"of no shard":          message(raftpb.MsgHeartbeat, 0, 1, 4, 2, 1, 6),
	}
	for what, m := range wrong {
		if c.step(n, m); n.store.lookup(9) != nil || n.store.lookup(0) != nil {
			t.Fatalf("a message %s created a replica", what)
		}
	}
	for i, typ := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgPreVote} {
		id := shardID(20 + i)
		m := message(typ, id, 1, 4, 2, 1, 6)
		c.step(n, m)
		r := n.store.lookup(id)
		if r == nil || r.id != 4 || !r.uninitialised() {
			t.Fatalf("%s: replica %v", typ, r)
		}
		if mark, ok, err := n.eng.Mark(id); err != nil || !ok || mark != (engine.ReplicaMark{ReplicaID: 4, NextReplicaID: 5}) {
			t.Fatalf("%s: mark %+v, %t, %v", typ, mark, ok, err)
		}
	}

	// The marks of removed replicas outlive the process.
	b := n.eng.NewBatch()
	b.RemoveReplica(engine.Removal{Shard: 9, Mark: engine.ReplicaMark{NextReplicaID: 7}})
	if err := n.eng.Commit(b, true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for range 2 {
		for _, id := range []base.ReplicaID{1, 4, 6} {
			if c.step(n, hb(id)); n.store.lookup(9) != nil {
				t.Fatalf("replica %d came back", id)
			}
		}
		c.crash(n, 0)
		c.start(n)
	}
	if c.step(n, hb(7)); n.store.lookup(9) == nil {
		t.Fatal("a newer replica may exist")
	}
}

func TestAReplicaIsOnDiskBeforeItHearsItsFirstMessage(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	sent := n.sentBy()
	release := c.holdSyncs(n)
	n.store.Step([]wire.RaftMessage{vote(9, 1, 4, 2, 1, 6)})
	for range 5 {
		c.drain()
		n.store.Step([]wire.RaftMessage{vote(9, 1, 4, 2, 1, 6)}) // it asks again and again
	}
	if n.store.lookup(9) != nil || len(*sent) > 0 {
		t.Fatalf("answered before the mark was durable: %v", *sent)
	}
	lost := n.fs.CrashClone(0, 1)
	e, err := engine.Open(engine.Options{Dir: "data", FS: lost})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := e.Mark(9); ok || err != nil {
		t.Fatalf("the mark was not synced and is there: %t, %v", ok, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	release()
	c.settle() // what came too early is answered now, once
	if len(*sent) != 1 || (*sent)[0].Msg.Type != raftpb.MsgVoteResp || (*sent)[0].Msg.Reject {
		t.Fatalf("sent %v, want a vote", *sent)
	}
}

// TestAnUninitialisedReplicaVotesOnceAndNeverCampaigns: to clients it is not there.
func TestAnUninitialisedReplicaVotesOnceAndNeverCampaigns(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	c.step(n, vote(9, 1, 4, 2, 1, 6)) // creates
	sent := n.sentBy()
	c.step(n, vote(9, 1, 4, 2, 1, 6))
	for life := range 3 {
		if life > 0 {
			c.crash(n, 0)
			c.start(n)
			sent = n.sentBy()
		}
		c.step(n, vote(9, 2, 4, 3, 1, 6)) // another candidate of the same term
		c.step(n, message(raftpb.MsgTimeoutNow, 9, 1, 4, 2, 1, 6))
		// What would follow on nothing, and what would be committed in nothing.
		app := message(raftpb.MsgApp, 9, 1, 4, 2, 1, 6)
		app.Msg.Entries = []raftpb.Entry{{Index: 1, Term: 6}}
		beat := message(raftpb.MsgHeartbeat, 9, 1, 4, 2, 1, 6)
		beat.Msg.Commit = 12
		c.step(n, app, beat)
		for range 40 {
			c.tick()
		}
		for _, m := range *sent {
			if m.Msg.Type == raftpb.MsgVote || m.Msg.Type == raftpb.MsgPreVote {
				t.Fatalf("it campaigns: %s", m.Msg.String())
			}
			if m.Msg.Type == raftpb.MsgVoteResp && !m.Msg.Reject && m.To != 1 {
				t.Fatalf("it voted for %d after 1", m.To)
			}
		}
		r := n.store.lookup(9)
		if r == nil || !r.uninitialised() || len(n.faults) > 0 {
			t.Fatalf("replica %v, faults %v", r, n.faults)
		}
		if hs := r.worker.rn.BasicStatus().HardState; hs.Term != 6 || hs.Vote != 1 || hs.Commit != 0 {
			t.Fatalf("life %d: hard state %+v", life, hs)
		}
	}
	a := newAnswers(t)
	req := c.write(n, op(wire.OpPut, 9, "a", "1"), a, 0)
	rd := c.readIndex(n, 9, a, 0)
	for _, id := range []uint64{req, rd} {
		if ans, ok := a.of(id); !ok || ans.Code != wire.ShardNotFound {
			t.Fatalf("answer %v %t", ans.Code, ok)
		}
	}
	o := op(wire.OpGet, 9, "a", "")
	var ans wire.Answer
	if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &ans); err != nil || ans.Code != wire.ShardNotFound {
		t.Fatalf("read: %v %v", ans.Code, err)
	}
	if _, err := n.store.Progress(t.Context(), 9); !errors.As(err, new(*NotFoundError)) {
		t.Fatalf("progress: %v", err)
	}
	if _, ok := n.store.Descriptor(9); ok {
		t.Fatal("it has a descriptor")
	}
	st, ok := n.store.Status(9)
	if !ok || st.Desc != nil || st.Shard != 9 || st.Replica != 4 || st.Faulted != "" {
		t.Fatalf("status %+v %t", st, ok)
	}
	if all := n.store.Summaries(); len(all) != 1 || all[0].Shard != 9 || all[0].Desc != nil {
		t.Fatalf("summaries %+v", all)
	}
}

// TestCreateOverAnUninitialisedReplicaKeepsItsVote: at the founding, a store that is quicker asks for votes before the
// replica has been created here. The vote given then must bind the replica that Create makes of it.
func TestCreateOverAnUninitialisedReplicaKeepsItsVote(t *testing.T) {
	c := newCluster(t, 3, nil)
	n := c.nodes[3]
	c.step(n, vote(7, 1, 3, 1, 3, 8)) // creates
	c.step(n, vote(7, 1, 3, 1, 3, 8))
	d := desc(7, "", "", 1, 2, 3)
	create := func() error {
		ch := make(chan error, 1)
		cr := &creation{desc: d, id: 3}
		if wait, err := n.store.create(cr, func(err error) { ch <- err }); err != nil || wait != nil {
			return fmt.Errorf("wait %v: %w", wait, err)
		}
		c.settle()
		return <-ch
	}
	clones := c.inClones(n, func() {
		if err := create(); err != nil {
			t.Error(err)
		}
	}, func(_ *engine.Engine, states []engine.ReplicaState) {
		if len(states) != 1 || states[0].Hard.Term != 8 || states[0].Hard.Vote != 1 {
			t.Fatalf("a crash leaves %+v", states)
		}
	})
	if clones == 0 {
		t.Fatal("no sync was seen")
	}
	r := n.store.serving(7)
	if r == nil || r.worker.rn.BasicStatus().Vote != 1 || r.worker.rn.BasicStatus().Term != 8 {
		t.Fatalf("replica %v", r)
	}
	if err := create(); err != nil { // idempotent
		t.Fatal(err)
	}
	if n.store.lookup(7) != r {
		t.Fatal("a second Create replaced the replica")
	}
	for _, id := range []base.StoreID{1, 2} {
		if err := c.nodes[id].store.Create(d, nil, id == 1); err != nil {
			t.Fatal(err)
		}
	}
	c.until("a leader", func() bool { return c.leader(7) != nil })
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
}

func TestCreationsByMessageAreBounded(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	var msgs []wire.RaftMessage
	for i := range maxNewcomers + 50 {
		m := message(raftpb.MsgHeartbeat, shardID(100+i), 1, 4, 2, 1, 6)
		msgs = append(msgs, m, m)
	}
	c.step(n, msgs...)
	if got := len(n.store.Summaries()); got != maxNewcomers {
		t.Fatalf("%d replicas", got)
	}
	for i := range 2 * maxDeadMarks {
		n.store.mu.Lock()
		n.store.buryLocked(shardID(10_000+i), engine.ReplicaMark{NextReplicaID: 5})
		n.store.mu.Unlock()
	}
	if got := len(n.store.mu.dead); got > maxDeadMarks {
		t.Fatalf("%d marks in memory", got)
	}
}

func TestOrphansAskInTime(t *testing.T) {
	c := newPlainCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	lead := c.leader(7)
	var other *testNode
	for _, id := range []base.StoreID{1, 2, 3} {
		if id != lead.id {
			other = c.nodes[id]
		}
	}
	for range 50 {
		c.tick()
	}
	c.each(func(n *testNode) {
		if o := n.store.Orphans(); len(o) > 0 {
			t.Fatalf("orphans of a healthy shard on %s: %v", n.id, o)
		}
	})
	reasons := func(n *testNode) (out []string) {
		for _, o := range n.store.Orphans() {
			out = append(out, o.Reason)
		}
		return out
	}
	c.net.Isolate(other.id)
	for range 21 {
		c.tick()
	}
	if got := reasons(other); !slices.Equal(got, []string{"no word from a leader for 2.1s"}) {
		t.Fatalf("cut off: %q", got)
	}
	c.net.HealAll()
	c.until("heard again", func() bool { return len(other.store.Orphans()) == 0 })

	c.step(other, message(raftpb.MsgHeartbeat, 7, 1, 9, 1, other.id, 50))
	if got := reasons(other); !slices.Equal(got, []string{"a newer replica of the shard is addressed on this store"}) {
		t.Fatalf("newer: %q", got)
	}
	lead.store.fault(lead.store.lookup(7), "broken", nil)
	if got := reasons(lead); !slices.Equal(got, []string{"faulted: broken"}) {
		t.Fatalf("faulted: %q", got)
	}
	n := c.nodes[4]
	c.step(n, message(raftpb.MsgHeartbeat, 9, 1, 4, 2, 4, 6))
	if got := reasons(n); len(got) > 0 {
		t.Fatalf("fresh: %q", got)
	}
	c.pass(orphanAge + time.Second)
	if got := reasons(n); !slices.Equal(got, []string{"uninitialised for 11s"}) {
		t.Fatalf("uninitialised: %q", got)
	}
}

// TestAReplicaThatCannotBeOpenedIsNotWrittenOver: it is on disk and not in the maps until the next start. A message, to
// it or to an older replica of the shard, must neither take back its votes nor its mark (I1).
func TestAReplicaThatCannotBeOpenedIsNotWrittenOver(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	b := n.eng.NewBatch()
	b.CreateUninitialised(9, 5, raftpb.HardState{Term: 8, Vote: 3})
	if err := n.eng.Commit(b, true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	for _, to := range []base.ReplicaID{4, 5, 6} {
		c.step(n, message(raftpb.MsgHeartbeat, 9, 1, to, 2, 1, 6))
	}
	st, ok, err := n.eng.ReplicaState(9)
	if !ok || err != nil || st.Mark.ReplicaID != 5 || st.Hard.Vote != 3 {
		t.Fatalf("%+v, %t, %v", st, ok, err)
	}
}
