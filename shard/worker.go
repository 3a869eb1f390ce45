package shard

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// worker owns the groups with shard % W == index and runs their passes.
type worker struct {
	store   *Store
	index   int
	control uint64      // key that wakes it for what is in mu
	idle    atomic.Bool // all its replicas sleep, and none waits for its turn to be woken

	mu struct {
		sync.Mutex
		synced   []*pass
		created  []*replica
		left     []leaving  // before created: a new object may stand for an old one
		released []*replica // from standing still
		events   []liveEvent
		peeks    []func()
		stopped  bool
		ticks    int
	}

	// The rest belongs to process.
	replicas []*replica // sorted by shard
	byShard  map[uint64]*replica
	awake    []*replica // those that are ticked, and some that are not any more
	active   []*replica // of the pass at hand
	parked   []*replica // wait for a sync to finish
	stopped  []func()   // wait for the end of the pass: replicas that stand still
	passes   uint64
	stalled  bool  // the disk has not synced for a while
	pass     *pass // being built, nil until a group has something to sync
	syncing  int   // passes whose sync is under way
	now      time.Duration
	out      outbox
	applier  *applyWorker // of what is applied in the pass itself
	traces   []*Trace     // of the followed writes that the pass has proposed
	// truncations collects those of a pass; logLevel is the budget that the store's cap leaves to a log.
	truncations *engine.Batch
	logLevel    uint64
	spareLevel  uint64 // the same for what no member needs
	logTotal    uint64 // bytes of the logs of replicas
	// runOuts and wakes are the replicas that wait for their turn to be woken; fired is how many were, since the last tick.
	runOuts     []*replica    // some may wait no more
	runOutDue   time.Duration // when the next turn may come
	runOutsOpen int           // how many do
	runOutsPeak int           // how many did, since none has
	wakes       []*replica
	fired       int
	fireBatch   int    // the constant
	manyAwake   int    // the constant
	turns       uint64 // ticks that were taken
	held        int    // of fireBatch: not woken now, since the worker is late

	// noticed are the groups with commit notices, by when they are due; noticeArmed while the timer runs for the first.
	noticed     []heldNotices
	noticeTimer *time.Timer
	noticeArmed atomic.Bool

	msgs     []inMessage // scratch of step
	free     []*pass
	synced   []*pass    // scratch of collect
	created  []*replica // scratch of collect
	left     []leaving  // scratch of collect
	released []*replica // scratch of collect
}

// pass is one synced commit and the groups that wait for it.
type pass struct {
	batch   *engine.Batch
	groups  []*replica
	writes  int // client writes in it
	started time.Duration
	traces  []*Trace // of followed writes in it
	synced  func()   // what the engine calls: made once
}

func newWorker(s *Store, i int) *worker {
	return &worker{
		store: s, index: i, control: controlKey(i, s.cfg.Workers), byShard: make(map[uint64]*replica),
		out: outbox{store: s.cfg.Store}, applier: newApplyWorker(s), fireBatch: fireBatch, manyAwake: manyAwake,
		runOutDue: never,
	}
}

func (s *Store) workerOf(id base.ShardID) *worker { return s.workers[s.pool.Worker(uint64(id))] }

// process is one pass: first what syncs, ticks and creations have brought, then the groups, in shard order.
func (w *worker) process(keys []uint64) {
	s := w.store
	defer w.noteIdle()
	w.now = s.clock.Boot()
	w.passes++
	w.active = w.active[:0]
	w.collect()
	for _, k := range keys {
		if r := w.byShard[k]; r != nil {
			if !r.worker.awake && !r.dozes() {
				w.wake(r)
			}
			w.activate(r)
		}
	}
	if !w.mayStart(len(w.active)) {
		w.park()
		w.sendDueNotices()
		w.out.flush(s.cfg.Sender) // what finished syncs released
		w.applyNow()
		w.runStopped()
		return
	}
	slices.SortFunc(w.active, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
	for i, r := range w.active {
		w.visit(r)
		if !r.worker.awake {
			w.wakeUnlessDone(r)
		}
		if w.out.bytes >= s.cfg.PassBytes {
			w.out.flush(s.cfg.Sender) // followers of many groups catch up: the peers' queues bound it, by dropping (L2)
		}
		if w.pass != nil && w.pass.batch.Len() >= s.cfg.PassBytes {
			for _, rest := range w.active[i+1:] {
				s.pool.Enqueue(uint64(rest.shard))
			}
			break
		}
	}
	s.metrics.passes.Inc()
	s.metrics.passGroups.Observe(float64(len(w.active)))
	w.commitTruncations()
	w.sendDueNotices()
	// Before the commit: the appends of R1 travel while the disk works. The one flush also carries what did not need a
	// sync and what earlier syncs released, so that a peer gets one frame per pass.
	w.out.flush(s.cfg.Sender)
	clear(w.active)
	if p := w.pass; p != nil {
		w.pass = nil
		w.commit(p)
	}
	w.applyNow() // while the disk works
	w.runStopped()
}

// noteIdle tells the store's ticks whether the worker needs any.
func (w *worker) noteIdle() {
	idle := len(w.awake)+len(w.runOuts)+len(w.wakes)+len(w.parked)+w.syncing == 0
	if w.idle.Swap(idle) && !idle {
		select {
		case w.store.roused <- struct{}{}:
		default:
		}
	}
}

// collect takes over what other goroutines left for the worker.
func (w *worker) collect() {
	w.mu.Lock()
	w.synced, w.mu.synced = w.mu.synced, w.synced[:0]
	w.created, w.mu.created = w.mu.created, w.created[:0]
	w.left, w.mu.left = w.mu.left, w.left[:0]
	w.released, w.mu.released = w.mu.released, w.released[:0]
	events, ticks, peeks := w.mu.events, w.mu.ticks, w.mu.peeks
	w.mu.events, w.mu.peeks = nil, nil
	w.mu.ticks = 0
	w.mu.Unlock()

	for i := range w.left {
		w.retire(&w.left[i])
	}
	clear(w.left)
	for _, r := range w.released {
		r.worker.still = false
		w.activate(r)
	}
	clear(w.released)
	for _, r := range w.created {
		r.inherit()
		at, _ := slices.BinarySearchFunc(w.replicas, r.shard, func(r *replica, id base.ShardID) int {
			return cmp.Compare(r.shard, id)
		})
		w.replicas = slices.Insert(w.replicas, at, r)
		w.byShard[uint64(r.shard)] = r
		w.countLog(r)
		if r.worker.starting {
			w.startAsleep(r)
		} else {
			w.wake(r)
		}
	}
	clear(w.created)
	for _, p := range w.synced {
		w.finishPass(p)
	}
	if len(w.synced) > 0 {
		for _, r := range w.parked {
			r.worker.parked = false
			w.activate(r)
		}
		clear(w.parked)
		w.parked = w.parked[:0]
		clear(w.synced)
	}
	for _, f := range peeks {
		f()
	}
	w.takeEvents(events)
	if ticks > 0 {
		w.tick(ticks)
	}
}

// peek runs f on the worker, which may look at its replicas then, in whatever state they are, and wakes none of them. It is
// false, and f never runs, if the store has stopped.
func (w *worker) peek(f func()) bool {
	w.mu.Lock()
	open := !w.mu.stopped
	if open {
		w.mu.peeks = append(w.mu.peeks, f)
	}
	w.mu.Unlock()
	w.store.pool.Enqueue(w.control)
	return open
}

// runStopped tells who parked replicas that they stand still: everything that this worker has written about them is in
// the engine's log by now.
func (w *worker) runStopped() {
	for i, f := range w.stopped {
		w.stopped[i] = nil
		f()
	}
	w.stopped = w.stopped[:0]
}

func (w *worker) activate(r *replica) {
	if r.worker.visited != w.passes && (!r.worker.disposed || r.parking.Load()) {
		r.worker.visited = w.passes
		w.active = append(w.active, r)
	}
}

// mayStart decides whether a pass over n groups starts now or waits for a sync to finish: waiting makes the next batch
// larger, and what it costs a client is less than one sync.
func (w *worker) mayStart(n int) bool {
	switch {
	case w.syncing == 0:
		return true
	case w.syncing >= w.store.cfg.SyncDepth:
		return false
	}
	return n <= w.store.cfg.PipelineGroups && w.light()
}

// lightBytes is how many bytes of queued writes are a lone client's.
const lightBytes = 4 << 10

// light reports whether little is queued for the groups of the pass: one busy group gains as much from a larger batch
// as many do.
func (w *worker) light() bool {
	for _, r := range w.active {
		if r.in.writeBytes.Load() > lightBytes {
			return false
		}
	}
	return true
}

func (w *worker) park() {
	for _, r := range w.active {
		if !r.worker.parked {
			r.worker.parked = true
			w.parked = append(w.parked, r)
		}
	}
	clear(w.active)
	w.active = w.active[:0]
}

func (w *worker) newPass() *pass {
	var p *pass
	if n := len(w.free); n > 0 {
		p, w.free = w.free[n-1], w.free[:n-1]
	} else {
		p = &pass{}
		p.synced = func() { w.durable(p) }
	}
	p.batch, p.writes = w.store.engine.NewBatch(), 0
	return p
}

// commit writes the pass's batch. Everything in it needs the sync: a Ready that needs none never joins a pass.
func (w *worker) commit(p *pass) {
	s := w.store
	p.started = w.now
	s.metrics.commits.Inc()
	s.metrics.commitGroups.Observe(float64(len(p.groups)))
	s.metrics.commitWrites.Observe(float64(p.writes))
	s.metrics.commitBytes.Add(float64(p.batch.Len()))
	if len(w.traces) > 0 {
		now := s.clock.Boot()
		for _, t := range w.traces {
			t.handed.set(now)
		}
		p.traces, w.traces = w.traces, p.traces[:0]
	}
	w.syncing++
	s.engine.CommitAsync(p.batch, p.synced)
}

// durable takes a pass whose batch is on disk back, on the goroutine of the engine that saw it.
func (w *worker) durable(p *pass) {
	w.mu.Lock()
	w.mu.synced = append(w.mu.synced, p)
	w.mu.Unlock()
	w.store.pool.Enqueue(w.control)
}

// finishPass goes on with the groups of a pass that is durable.
func (w *worker) finishPass(p *pass) {
	w.syncing--
	w.store.metrics.syncSeconds.Observe((w.now - p.started).Seconds())
	for i, t := range p.traces {
		t.synced.set(w.now)
		p.traces[i] = nil
	}
	p.traces = p.traces[:0]
	for _, r := range p.groups {
		r.worker.synced = true
		w.finishSynced(r)
		w.activate(r)
	}
	p.batch.Close()
	p.batch = nil
	clear(p.groups)
	p.groups = p.groups[:0]
	w.free = append(w.free, p)
}

// outbox collects messages per destination, so that one pass makes one Send per peer.
type outbox struct {
	store base.StoreID
	to    []destination
	bytes int // of entries in it
}

type destination struct {
	store base.StoreID
	msgs  []wire.RaftMessage
}

func (o *outbox) add(to base.StoreID, m wire.RaftMessage) {
	for i := range m.Msg.Entries {
		o.bytes += len(m.Msg.Entries[i].Data)
	}
	for i := range o.to {
		if o.to[i].store == to {
			o.to[i].msgs = append(o.to[i].msgs, m)
			return
		}
	}
	o.to = append(o.to, destination{store: to, msgs: []wire.RaftMessage{m}})
}

func (o *outbox) flush(s Sender) {
	o.bytes = 0
	for i := range o.to {
		d := &o.to[i]
		if len(d.msgs) == 0 {
			continue
		}
		s.Send(d.store, d.msgs)
		clear(d.msgs)
		d.msgs = d.msgs[:0]
	}
}
