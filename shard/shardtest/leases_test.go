package shardtest

import (
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/liveness"
)

// Every live cluster has leases, and its stores stand still now and then, from half a promise to five of them. A store
// stands still where it looks at its clock: just before, so that it comes late with what it has done so far, or just
// behind, so that it goes by a time that is long over. Its readers, its workers and its Monitor meet that at different
// moments, which is harder on them than a process that is stopped as a whole.
//
// Virtual time stands still while a goroutine waits for a mutex, so nobody may sleep with one: a store stands still only
// where it is known to hold none.

const promise = 800 * time.Millisecond

// pausing is a clock whose reader may have to wait.
type pausing struct {
	clock.Clock
	real   clock.Clock
	until  atomic.Int64 // on real
	pauses atomic.Int64
	stood  sync.Map // name of a function -> true: it has stood still
}

// Boot implements clock.Clock.
func (p *pausing) Boot() time.Duration {
	wait := time.Duration(p.until.Load()) - p.real.Boot()
	if wait <= 0 {
		return p.Clock.Boot()
	}
	name, ok := mayStandStill()
	if !ok {
		return p.Clock.Boot()
	}
	p.stood.Store(name, true)
	if p.pauses.Add(1)%2 == 0 {
		now := p.Clock.Boot()
		time.Sleep(wait)
		return now
	}
	time.Sleep(wait)
	return p.Clock.Boot()
}

// standStill are the functions that read the clock while they hold no mutex, and nor does whoever calls them.
var standStill = []string{
	"shardtest.(*liveNode).readNow", "shard.(*replica).stillHolds", "shard.(*worker).process", "liveness.(*Monitor).Run",
	"liveness.(*Monitor).Receive",
}

// mayStandStill returns the function that reads the clock, if it is one that may sleep there.
func mayStandStill() (name string, ok bool) {
	var pcs [1]uintptr
	runtime.Callers(3, pcs[:])
	f, _ := runtime.CallersFrames(pcs[:]).Next()
	for _, name := range standStill {
		if strings.HasSuffix(f.Function, name) {
			return name, true
		}
	}
	return "", false
}

// pause lets a store stand still.
func (n *liveNode) pause(d time.Duration) {
	n.time.until.Store(int64(n.c.clock.Boot() + d))
}

// margin is the stated bound on how far the rates of two clocks differ.
const margin = 0.05

// clock returns the store's own: hours from the others', and right, or so fast or slow that a fast one and a slow one
// differ by just less than the margin.
func (n *liveNode) clock() clock.Clock {
	if n.time == nil {
		n.time = &pausing{real: n.c.clock, Clock: skewed{
			n.c.clock, 1 + 0.999*margin/(2-margin)*float64(int(n.id)%3-1), time.Duration(n.id) * 5 * time.Hour,
		}}
	}
	return n.time
}

// inlet takes what the network delivers to one life of a store, and hands it on from a goroutine of its own: a store that
// stands still must not hold up the network.
type inlet struct {
	store *shard.Store
	wake  chan struct{}
	mu    sync.Mutex
	queue []func()
}

func (in *inlet) push(f func()) {
	in.mu.Lock()
	in.queue = append(in.queue, f)
	in.mu.Unlock()
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *inlet) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-in.wake:
		}
		in.mu.Lock()
		queue := in.queue
		in.queue = nil
		in.mu.Unlock()
		for _, f := range queue {
			f()
		}
	}
}

// Step implements transport.Handler.
func (in *inlet) Step(msgs []wire.RaftMessage) {
	msgs = slices.Clone(msgs)
	in.push(func() { in.store.Step(msgs) })
}

// Unreachable implements transport.Handler.
func (in *inlet) Unreachable(id base.ShardID, from, to base.ReplicaID) {
	in.push(func() { in.store.Unreachable(id, from, to) })
}

// Liveness implements transport.Handler.
func (in *inlet) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	in.push(func() { in.store.Liveness(from, incarnation, payload) })
}

// newMonitor makes the Monitor of a life of a store; store and send are called once that runs.
func newMonitor(
	id base.StoreID, life uint64, c clock.Clock, stores int, store func() *shard.Store, send func(base.StoreID, []byte),
) *liveness.Monitor {
	cfg := liveness.Config{
		Store: id, Incarnation: life, Promise: promise, Margin: margin, Interval: tick, Clock: c, Send: send,
		OnLapse:    func(s base.StoreID, epoch uint64) { store().OnLapse(s, epoch) },
		OnSupport:  func(s base.StoreID, epoch uint64, fresh bool) { store().OnSupport(s, epoch, fresh) },
		OnReleased: func(s base.StoreID, gs []liveness.Group) { store().OnReleased(s, gs) },
		Leads:      func(g liveness.Group) bool { return store().Leads(g) },
		Follows:    func(s base.StoreID) []liveness.Group { return store().Follows(s) },
	}
	if life > 1 {
		cfg.Recorded = promise
	}
	m := liveness.New(cfg)
	var all []base.StoreID
	for i := range stores {
		all = append(all, base.StoreID(i+1))
	}
	m.SetPeers(all)
	return m
}

// readNow is what a server does with a Get: by the lease, if that is possible.
func (n *liveNode) readNow(store *shard.Store, op *wire.Op) (a wire.Answer, ok bool) {
	if op.Code != wire.OpGet {
		return a, false
	}
	out, ok := store.ReadNow(op, nil, n.clock().Boot())
	if !ok {
		return a, false
	}
	if _, err := wire.DecodeAnswer(out, &a); err != nil {
		n.c.t.Error(err)
	}
	n.c.leased.Add(1)
	return a, true
}

// checkLeases fails the test if there was next to nothing that leases could have spoilt.
func (c *live) checkLeases(t *testing.T) {
	t.Helper()
	t.Logf("%d reads by a lease, %d pauses", c.leased.Load(), c.paused)
	if c.leased.Load() < 50 || c.paused == 0 {
		t.Errorf("too few reads by a lease, or pauses, to prove anything")
	}
}

// pauseOne lets a store stand still for a while.
func (c *live) pauseOne(rng *rand.Rand, n *liveNode) {
	c.paused++
	n.pause(promise/2 + time.Duration(rng.Int64N(int64(9*promise/2))))
}
