package shard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestAShardGrowsFromOneVoterToThreeAndMovesToOtherStores(t *testing.T) {
	c := newCluster(t, 5, small)
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	for _, s := range []base.StoreID{2, 3} {
		c.learner(7, s)
		c.put(7, "b", fmt.Sprint(s))
		c.until("the learner is caught up", func() bool {
			out := c.decided(c.change(c.leader(7), 7, 0, promote(s)))
			return out.err == nil
		})
		c.until("not joint", func() bool { return !isJoint(c.desc(7)) })
	}
	c.shapes(7, "7 next 4: 1v 2v 3v")
	// One after the other, the leader's as well.
	for i, from := range []base.StoreID{1, 2} {
		to := base.StoreID(4 + i)
		c.fill(7, 40<<10)
		c.learner(7, to)
		c.until("the swap", func() bool {
			n := c.leader(7)
			return n != nil && c.decided(c.change(n, 7, 0, promote(to), demote(from))).err == nil
		})
		c.until("not joint", func() bool { return !isJoint(c.desc(7)) })
		c.removed(7, from)
		c.until("the old replica is gone", func() bool { return c.nodes[from].store.lookup(7) == nil })
	}
	c.shapes(7, "15 next 6: 3v 4v 5v")
	c.put(7, "end", "x")
	c.everywhere(7, "end", "x")
	c.mustGet(7, "a", "1")
	for _, id := range c.ids() {
		c.crash(c.nodes[id], 0)
		c.start(c.nodes[id])
	}
	c.until("a leader", func() bool { return c.leader(7) != nil })
	c.mustGet(7, "end", "x")
}

// Random changes of replicas, by whoever leads, with crashes, cuts and small logs in between. At the end the shard is
// not joint, every acknowledged write is on every member, and no store holds a replica that the descriptor does not
// list once those that missed their removal have the proof.
func TestRandomMovesUnderCrashesAndCutsLoseNothing(t *testing.T) {
	for range 4 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &moves{c: newCluster(t, 5, small), rng: rand.New(rand.NewPCG(seed, 4)), want: map[string]string{}}
			m.c.create(desc(7, "", "", 1, 2, 3))
			for i := range 250 {
				m.step(i)
				if t.Failed() {
					return
				}
			}
			m.finish()
			t.Logf("%d changes applied, %d writes, %d crashes", m.applied, len(m.want), m.crashes)
			if m.applied < 5 {
				t.Error("too few changes to prove anything")
			}
		})
	}
}

type moves struct {
	c       *cluster
	rng     *rand.Rand
	want    map[string]string
	open    chan changeOutcome
	applied int
	crashes int
}

func (m *moves) step(i int) {
	c, rng := m.c, m.rng
	m.takeOutcome()
	if n := c.leader(7); n != nil {
		if m.open == nil && rng.IntN(2) == 0 {
			m.open = c.change(n, 7, 0, m.pick(c.desc(7))...)
		}
		a := newAnswers(c.t)
		reqs := map[uint64]string{}
		for k := range 1 + rng.IntN(8) {
			key := fmt.Sprintf("%d/%d", i, k)
			reqs[c.write(n, op(wire.OpPut, 7, key, strings.Repeat("v", 300)), a, time.Hour)] = key
		}
		c.settle()
		for req, key := range reqs {
			if ans, ok := a.of(req); ok && ans.Code == wire.OK {
				m.want[key] = "x"
			}
		}
	}
	n := c.nodes[base.StoreID(1+rng.IntN(5))]
	switch rng.IntN(20) {
	case 0:
		c.crash(n, []int{0, 50, 100}[rng.IntN(3)])
		m.crashes++
		c.start(n)
	case 1:
		c.net.Isolate(n.id)
	case 2, 3, 4:
		c.net.HealAll()
	}
	for range rng.IntN(4) {
		c.tick()
	}
	m.reconcile()
}

// pick is a change that makes some sense for a descriptor: a learner is added, promoted or removed, a voter demoted.
func (m *moves) pick(d *base.Descriptor) (out []ReplicaChange) {
	var voters, learning []base.StoreID
	var free []base.StoreID
	for s := base.StoreID(1); s <= 5; s++ {
		switch r, ok := d.ReplicaOn(s); {
		case !ok:
			free = append(free, s)
		case r.Role == base.RoleLearner:
			learning = append(learning, s)
		default:
			voters = append(voters, s)
		}
	}
	any := func(of []base.StoreID) base.StoreID { return of[m.rng.IntN(len(of))] }
	switch k := m.rng.IntN(4); {
	case k == 0 && len(free) > 0:
		return []ReplicaChange{add(any(free))}
	case k == 1 && len(learning) > 0:
		out = []ReplicaChange{promote(any(learning))}
		if len(voters) > 2 {
			out = append(out, demote(any(voters)))
		}
		return out
	case k == 2 && len(voters) > 3:
		return []ReplicaChange{demote(any(voters))}
	case len(learning) > 0 && len(voters) >= 3:
		return []ReplicaChange{remove(any(learning))}
	case len(free) > 0:
		return []ReplicaChange{add(any(free))}
	}
	return []ReplicaChange{promote(any(append(learning, voters...)))}
}

// reconcile gives replicas that ask the proof that they were removed, as the node does.
func (m *moves) reconcile() {
	lead := m.c.leader(7)
	if lead == nil {
		return
	}
	d, _ := lead.store.Descriptor(7)
	m.c.each(func(n *testNode) {
		for _, o := range n.store.Orphans() {
			ch := make(chan error, 1)
			busy, err := n.store.removeReplica(o.Shard, o.Replica, d, func(err error) { ch <- err })
			if err != nil && !errors.As(err, new(*ProofError)) {
				m.c.t.Error(err)
			}
			if busy != nil || err != nil {
				continue // another step of the shard is under way: the next time
			}
			m.c.settle()
			select {
			case err := <-ch:
				if err != nil {
					m.c.t.Error(err)
				}
			default:
				r := n.store.lookup(o.Shard)
				m.c.t.Fatalf("the removal of %s from %s does not end: %+v, handed %d, parking %t, faulted %v, reason %s", r, n.id,
					r.worker, r.handed.bytes.Load(), r.parking.Load(), r.faulted.Load(), o.Reason)
			}
		}
	})
}

// takeOutcome looks whether the change that is open has ended.
func (m *moves) takeOutcome() {
	if m.open == nil {
		return
	}
	select {
	case out := <-m.open:
		if m.open = nil; out.err == nil {
			m.applied++
		}
	default:
	}
}

func (m *moves) finish() {
	c, t := m.c, m.c.t
	c.net.HealAll()
	c.until("a leader, not joint, and no change on its way", func() bool {
		m.reconcile()
		if m.takeOutcome(); m.open != nil {
			return false
		}
		n := c.leader(7)
		if n == nil {
			return false
		}
		d, _ := n.store.Descriptor(7)
		return !isJoint(d)
	})
	a := newAnswers(t)
	var req uint64
	c.until("a write", func() bool { // the leader may be about to hand over
		ans, ok := a.of(req)
		if n := c.leader(7); n != nil && (req == 0 || ok && ans.Code != wire.OK) {
			req = c.write(n, op(wire.OpPut, 7, "end", "x"), a, time.Hour)
			return false
		}
		return ok && ans.Code == wire.OK
	})
	var d *base.Descriptor
	wrong := "no leader"
	for range 300 {
		m.reconcile()
		if n := c.leader(7); n != nil {
			d, _ = n.store.Descriptor(7)
			if wrong = m.misplaced(n, d); wrong == "" {
				break
			}
		}
		c.tick()
	}
	if wrong != "" {
		t.Fatalf("not within 300 ticks: %s", wrong)
	}
	m.caughtUp(d)
	for _, r := range d.Replicas {
		for key := range m.want {
			if _, ok := c.local(c.nodes[r.Store], 7, key); !ok {
				t.Fatalf("acknowledged %s is lost on %s", key, r.Store)
			}
		}
	}
	c.checkLogs(7)
	c.each(func(n *testNode) {
		if len(n.faults) > 0 {
			t.Errorf("%s: %v", n.id, n.faults)
		}
	})
}

// misplaced names a replica that is where the descriptor has none, or is not where it has one.
func (m *moves) misplaced(lead *testNode, d *base.Descriptor) (wrong string) {
	m.c.each(func(n *testNode) {
		rep, listed := d.ReplicaOn(n.id)
		r := n.store.lookup(7)
		if listed != (r != nil) || listed && (r.id != rep.Replica || r.uninitialised()) {
			st, ok := n.store.Status(7)
			wrong = fmt.Sprintf("%s, led by %s; %s has one %t: replica %d, log %d to %d, applied %d, faulted %q, progress %+v",
				d, lead.id, n.id, ok, st.Replica, st.FirstIndex, st.LastIndex, st.Applied, st.Faulted,
				lead.store.workerOf(7).progress(lead.store.lookup(7)))
		}
	})
	return wrong
}

// caughtUp waits until all members have the last write.
func (m *moves) caughtUp(d *base.Descriptor) {
	c := m.c
	for range 300 {
		missing := 0
		for _, r := range d.Replicas {
			if _, ok := c.local(c.nodes[r.Store], 7, "end"); !ok {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		c.tick()
	}
	for _, r := range d.Replicas {
		st, _ := c.nodes[r.Store].store.Status(7)
		rep := c.nodes[r.Store].store.lookup(7)
		c.t.Logf("%s: %+v, in flight %t, still %t, handed %d, level %s, progress %+v, sending %+v, reports %+v", r.Store, st,
			rep.worker.inflight, rep.worker.still, rep.handed.bytes.Load(), c.nodes[r.Store].store.spaceLevel(),
			rep.store.workerOf(rep.shard).progress(rep), rep.worker.sending, rep.worker.reports)
	}
	c.t.Fatalf("the members of %s do not catch up", d)
}
