package shard

import (
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// asks hands a replica of shard 7 another store's question for a pre-vote in the next term.
func (n *testNode) asks(from base.StoreID, logTerm, index uint64) {
	n.store.Step([]wire.RaftMessage{msgBetween(7, from, n.id, raftpb.Message{
		Type: raftpb.MsgPreVote, Term: n.store.lookup(7).worker.term + 1, LogTerm: logTerm, Index: index,
	})})
	n.passes()
}

// queued makes the replica of shard 7 on store 2 wait for its turn, which is the second of two, and store 3 mute.
func queuedRunOut(t *testing.T) (c *cluster, two *testNode) {
	t.Helper()
	c, lead := liveShard(t, nil)
	two = c.nodes[2]
	c.nodes[3].filter(func(*wire.RaftMessage) bool { return false })
	c.crash(lead, 100)
	c.until("store 2 waits for its turn", func() bool { return two.store.lookup(7).worker.runOut.queued })
	if rank, ok := two.store.workerOf(7).rank(two.store.lookup(7), 1); !ok || rank != 1 {
		t.Fatalf("turn %d (%t)", rank, ok)
	}
	return c, two
}

// ticksAlone gives one store ticks until cond holds, and says how many.
func (c *cluster) ticksAlone(n *testNode, most int, each func(), cond func() bool) (ticks int) {
	c.t.Helper()
	for ; !cond(); ticks++ {
		if ticks >= most {
			c.t.Fatalf("not within %d ticks", most)
		}
		c.clock.now.Add(int64(n.store.cfg.Tick))
		n.store.TickAll()
		n.passes()
		each()
	}
	return ticks
}

func (n *testNode) campaigns() bool {
	return n.store.lookup(7).worker.rn.BasicStatus().RaftState != raft.StateFollower
}

// The first in turn lacks what only the lost leader and the second have.
func TestACandidateThatCannotWinHoldsNobodyUp(t *testing.T) {
	c, lead := liveShard(t, nil)
	three := c.nodes[3]
	if rank, ok := three.store.workerOf(7).rank(three.store.lookup(7), 1); !ok || rank != 0 {
		t.Fatalf("turn %d (%t)", rank, ok)
	}
	lead.filter(func(m *wire.RaftMessage) bool { return m.ToStore != 3 || m.Msg.Type != raftpb.MsgApp })
	c.put(7, "a", "2")
	c.crash(lead, 100)
	asked := 0
	three.tap(func(to base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			if to == 2 && msgs[i].Msg.Type == raftpb.MsgPreVote {
				asked++
			}
		}
	})
	ticks := 0
	for ; c.leader(7) == nil; ticks++ {
		if ticks > 8+rankTicks+2 { // the promise, the second turn, and what the followers may be apart
			t.Fatal("no leader")
		}
		c.tick()
	}
	if asked > 2 { // the first one may come before the other store has lost the leader
		t.Errorf("%d questions of a candidate that was refused at once", asked)
	}
	c.mustReadNow(c.leased(7), 7, "a", "2")
	t.Logf("a leader after %d ticks of 100 ms", ticks)
}

func TestACandidateWithAWorseLogIsNotLetGoFirst(t *testing.T) {
	c, two := queuedRunOut(t)
	since := two.store.lookup(7).worker.runOut.since
	two.asks(3, 1, 1)
	if got := two.store.lookup(7).worker.runOut.since; got != since {
		t.Fatalf("its turn was put off by %s", got-since)
	}
	two.asks(3, 1000, 1000)
	if got := two.store.lookup(7).worker.runOut.since; got <= since {
		t.Fatal("it does not wait for one that can win")
	}
	c.ticksAlone(two, 3*rankTicks, func() {}, two.campaigns)
}

func TestACandidateIsLetGoFirstOnceHoweverOftenItAsks(t *testing.T) {
	c, two := queuedRunOut(t)
	w := two.store.workerOf(7)
	ask := func() {
		two.asks(3, 1000, 1000)
		if len(w.runOuts) > 1 || w.runOutsPeak > 1 {
			t.Fatalf("%d entries, %d at most", len(w.runOuts), w.runOutsPeak)
		}
	}
	ask()
	c.ticksAlone(two, 3*rankTicks, ask, two.campaigns)
}

// The word of the lapse is under way when a candidate asks: it finds no promise to end.
func TestWhoLetsACandidateEndItsPromiseStandsIfThatOneLoses(t *testing.T) {
	c, _ := liveShard(t, nil)
	two := c.nodes[2]
	r := two.store.lookup(7)
	for _, id := range []base.StoreID{1, 3} {
		c.nodes[id].filter(func(*wire.RaftMessage) bool { return false })
	}
	c.clock.now.Add(int64(testPromise + time.Millisecond))
	two.asks(3, 1, 1)
	if r.promised.Load() != nil || !r.worker.runOut.queued {
		t.Fatalf("promised %+v, waits for its turn: %t", r.promised.Load(), r.worker.runOut.queued)
	}
	c.ticksAlone(two, 2*rankTicks, func() {}, two.campaigns)
}
