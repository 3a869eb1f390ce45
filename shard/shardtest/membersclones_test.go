package shardtest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// TestACrashOfAllStoresAtAnySyncedBoundaryOfAMoveLeavesOneMembership moves a replica, that of the leader or of a
// follower: promote and demote in one joint step, leave, remove. Just before and just after each sync of any store the
// whole cluster loses power, in copies of the world that keep different shares of what was not synced. Each copy must
// come to one descriptor that is not joint and holds every change that was acknowledged, serve and keep every write,
// and hold no replica on any disk that the descriptor does not list, once those that missed their removal have the
// proof.
func TestACrashOfAllStoresAtAnySyncedBoundaryOfAMoveLeavesOneMembership(t *testing.T) {
	withAndWithoutLeases(t, crashAtEachBoundaryOfAMove)
}

func crashAtEachBoundaryOfAMove(t *testing.T, leases bool) {
	for _, leaver := range []base.StoreID{1, 2} {
		t.Run(fmt.Sprintf("of %s, led by n1", leaver), func(t *testing.T) {
			eachSeed(t, 1, func(t *testing.T, seed int64) {
				simulateWith(t, seed, 4, leases, nil, func(s *sim) {
					m := &moveRun{s: s}
					d := desc(7, "", "", 1, 2, 3, 4)
					d.Replicas[3].Role = base.RoleLearner
					s.create(d, true)
					m.write()
					s.atSync = m.crashAll
					m.change(shard.ReplicaChange{Op: shard.Promote, Store: 4}, shard.ReplicaChange{Op: shard.Demote, Store: leaver})
					m.write()
					s.until("not joint", func() bool {
						n := s.leader(7)
						return n != nil && !joint(n.desc(7))
					})
					m.write()
					m.change(shard.ReplicaChange{Op: shard.Remove, Store: leaver})
					m.write()
					s.until("the replica is gone", func() bool {
						_, ok := s.node(leaver).store.Status(7)
						return !ok
					})
					s.atSync = nil
					t.Logf("%d boundaries, %d worlds", m.boundaries, m.worlds)
					if m.boundaries < 20 {
						t.Errorf("only %d boundaries", m.boundaries)
					}
				})
			})
		})
	}
}

type moveRun struct {
	s          *sim
	writes     []*request
	calls      []*changeCall
	boundaries int
	worlds     int
}

func (m *moveRun) write() {
	k := fmt.Sprint("w", len(m.writes))
	var r *request
	m.s.until("put "+k, func() bool {
		if r != nil && r.done && r.answer.Code == wire.OK {
			return true
		}
		if n := m.s.leader(7); n != nil && (r == nil || r.done) {
			r = m.s.put(n, 7, k, k, 0)
			m.writes = append(m.writes, r)
		}
		return false
	})
}

func (m *moveRun) change(changes ...shard.ReplicaChange) {
	var c *changeCall
	m.s.until("change", func() bool {
		synctest.Wait()
		if c != nil {
			if done, err := m.s.outcome(c); !done || err == nil {
				return done
			}
		}
		if n := m.s.leader(7); n != nil {
			c = m.s.change(n, 7, 0, changes...)
			m.calls = append(m.calls, c)
			synctest.Wait()
		}
		return false
	})
}

func (n *node) desc(id base.ShardID) *base.Descriptor {
	d, _ := n.store.Descriptor(id)
	return d
}

func joint(d *base.Descriptor) bool { return len(engine.ConfStateOf(d).VotersOutgoing) > 0 }

func (m *moveRun) crashAll(n *node, when string) {
	if when == "before the sync" {
		m.boundaries++
	}
	for _, keep := range [][]int{{0, 0, 0, 0}, {100, 100, 100, 100}, {0, 100, 50, 100}} {
		m.worlds++
		what := fmt.Sprintf("world %d: %s %s of boundary %d, %v%% kept, seed %d",
			m.worlds, n.id, when, m.boundaries, keep, m.s.seed)
		m.verify(what, m.s.fork(m.worlds, keep))
		if m.s.t.Failed() {
			m.s.t.Logf("first failure in %s", what)
			m.s.atSync = nil
			return
		}
	}
}

func (m *moveRun) verify(what string, w *sim) {
	t := m.s.t
	t.Helper()
	defer w.stopAll()
	w.mustPut(7, "end", "x")
	w.until("not joint", func() bool { n := w.leader(7); return n != nil && !joint(n.desc(7)) })
	d := w.leader(7).desc(7)
	synctest.Wait()
	for _, c := range m.calls {
		if done, err := m.s.outcome(c); done && err == nil && d.Epoch.ConfVer < c.desc.Epoch.ConfVer {
			t.Errorf("%s: %s was acknowledged at %s and is lost: %s", what, c.name, c.desc.Epoch, d)
		}
	}
	for _, n := range w.nodes {
		st, ok := n.store.Status(7)
		if _, listed := d.ReplicaOn(n.id); listed || !ok {
			if listed != ok {
				t.Errorf("%s: %s lists a replica on %s, which is not there", what, d, n.id)
			}
			continue
		}
		gone := make(chan error, 1)
		store := n.store
		go func() { gone <- store.RemoveReplica(context.Background(), 7, st.Replica, d) }()
		w.until("removal by proof", func() bool { synctest.Wait(); return len(gone) > 0 })
		if err := <-gone; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.until("equal members", func() bool {
		lead, _ := w.leader(7).store.Status(7)
		same := true
		for _, r := range d.Replicas {
			st, _ := w.node(r.Store).store.Status(7)
			same = same && st.Applied == lead.Applied && st.LastIndex == lead.Applied && shape(st.Desc) == shape(d)
		}
		return same
	})
	w.lookAll()
	var want []byte
	for i, r := range d.Replicas {
		got := rows(t, w.node(r.Store).eng, d)
		if i == 0 {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: replicas %d and %d hold different rows", what, d.Replicas[0].Replica, r.Replica)
		}
	}
	for _, r := range m.writes {
		if !r.done || r.answer.Code != wire.OK {
			continue
		}
		if a := w.local(w.node(d.Replicas[0].Store), 7, r.key); a.Code != wire.OK || string(a.Payload) != r.value {
			t.Errorf("%s: acknowledged %s is lost: %s", what, r.name, a.Code)
		}
	}
}
