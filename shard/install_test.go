package shard

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// pair makes a shard that store 1 leads alone, with a learner (replica 2) on store 2 that nobody has created yet. The
// two stores do not hear each other.
func pair(t *testing.T, tune func(d *base.Descriptor)) (*cluster, *base.Descriptor) {
	t.Helper()
	c := newCluster(t, 2, nil)
	return c, c.pairOf(7, tune)
}

func (c *cluster) pairOf(shard base.ShardID, tune func(d *base.Descriptor)) *base.Descriptor {
	c.t.Helper()
	c.net.Isolate(2)
	d := desc(shard, "", "", 1, 2)
	d.Replicas[1].Role = base.RoleLearner
	if tune != nil {
		tune(d)
	}
	if err := c.nodes[1].store.Create(d, nil, true); err != nil {
		c.t.Fatal(err)
	}
	c.until("leader", func() bool { return c.leader(shard) != nil })
	return d
}

// between returns tune for pairOf that sets range and version.
func between(start, end string, version uint64) func(*base.Descriptor) {
	return func(d *base.Descriptor) {
		d.Start, d.End, d.Epoch.Version = base.UserKey([]byte(start)), base.UserKey([]byte(end)), version
	}
}

// describe is what store 1 announces to replica 2 of a shard on store 2.
func (c *cluster) describe(v *engine.View, shard base.ShardID) *engine.SnapshotMeta {
	st, _ := c.nodes[1].store.Status(shard)
	return &engine.SnapshotMeta{
		Shard: shard, From: 1, To: 2, FromStore: 1, ToStore: 2, RaftTerm: st.Term, Desc: v.Desc(), Applied: v.Applied(),
		ApproxBytes: v.ApproxBytes(),
	}
}

// stage brings what store 1 has of a shard into a staging of store 2.
func (c *cluster) stage(shard base.ShardID) (*engine.SnapshotMeta, *engine.Staging) {
	c.t.Helper()
	v, err := c.nodes[1].eng.OpenView(shard)
	if err != nil {
		c.t.Fatal(err)
	}
	m := c.describe(v, shard)
	st, err := stageView(v, m, c.nodes[2].eng, c.stagings())
	if err := errors.Join(err, v.Close()); err != nil {
		c.t.Fatal(err)
	}
	return m, st
}

// install drives an installation on store 2 to its end.
func (c *cluster) install(m *engine.SnapshotMeta, st *engine.Staging) error {
	ch := make(chan error, 1)
	c.nodes[2].store.installSnapshot(m, st, func(err error) { ch <- err })
	c.settle()
	return <-ch
}

// declinedAs checks that an error is a decline of a kind.
func declinedAs(t *testing.T, err error, kind string) *DeclinedError {
	t.Helper()
	var d *DeclinedError
	if !errors.As(err, &d) || d.kind != kind {
		t.Fatalf("got %v, want a decline as %s", err, kind)
	}
	if reason, wait := d.Declined(); reason == "" || wait != d.Wait {
		t.Fatalf("declined: %q, %s", reason, wait)
	}
	return d
}

func (c *cluster) noStagings(n *testNode) {
	c.t.Helper()
	if used := n.eng.StagedBytes(); used != 0 {
		c.t.Errorf("%d bytes of stagings are left on %s", used, n.id)
	}
}

func TestASnapshotCreatesItsReplica(t *testing.T) {
	c, d := pair(t, nil)
	c.put(7, "a", "1")
	n := c.nodes[2]
	sent := n.sentBy()
	m, st := c.stage(7)
	if err := n.store.AcceptSnapshot(m); err != nil {
		t.Fatal(err)
	}
	if err := c.install(m, st); err != nil {
		t.Fatal(err)
	}
	c.noStagings(n)
	if v, ok := c.local(n, 7, "a"); !ok || v != "1" {
		t.Fatalf("a is %q, %t", v, ok)
	}
	if got, _ := n.store.Descriptor(7); got.String() != d.String() {
		t.Fatalf("descriptor %s", got)
	}
	if len(*sent) != 1 || (*sent)[0].Msg.Type != raftpb.MsgAppResp || (*sent)[0].Msg.Index != m.Applied.Index {
		t.Fatalf("the leader was answered %v", *sent)
	}
	s, _ := n.store.Status(7)
	if s.Leader != 1 || s.Applied != m.Applied.Index || s.Commit != m.Applied.Index || s.FirstIndex != m.Applied.Index+1 {
		t.Fatalf("status %+v", s)
	}
	c.crash(n, 0)
	c.start(n)
	c.net.HealAll()
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	if got := len(c.nodes[1].ship.done); got != 0 {
		t.Fatalf("%d more snapshots were sent", got)
	}
}

// TestSnapshotsThatDoNotFitAreDeclined goes through what AcceptSnapshot and InstallSnapshot look at; nothing changes.
func TestSnapshotsThatDoNotFitAreDeclined(t *testing.T) {
	cases := []struct {
		name, kind string
		wait       time.Duration
		prepare    func(c *cluster, n *testNode, m *engine.SnapshotMeta)
	}{
		{"a removed replica", "mark", 0, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			b := n.eng.NewBatch()
			defer b.Close()
			b.RemoveReplica(engine.Removal{Shard: 7, Mark: engine.ReplicaMark{NextReplicaID: 3}})
			if err := n.eng.Commit(b, true); err != nil {
				t.Fatal(err)
			}
		}},
		{"another store", "address", 0, func(_ *cluster, _ *testNode, m *engine.SnapshotMeta) { m.ToStore = 3 }},
		{"a replica that is not listed", "address", 0, func(_ *cluster, _ *testNode, m *engine.SnapshotMeta) { m.To = 1 }},
		{"a configuration without it", "address", 0, func(_ *cluster, _ *testNode, m *engine.SnapshotMeta) {
			m.Applied.Conf.Learners = nil
		}},
		{"an older replica here", "other-replica", waitRemoval, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			c.step(n, message(raftpb.MsgHeartbeat, 7, 3, 1, 1, 2, 6))
		}},
		{"a newer replica here", "other-replica", 0, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			c.step(n, message(raftpb.MsgHeartbeat, 7, 1, 9, 1, 2, 6))
		}},
		{"a faulted replica", "faulted", waitSpace, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			c.step(n, message(raftpb.MsgHeartbeat, 7, 1, 2, 1, 2, 6))
			n.store.fault(n.store.lookup(7), "broken", nil)
		}},
		{"a leader whose term is over", "term", 0, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			hb := message(raftpb.MsgHeartbeat, 7, 1, 2, 1, 2, m.RaftTerm+1)
			c.step(n, hb)
			c.step(n, hb)
		}},
		{"no space", "space", waitSpace, func(_ *cluster, n *testNode, _ *engine.SnapshotMeta) {
			n.store.SetSpace(engine.SpaceLow)
		}},
		{"an overlap", "overlap", waitRemoval, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			if err := n.store.Create(desc(8, "m", "", 2), nil, false); err != nil {
				t.Fatal(err)
			}
		}},
		{"another step of the shard", "busy", waitBusy, func(c *cluster, n *testNode, m *engine.SnapshotMeta) {
			n.store.mu.Lock()
			n.store.reserveLocked(newBoundary(nil, nil, 7))
			n.store.mu.Unlock()
		}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := pair(t, nil)
			c.put(7, "a", "1")
			n := c.nodes[2]
			m, st := c.stage(7)
			tc.prepare(c, n, m)
			before := n.store.lookup(7)
			d := declinedAs(t, n.store.AcceptSnapshot(m), tc.kind)
			if d.Wait != tc.wait {
				t.Errorf("wait %s, want %s", d.Wait, tc.wait)
			}
			declinedAs(t, c.install(m, st), tc.kind)
			c.noStagings(n)
			if n.store.lookup(7) != before || n.store.serving(7) != nil {
				t.Error("a replica changed")
			}
		})
	}
}

// TestAnOldSnapshotNeverReplacesNewerState delivers a snapshot after the replica has moved on: of an older epoch it is
// declined for good (hazard cockroach#36611), of the same epoch raft answers that it has more, and the staging goes.
func TestAnOldSnapshotNeverReplacesNewerState(t *testing.T) {
	c, _ := pair(t, nil)
	n := c.nodes[2]
	c.put(7, "a", "1")
	stale, staleStaging := c.stage(7)
	late, lateStaging := c.stage(7)
	c.net.HealAll()
	c.initialised(7, 2)
	c.put(7, "a", "2")
	c.everywhere(7, "a", "2")
	r, before := n.store.lookup(7), n.store.lookup(7).applied.Load()
	sent := n.sentBy()
	declinedAs(t, n.store.AcceptSnapshot(stale), "done")
	c.settle()
	if len(*sent) == 0 || (*sent)[0].Msg.Type != raftpb.MsgAppResp || (*sent)[0].Msg.Index < before {
		t.Fatalf("the leader is not told: %v", *sent)
	}
	if err := c.install(stale, staleStaging); err != nil { // ignored by raft
		t.Fatal(err)
	}
	c.noStagingsBut(n, lateStaging)

	c.changed(7, ReplicaChange{Op: AddLearner, Store: 3})
	c.until("the new epoch", func() bool { d, _ := n.store.Descriptor(7); return d.Epoch.ConfVer == 2 })
	declinedAs(t, n.store.AcceptSnapshot(late), "epoch")
	declinedAs(t, c.install(late, lateStaging), "epoch")
	c.noStagings(n)
	if n.store.lookup(7) != r || r.applied.Load() < before {
		t.Fatal("the replica was replaced")
	}
	c.mustGet(7, "a", "2")
	if v, _ := c.local(n, 7, "a"); v != "2" {
		t.Fatalf("a is %q", v)
	}
	if len(n.faults) > 0 {
		t.Fatal(n.faults)
	}
}

// noStagingsBut checks that one staging is all that is left.
func (c *cluster) noStagingsBut(n *testNode, st *engine.Staging) {
	c.t.Helper()
	if used := n.eng.StagedBytes(); used < st.Bytes() || used > 2*st.Bytes()+1024 {
		c.t.Errorf("%d bytes are staged, want one staging of %d", used, st.Bytes())
	}
}

// TestOfOverlappingSnapshotsOneIsRefused: while one is being installed, and after it (hazard tikv#866).
func TestOfOverlappingSnapshotsOneIsRefused(t *testing.T) {
	c, _ := pair(t, between("a", "m", 1))
	n := c.nodes[2]
	m7, st7 := c.stage(7)
	// The other one is of a store of its own: no store ever holds both.
	other := newCluster(t, 2, nil)
	other.pairOf(8, between("k", "z", 1))
	v, err := other.nodes[1].eng.OpenView(8)
	if err != nil {
		t.Fatal(err)
	}
	m8 := other.describe(v, 8)
	st8, err := stageView(v, m8, n.eng, c.stagings())
	if err := errors.Join(err, v.Close()); err != nil {
		t.Fatal(err)
	}
	var got7, got8 error = errStoreDown, errStoreDown
	n.store.installSnapshot(m7, st7, func(err error) { got7 = err })
	declinedAs(t, n.store.AcceptSnapshot(m8), "busy")
	n.store.installSnapshot(m8, st8, func(err error) { got8 = err })
	c.settle()
	if got7 != nil {
		t.Fatal(got7)
	}
	declinedAs(t, got8, "busy")
	declinedAs(t, n.store.AcceptSnapshot(m8), "overlap")
	c.noStagings(n)
	if n.store.lookup(8) != nil || n.store.serving(7) == nil {
		t.Fatal("the wrong one is here")
	}
}

// TestASnapshotSubsumesOlderShardsInOneStep: a newer shard over the whole range of an older one takes its place, at every
// moment either both old states or the new one (hazard tikv#7027).
func TestASnapshotSubsumesOlderShardsInOneStep(t *testing.T) {
	c, _ := pair(t, between("a", "z", 3))
	c.put3(7, "b", "new")
	n := c.nodes[2]
	old := desc(8, "c", "m", 2)
	data := []engine.KV{{Key: base.UserKey([]byte("d")), Value: []byte("old")}}
	if err := n.store.Create(old, data, true); err != nil {
		t.Fatal(err)
	}
	c.until("leader", func() bool { return c.leader(8) != nil })
	wide := desc(9, "l", "n", 2) // only touches the edge: stays
	wide.Start, wide.End = base.UserKey([]byte("z")), base.UserKey([]byte("zz"))
	if err := n.store.Create(wide, nil, true); err != nil {
		t.Fatal(err)
	}
	m, st := c.stage(7)
	before, after := 0, 0
	c.inClones(n, func() {
		if err := c.install(m, st); err != nil {
			t.Error(err)
		}
	}, func(e *engine.Engine, states []engine.ReplicaState) {
		_, _, have, err := e.Get(base.UserKey([]byte("d")), nil)
		_, _, fresh, err2 := e.Get(base.UserKey([]byte("b")), nil)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		switch {
		case len(states) == 2 && states[0].Shard == 8 && states[1].Shard == 9 && have && !fresh:
			before++
		case len(states) == 2 && states[0].Shard == 7 && states[1].Shard == 9 && !have && fresh:
			after++
		default:
			t.Fatalf("old row %t, new row %t, replicas %+v", have, fresh, states)
		}
	})
	if before == 0 {
		t.Fatalf("%d moments before, %d after", before, after)
	}
	if n.store.lookup(8) != nil || n.store.serving(7) == nil || n.store.serving(9) == nil {
		t.Fatal("wrong replicas")
	}
	if mark, _, _ := n.eng.Mark(8); mark != (engine.ReplicaMark{NextReplicaID: mergedAway}) {
		t.Fatalf("mark %+v", mark)
	}
	c.step(n, message(raftpb.MsgHeartbeat, 8, 5, 50, 1, 2, 60))
	if n.store.lookup(8) != nil {
		t.Fatal("a shard that was merged away is back")
	}
}

// put3 writes with the version of the shard.
func (c *cluster) put3(shard base.ShardID, key, value string) {
	c.t.Helper()
	a := newAnswers(c.t)
	o := op(wire.OpPut, shard, key, value)
	o.Version = 3
	req := c.write(c.leader(shard), o, a, 0)
	c.until("put", func() bool { _, ok := a.of(req); return ok })
	if ans, _ := a.of(req); ans.Code != wire.OK {
		c.t.Fatalf("put: %s", ans.Code)
	}
}

// TestAnInstallationIsCalledOffWithItsContext: as long as it waits for its replica to stand still.
func TestAnInstallationIsCalledOffWithItsContext(t *testing.T) {
	c, _ := pair(t, nil)
	n := c.nodes[2]
	c.step(n, message(raftpb.MsgHeartbeat, 7, 1, 2, 1, 2, 6))
	m, st := c.stage(7)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.store.InstallSnapshot(ctx, m, st); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c.noStagings(n)
	c.settle()
	r := n.store.lookup(7)
	if r == nil || !r.uninitialised() || r.worker.still || len(n.store.mu.busy) > 0 {
		t.Fatalf("replica %v, busy %v", r, n.store.mu.busy)
	}
	m, st = c.stage(7)
	if err := c.install(m, st); err != nil {
		t.Fatal(err)
	}
	// A store that stops ends what waits.
	c.put(7, "a", "1")
	m, st = c.stage(7)
	ended := errStoreDown
	n.store.installSnapshot(m, st, func(err error) { ended = err })
	c.stop(n)
	if !errors.Is(ended, ErrStopping) {
		t.Fatal(ended)
	}
}

// TestASnapshotArrivesWhileWritesFlow installs over a replica that is applying, with clients at the leader, again and
// again.
func TestASnapshotArrivesWhileWritesFlow(t *testing.T) {
	c, _ := pair(t, nil)
	n := c.nodes[2]
	m, st := c.stage(7)
	if err := c.install(m, st); err != nil {
		t.Fatal(err)
	}
	c.net.HealAll()
	a := newAnswers(t)
	installed := 0
	for i := range 30 {
		c.net.Isolate(2)
		for k := range 5 {
			c.write(c.leader(7), op(wire.OpPut, 7, fmt.Sprint("k", k), fmt.Sprint(i)), a, 0)
		}
		c.settle()
		m, st := c.stage(7)
		c.net.HealAll()
		for k := range 5 {
			c.write(c.leader(7), op(wire.OpPut, 7, fmt.Sprint("l", k), fmt.Sprint(i)), a, 0)
		}
		if i%3 == 0 { // the log is quicker
			for range 5 {
				c.tick()
			}
		}
		n.hold = i%2 == 0 // apply lags
		for range i % 4 {
			n.store.Poll()
			c.net.Step()
		}
		n.hold = false
		was := n.store.lookup(7)
		if err := c.install(m, st); err != nil {
			t.Fatal(err)
		}
		if n.store.lookup(7) != was {
			installed++
		}
		c.tick()
	}
	if installed == 0 || installed == 30 {
		t.Fatalf("%d of 30 were installed, want some and not all", installed)
	}
	c.until("answers", func() bool { return a.missing() == 0 })
	for k := range 5 {
		c.everywhere(7, fmt.Sprint("k", k), "29")
		c.everywhere(7, fmt.Sprint("l", k), "29")
	}
	if len(n.faults) > 0 || n.store.used.apply.Load() != 0 || n.store.used.inbox.Load() != 0 {
		t.Fatalf("faults %v, apply %d, inbox %d", n.faults, n.store.used.apply.Load(), n.store.used.inbox.Load())
	}
}
