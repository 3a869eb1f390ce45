package shard

import (
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// TestACrashDuringAnInstallationLeavesTheOldOrTheNewReplica does so over no replica, an uninitialised one that has
// voted, and one with a log and data.
func TestACrashDuringAnInstallationLeavesTheOldOrTheNewReplica(t *testing.T) {
	for _, what := range []string{"none", "uninitialised", "initialised"} {
		t.Run(what, func(t *testing.T) {
			c, _ := pair(t, nil)
			n := c.nodes[2]
			c.put(7, "a", "1")
			hard := raftpb.HardState{}
			switch what {
			case "uninitialised":
				st, _ := c.nodes[1].store.Status(7)
				v := vote(7, 9, 2, 3, 2, st.Term)
				c.step(n, v)
				c.step(n, v)
				hard = raftpb.HardState{Term: st.Term, Vote: 9}
			case "initialised":
				m, st := c.stage(7)
				if err := c.install(m, st); err != nil {
					t.Fatal(err)
				}
				c.net.HealAll()
				c.put(7, "old", "1")
				c.everywhere(7, "old", "1")
				c.net.Isolate(2)
				a := newAnswers(t)
				c.write(c.leader(7), wire.Op{Code: wire.OpDelete, Shard: 7, Version: 1, Key: base.UserKey([]byte("old"))}, a, 0)
				c.until("deleted", func() bool { return a.missing() == 0 })
			}
			c.put(7, "a", "2")
			m, st := c.stage(7)
			old, fresh := 0, 0
			c.inClones(n, func() {
				if err := c.install(m, st); err != nil {
					t.Error(err)
				}
			}, func(e *engine.Engine, states []engine.ReplicaState) {
				_, v, ok, err := e.Get(base.UserKey([]byte("a")), nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(states) == 1 && states[0].Applied.Index == m.Applied.Index {
					fresh++
					s := states[0]
					_, _, left, _ := e.Get(base.UserKey([]byte("old")), nil)
					if !ok || string(v) != "2" || left || s.Hard.Term < hard.Term || s.Hard.Vote != hard.Vote ||
						s.Hard.Commit < m.Applied.Index || s.Truncated.Index != m.Applied.Index {
						t.Fatalf("a mix: a=%q, old row %t, %+v", v, left, s)
					}
					return
				}
				old++
				switch {
				case what == "none" && (len(states) != 0 || ok),
					what == "uninitialised" && (len(states) != 1 || states[0].Desc != nil || ok || states[0].Hard != hard),
					what == "initialised" && (len(states) != 1 || !ok || string(v) != "1"):
					t.Fatalf("a mix: a=%q %t, %+v", v, ok, states)
				}
			})
			if old == 0 {
				t.Fatalf("%d moments before, %d after", old, fresh)
			}
			c.noStagings(n)
			c.crash(n, 0) // it was durable when it was answered
			c.start(n)
			if v, ok := c.local(n, 7, "a"); !ok || v != "2" {
				t.Fatalf("a is %q %t", v, ok)
			}
			c.net.HealAll()
			c.put(7, "b", "3")
			c.everywhere(7, "b", "3")
		})
	}
}

// TestAFailedIngestChangesNothing: the replica, its log and its vote go on, and the next attempt succeeds.
func TestAFailedIngestChangesNothing(t *testing.T) {
	c, _ := pair(t, nil)
	n := c.nodes[2]
	m, st := c.stage(7)
	if err := c.install(m, st); err != nil {
		t.Fatal(err)
	}
	c.net.HealAll()
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.net.Isolate(2)
	c.put(7, "a", "2")
	m, st = c.stage(7)
	r, before := n.store.lookup(7), n.store.lookup(7).worker.rn.BasicStatus().HardState
	if err := st.Remove(); err != nil { // its files are gone, as a disk that loses them would have it
		t.Fatal(err)
	}
	if err := c.install(m, st); err == nil {
		t.Fatal("installed from nothing")
	}
	if n.store.lookup(7) != r || r.worker.rn.BasicStatus().HardState != before || r.worker.still || len(n.faults) > 0 {
		t.Fatalf("the replica changed: %v, faults %v", n.store.lookup(7), n.faults)
	}
	c.net.HealAll()
	c.everywhere(7, "a", "2")
}
