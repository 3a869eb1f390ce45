package shard

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/sched"
)

// countingClock counts its readings.
type countingClock struct {
	manualClock
	reads atomic.Int64
}

func (c *countingClock) Boot() time.Duration {
	c.reads.Add(1)
	return c.manualClock.Boot()
}

func TestAStoreWhoseReplicasAllSleepTicksHalfAsOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := &countingClock{}
		s := &Store{clock: clk, roused: make(chan struct{}, 1)}
		s.cfg = Config{Tick: 100 * time.Millisecond, Workers: 1}.withDefaults()
		s.asks.init()
		s.pool = sched.New(1, func(int, []uint64) {})
		w := newWorker(s, 0)
		s.workers = []*worker{w}
		ticked := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			n := w.mu.ticks
			w.mu.ticks = 0
			return n
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.tickLoop(ctx) })
		watch := func(what string, wakes, ticks int64) {
			t.Helper()
			time.Sleep(time.Second) // whatever was under way
			synctest.Wait()
			before, _ := clk.reads.Load(), ticked()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n, got := clk.reads.Load()-before, int64(ticked()); n < wakes-1 || n > wakes+1 || got < ticks-1 || got > ticks+1 {
				t.Errorf("%s: %d wake-ups and %d ticks of the worker in 10 s, want %d and %d", what, n, got, wakes, ticks)
			}
		}
		w.noteIdle()
		watch("asleep", 50, 10)
		w.awake = []*replica{{}}
		w.noteIdle()
		ticked()
		time.Sleep(s.cfg.Tick)
		synctest.Wait()
		if n := ticked(); n != 1 {
			t.Errorf("%d ticks in the first tick awake", n)
		}
		watch("awake", 100, 100)
		cancel()
		wg.Wait()
	})
}

// Nothing makes an orphan of a replica without a word to those who look for orphans; but if something did, it would be found.
func TestOrphansAreFoundWithoutALookAtAllReplicas(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	s := lead.store
	for s.doubts.rounds%allDoubts != 1 {
		s.Orphans() // the next look at all is far away
	}
	r := s.lookup(7)
	r.newer.Store(true)
	for range allDoubts - 1 {
		if o := s.Orphans(); len(o) > 0 {
			t.Fatalf("all replicas are looked at again: %v", o)
		}
	}
	if o := s.Orphans(); len(o) != 1 {
		t.Fatalf("%d orphans in a look at all", len(o))
	}
	if o := s.Orphans(); len(o) != 1 {
		t.Fatalf("%d orphans right after it", len(o))
	}
	r.newer.Store(false)
	if o := s.Orphans(); len(o) != 0 || len(s.doubts.list) != 0 {
		t.Fatalf("%v is no orphan any more; %d in doubt", o, len(s.doubts.list))
	}
	newer := msgBetween(7, 2, 1, raftpb.Message{Type: raftpb.MsgVote, Term: c.termOf(lead, 7) + 1})
	newer.To, newer.Msg.To = r.id+9, uint64(r.id)+9
	s.Step([]wire.RaftMessage{newer})
	if o := s.Orphans(); len(o) != 1 {
		t.Fatalf("%d orphans once a newer replica is addressed", len(o))
	}
}

func TestAFaultedReplicaIsAnOrphanAtOnce(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	s := lead.store
	for s.doubts.rounds%allDoubts != 1 {
		s.Orphans()
	}
	s.fault(s.lookup(7), "for the test", nil)
	if o := s.Orphans(); len(o) != 1 {
		t.Fatalf("%d orphans", len(o))
	}
}
