package shard

import (
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestALeaderShortOfSpaceRefusesWhatAddsBytesAndServesTheRest(t *testing.T) {
	c := newCluster(t, 1, nil) // nobody to hand over to
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	n := c.nodes[1]
	put := (&wire.Sub{Code: wire.OpPut, Key: base.UserKey([]byte("b")), Value: []byte("2")}).Append(nil)
	del := (&wire.Sub{Code: wire.OpDelete, Key: base.UserKey([]byte("a"))}).Append(nil)
	ask := func(code wire.OpCode, key, value string) wire.Code {
		t.Helper()
		a := newAnswers(t)
		req := c.write(n, op(code, 7, key, value), a, 0)
		c.until("the answer", func() bool { return a.missing() == 0 })
		ans, _ := a.of(req)
		if ans.Code == wire.DiskFull && !strings.Contains(string(ans.Payload), "space") {
			t.Errorf("the answer does not say why: %q", ans.Payload)
		}
		return ans.Code
	}
	for _, level := range []engine.SpaceLevel{engine.SpaceLow, engine.SpaceCritical} {
		n.store.SetSpace(level)
		for what, got := range map[string]struct{ code, want wire.Code }{
			"put":                  {ask(wire.OpPut, "b", "2"), wire.DiskFull},
			"batch with a put":     {ask(wire.OpBatch, "b", string(del)+string(put)), wire.DiskFull},
			"delete":               {ask(wire.OpDelete, "b", ""), wire.OK},
			"range deletion":       {ask(wire.OpDeleteRange, "x", string(base.UserKey([]byte("y")))), wire.OK},
			"batch of deletes":     {ask(wire.OpBatch, "a", string(del)), wire.OK},
			"batch that puts last": {ask(wire.OpBatch, "a", string(del)+string(del)+string(put)), wire.DiskFull},
		} {
			if got.code != got.want {
				t.Errorf("%s, %s: %s, want %s", level, what, got.code, got.want)
			}
		}
		if _, ok := c.get(7, "a"); ok {
			t.Error("the delete was not done")
		}
		if err := n.store.declineSnapshots.Load(); err == nil {
			t.Errorf("%s: snapshots are accepted", level)
		}
		for range 30 { // no other voter: it stays
			c.tick()
		}
		if l := c.leader(7); l != n {
			t.Fatal("the leadership is gone")
		}
	}
	n.store.SetSpace(engine.SpaceOK)
	if got := ask(wire.OpPut, "b", "2"); got != wire.OK || n.store.declineSnapshots.Load() != nil {
		t.Errorf("once there is room: %s", got)
	}
}

func TestAStoreShortOfSpaceGivesItsLeadershipsToFitStores(t *testing.T) {
	full := map[base.StoreID]bool{2: true}
	c := newCluster(t, 3, func(cfg *Config) { cfg.MayLead = func(s base.StoreID) bool { return !full[s] } })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.leads(7, 1)
	c.nodes[1].store.SetSpace(engine.SpaceLow)
	c.until("n3 leads", func() bool { n := c.leader(7); return n != nil && n.id == 3 })
	c.put(7, "b", "2")
	// All of them: one takes the leadership at most a few times, and writes are refused, not lost in transfers.
	full[1], full[3] = true, true
	term := c.leader(7).store.lookup(7).lead.Load().term
	c.nodes[2].store.SetSpace(engine.SpaceLow)
	c.nodes[3].store.SetSpace(engine.SpaceLow)
	for range 100 {
		c.tick()
	}
	if l := c.leader(7); l == nil || l.store.lookup(7).lead.Load().term > term+1 {
		t.Fatal("leaderships go round among full stores")
	}
}

func TestAFollowerInCriticalNeedOfSpaceTakesNoEntriesAndCatchesUpLater(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.leads(7, 1)
	c.everywhere(7, "a", "1")
	n := c.nodes[3]
	n.store.SetSpace(engine.SpaceCritical)
	_, last, _ := n.log(7)
	for range 5 {
		c.put(7, "b", "2")
		c.tick()
	}
	if _, now, _ := n.log(7); now != last {
		t.Fatalf("its log grew from %d to %d", last, now)
	}
	if l, _, ok := n.store.Leader(7); !ok || l != 1 {
		t.Fatal("it does not hear its leader any more")
	}
	n.store.SetSpace(engine.SpaceLow)
	c.everywhere(7, "b", "2")
}

func TestADrainedStoreLeadsOnlyWhereNobodyElseCan(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "a", "b", 1, 2, 3))
	c.create(desc(8, "b", "c", 1))
	c.leads(7, 1)
	n := c.nodes[1]
	n.store.PauseLeading(true)
	c.until("another leads", func() bool { l := c.leader(7); return l != nil && l.id != 1 })
	for range 40 {
		c.tick()
	}
	if c.leader(8) != n {
		t.Error("the shard with one replica has no leader")
	}
	// It wins an election against its will, and gives it away again.
	c.outcome(c.transfer(c.leader(7), 7, 1))
	c.until("another leads", func() bool { l := c.leader(7); return l != nil && l.id != 1 })

	// The leader dies: of the two that are left the other one stands.
	lead := c.leader(7)
	other := c.nodes[5-lead.id]
	c.stop(lead)
	for range 40 {
		if c.tick(); n.store.lookup(7).lead.Load().leads {
			t.Fatal("the drained store leads though another could")
		}
	}
	if c.leader(7) != other {
		t.Fatal("nobody leads")
	}
	// The other may not win: nobody stands, but for the drained store, late.
	other.filter(func(m *wire.RaftMessage) bool {
		return m.Msg.Type != raftpb.MsgPreVote && m.Msg.Type != raftpb.MsgVote &&
			m.Msg.Type != raftpb.MsgApp && m.Msg.Type != raftpb.MsgHeartbeat && m.Msg.Type != raftpb.MsgTimeoutNow
	})
	silent := 0
	for ; !n.store.lookup(7).lead.Load().leads; silent++ {
		if c.tick(); silent > 200 {
			t.Fatal("no leader for 20 s")
		}
	}
	if silent < quietElections*n.store.cfg.ElectionTick {
		t.Errorf("the drained store stood after %d ticks", silent)
	}
	n.store.PauseLeading(false)
	other.filter(nil)
	c.put(7, "a", "1")
}

func TestAllStoresDrainedStillElect(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.each(func(n *testNode) { n.store.PauseLeading(true) })
	c.stop(c.leader(7))
	c.until("a leader", func() bool { return c.leader(7) != nil })
	a := newAnswers(t)
	c.until("a write", func() bool {
		n := c.leader(7)
		if n == nil {
			return false
		}
		req := c.write(n, op(wire.OpPut, 7, "b", "2"), a, time.Second)
		c.settle()
		ans, ok := a.of(req)
		return ok && ans.Code == wire.OK
	})
}
