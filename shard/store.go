package shard

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
	"github.com/shardd/shardd/shard/sched"
)

// Store owns the replicas of one node. Its methods are safe for concurrent use.
type Store struct {
	cfg     Config
	engine  *engine.Engine
	clock   clock.Clock
	log     *slog.Logger
	metrics *metrics
	live    *liveness.Monitor // nil: no leases, no sleep

	mu struct {
		sync.RWMutex
		replicas map[base.ShardID]*replica
		ranges   ranges                              // the initialised ones, by what they own
		dead     map[base.ShardID]engine.ReplicaMark // a cache: marks of removed replicas
		busy     map[base.ShardID]*boundary          // shards under a boundary step
		stopped  bool
	}

	watch struct { // who waits for the next boundary step of a shard
		sync.Mutex
		shards map[base.ShardID]chan struct{}
	}

	asks       asks     // questions for read indexes
	supporters struct { // the stores that have ever supported this one, and whether they did at the last tick
		sync.Mutex
		held map[base.StoreID]bool
	}
	sleeping   atomic.Int64  // replicas that sleep
	leaseReads atomic.Uint64 // answered by ReadNow

	pool      *sched.Pool
	workers   []*worker
	applyPool *sched.Pool
	appliers  []*applyWorker
	life      life

	// used is what the store-wide limits count.
	used struct {
		inbox, queue, uncommitted, apply, reads atomic.Int64
	}
	news   news
	doubts doubts
	peers  peerStores

	proposals atomic.Uint64 // ids, unique in this incarnation
	contexts  atomic.Uint64 // of read indexes, unique in this incarnation
	sends     atomic.Uint64 // ids of snapshots in flight
	started   atomic.Bool
	stalled   atomic.Bool // the disk has not synced for a while, as of the last tick

	split            atomic.Pointer[SplitLimits]
	space            atomic.Uint32          // engine.SpaceLevel
	declineSnapshots atomic.Pointer[string] // why none is accepted; nil: they are
	paused           atomic.Bool            // leads only where nobody else can
	logBytes         []atomic.Uint64        // of the raft logs, by worker, as of its last tick

	roused chan struct{} // capacity 1: a worker whose replicas all slept has something to tick
}

// controlKey returns the key that wakes worker i of n without naming a shard: ids never come near it.
func controlKey(i, n int) uint64 {
	top := uint64(math.MaxUint64)
	return top - top%uint64(n) - uint64(n) + uint64(i)
}

// New loads the replicas of the engine and returns a stopped store. Errors are those of the engine (with their exit
// code) or name the replica that cannot be loaded.
func New(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, engine: cfg.Engine, clock: cfg.Clock, log: cfg.Logger, live: cfg.Liveness}
	s.supporters.held = make(map[base.StoreID]bool)
	s.mu.replicas = make(map[base.ShardID]*replica)
	s.mu.ranges = newRanges()
	s.watch.shards = make(map[base.ShardID]chan struct{})
	s.mu.dead = make(map[base.ShardID]engine.ReplicaMark)
	s.mu.busy = make(map[base.ShardID]*boundary)
	s.SetSplitLimits(cfg.Split)
	s.life.init()
	s.asks.init()
	s.pool = sched.New(cfg.Workers, func(i int, keys []uint64) { s.workers[i].process(keys) })
	s.logBytes = make([]atomic.Uint64, cfg.Workers)
	s.roused = make(chan struct{}, 1)
	for i := range cfg.Workers {
		s.workers = append(s.workers, newWorker(s, i))
	}
	s.applyPool = sched.New(cfg.ApplyWorkers, func(i int, keys []uint64) { s.appliers[i].process(keys) })
	for range cfg.ApplyWorkers {
		s.appliers = append(s.appliers, newApplyWorker(s))
	}
	s.metrics = newMetrics(s, cfg.Registerer)
	if err := s.boot(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run drives the groups until ctx ends, then answers every request that still waits: Unavailable if it never was
// proposed, Ambiguous if it was. It starts and joins all goroutines of the store and can be called once.
func (s *Store) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("shard: Run was called before")
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.pool.Run(ctx) })
	wg.Go(func() { _ = s.applyPool.Run(ctx) })
	wg.Go(func() { s.runLife(ctx) })
	wg.Go(func() { s.tickLoop(ctx) })
	wg.Wait()
	s.stop()
	return nil
}

func (s *Store) tickLoop(ctx context.Context) {
	timer := time.NewTimer(clock.UntilAligned(s.cfg.Tick))
	defer timer.Stop()
	var last time.Time // when workers whose replicas all sleep had a tick; by the clock of the timers
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.roused: // since the timer was set for a store that sleeps
			timer.Reset(clock.UntilAligned(s.cfg.Tick))
			continue
		case <-timer.C:
		}
		now := time.Now()
		turn := now.Sub(last) >= idleRate*s.cfg.Tick-s.cfg.Tick/2
		if turn {
			last = now
		}
		s.tick(turn)
		step := s.cfg.Tick
		if s.idle() {
			step = s.idleStep()
		}
		timer.Reset(clock.UntilAligned(step))
	}
}

// idleRate is how many ticks there are to one that wakes a worker whose replicas all sleep.
const idleRate = 10

// idleStep is the time between two ticks of a store all of whose replicas sleep: as much as lies between the beats of store
// liveness, so that both wake the process once.
func (s *Store) idleStep() time.Duration {
	if s.live != nil && s.live.Interval() > s.cfg.Tick {
		return min(s.live.Interval(), idleRate*s.cfg.Tick)
	}
	return 2 * s.cfg.Tick
}

// idle reports whether no worker has anything to tick.
func (s *Store) idle() bool {
	for _, w := range s.workers {
		if !w.idle.Load() {
			return false
		}
	}
	return true
}

// tick gives the workers a tick; one without anything awake only if it is to be idle's turn.
func (s *Store) tick(idle bool) {
	s.watchSupport()
	for _, w := range s.workers {
		if w.idle.Load() && !idle {
			continue
		}
		w.mu.Lock()
		w.mu.ticks++
		w.mu.Unlock()
		s.pool.Enqueue(w.control)
	}
	s.tickAsks()
}

// TickAll gives every replica that is awake one tick of raft's clock: one wake-up per worker. Run calls it; tests that own the
// schedule call it themselves.
func (s *Store) TickAll() { s.tick(true) }

// Poll runs one pass of every worker and apply worker, and what the life-cycle goroutine has to do, on the caller's
// goroutine and reports whether there was anything to do. For tests that own the schedule; it must not be mixed with
// Run. Syncs still finish on the engine's
// goroutine.
func (s *Store) Poll() (worked bool) {
	for i := range s.workers {
		worked = s.pool.Poll(i) || worked
	}
	for i := range s.appliers {
		worked = s.applyPool.Poll(i) || worked
	}
	return s.pollLife() || worked
}

// stop ends every replica after the pools have stopped: nobody else touches worker-owned state any more.
func (s *Store) stop() {
	s.mu.Lock()
	s.mu.stopped = true
	all := make([]*replica, 0, len(s.mu.replicas))
	for _, r := range s.mu.replicas {
		all = append(all, r)
	}
	var steps []*boundary
	for _, op := range s.mu.busy {
		steps = append(steps, op)
	}
	s.mu.Unlock()
	s.life.close()
	for _, op := range steps {
		s.finish(op, ErrStopping)
	}
	for _, w := range s.workers { // replaced or removed since the worker's last pass: nobody else knows of these
		w.mu.Lock()
		left, peeks := w.mu.left, w.mu.peeks
		w.mu.left, w.mu.peeks, w.mu.stopped = nil, nil, true
		w.mu.Unlock()
		if w.noticeTimer != nil {
			w.noticeTimer.Stop()
		}
		for _, l := range left {
			l.r.dispose(l.code, l.reason, l.err)
			l.r.dropHanded(l.reason)
		}
		for _, f := range peeks {
			f() // whoever waits for it is let go
		}
	}
	for _, r := range all {
		r.dispose(wire.Unavailable, "store is stopping", ErrStopping)
		r.dropHanded("store is stopping")
	}
	s.log.Info("store stopped", "store", s.cfg.Store, "replicas", len(all))
}

func (s *Store) lookup(id base.ShardID) *replica {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mu.replicas[id]
}

// find is lookup with the error for callers.
func (s *Store) find(id base.ShardID) (*replica, error) {
	r := s.serving(id)
	if r == nil {
		return nil, &NotFoundError{Shard: id}
	}
	if why, bad := r.faultReason(); bad {
		return nil, &FaultedError{Shard: id, Replica: r.id, Reason: why}
	}
	return r, nil
}
