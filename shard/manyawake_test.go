package shard

import (
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// many makes the workers take the few replicas of the test for many.
func (c *cluster) many() {
	c.eachStore(func(n *testNode) {
		for _, w := range n.store.workers {
			w.manyAwake = 1
		}
	})
}

// Most of what a tick costs is the visit, and whoever is visited for other things takes its tick then.
func TestABusyReplicaAmongManyIsNotVisitedForItsTicks(t *testing.T) {
	_, lead := liveShard(t, nil)
	w, r := lead.store.workerOf(7), lead.store.lookup(7)
	rw := &r.worker
	run := func(idle int, elsewise bool) (visits, sweeps int) {
		rw.ticks = 0
		for range 20 {
			w.turns++
			rw.idle = idle
			rw.ticks++
			due, turn := w.tickDue(r)
			if due {
				visits++
			}
			if turn {
				sweeps++
			}
			if due || elsewise {
				rw.ticks = 0
			}
		}
		return visits, sweeps
	}
	for _, tc := range []struct {
		what     string
		idle     int
		elsewise bool
		visits   int
	}{
		{"busy, visited for other things", 0, true, 0},
		{"busy, not visited", 0, false, 10},
		{"idle", idleTicks, false, 10},
	} {
		if visits, sweeps := run(tc.idle, tc.elsewise); visits != tc.visits || sweeps != 10 {
			t.Errorf("%s: %d visits, %d sweeps in 20 ticks, %d and 10 expected", tc.what, visits, sweeps, tc.visits)
		}
	}
}

func TestNoReplicaAmongManyHasMoreThanTwoTicksPending(t *testing.T) {
	_, lead := liveShard(t, nil)
	w, r := lead.store.workerOf(7), lead.store.lookup(7)
	rw := &r.worker
	rng := rand.New(rand.NewPCG(1, 2))
	rw.ticks, rw.idle = 0, 0
	for i := range 10_000 {
		w.turns++
		rw.ticks++
		due, _ := w.tickDue(r)
		if rw.ticks > 2 || rw.ticks == 2 && !due {
			t.Fatalf("round %d: %d ticks, due %t, idle for %d", i, rw.ticks, due, rw.idle)
		}
		if due || rng.IntN(3) == 0 { // a visit takes them, and may find something to do
			rw.idle += rw.ticks
			rw.ticks = 0
			if rng.IntN(2) == 0 {
				rw.idle = 0
			}
		}
	}
}

// With a write at each tick, or with none while it is still awake, a leader among many sends a heartbeat with every second
// tick as it does among few.
func TestABusyLeaderAmongManySendsItsHeartbeatsInTime(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.many()
	beats := 0
	lead.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			if msgs[i].Shard == 7 && msgs[i].Msg.Type == raftpb.MsgHeartbeat {
				beats++
			}
		}
	})
	const ticks = 40
	for range ticks {
		c.put(7, "k", "v")
		c.tick()
	}
	if want := 2 * ticks / lead.store.cfg.HeartbeatTick; beats < want-4 || beats > want+4 {
		t.Errorf("%d heartbeats to two followers in %d ticks, %d expected", beats, ticks, want)
	}
	if c.leased(7) != lead {
		t.Error("the leader has changed")
	}
	c.everywhere(7, "k", "v")
	c.untilAsleep(7)
}
