package engine

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shardd/shardd/internal/clock"
)

// Commits. Every synced commit goes the same way: the batch enters Pebble's log and memtable without waiting, is
// visible then, and stands in the sync waiter's queue until its log record is durable. One goroutine waits for them in
// order and runs their callbacks, so there is one place that sees a failed sync, one place that knows the oldest
// unfinished one, and a group commit hands back all its batches in one go.

// Commit writes the batch and returns when it is visible to reads and, with sync, durable. The batch stays the
// caller's. An error means that the batch was invalid (nothing written; see Batch) or, wrapping ErrStopped, that the
// store has failed: then nothing can be said about the batch, and Options.Fatal has been called.
func (e *Engine) Commit(b *Batch, sync bool) error {
	if !sync {
		if err := e.check(b); err != nil || b.Empty() {
			return err
		}
		e.rows.begin(&b.changed)
		if err := e.db.Apply(b.pb(), pebble.NoSync); err != nil {
			e.fail(fmt.Errorf("commit batch: %w", err))
			return e.stopErr()
		}
		e.rows.end(&b.changed)
		e.metrics.unsyncedBatches.Inc()
		e.metrics.unsyncedBatchBytes.Add(float64(b.Len()))
		return nil
	}
	done := make(chan struct{})
	if err := e.commitAsync(b, func() { close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.fatal.ch:
		return e.stopErr()
	}
}

// CommitAsync writes the batch, which is visible when it returns, and calls done on the sync waiter's goroutine once it
// is durable. Callbacks run in the order in which one caller committed; done must not block. The batch is the engine's
// until done is called, which may Reset or Close it. If the store fails, Options.Fatal is called and done never is.
func (e *Engine) CommitAsync(b *Batch, done func()) {
	if err := e.commitAsync(b, done); err != nil {
		// An invalid batch is a bug above; it must not pass for durable, and there is nobody to return it to.
		e.fail(fmt.Errorf("commit batch: %w", err))
	}
}

func (e *Engine) commitAsync(b *Batch, done func()) error {
	if err := e.check(b); err != nil {
		return err
	}
	start := e.now()
	e.metrics.syncedBatches.Inc()
	e.metrics.syncedBatchBytes.Add(float64(b.Len()))
	if !b.Empty() {
		e.rows.begin(&b.changed)
		if err := e.db.ApplyNoSyncWait(b.pb(), pebble.Sync); err != nil {
			e.fail(fmt.Errorf("commit batch: %w", err))
			return e.stopErr()
		}
		e.rows.end(&b.changed)
	}
	e.syncs.push(syncItem{b: b.b, done: done, start: start})
	return nil
}

func (e *Engine) check(b *Batch) error {
	if e.fatal.stopped.Load() {
		return e.stopErr()
	}
	return b.err
}

// SyncAge returns for how long the oldest unfinished sync, or probe of the log, has been under way; 0 if none is.
func (e *Engine) SyncAge() time.Duration {
	now := e.now()
	age := func(start int64) time.Duration {
		if start == 0 {
			return 0
		}
		return max(now-time.Duration(start), 1)
	}
	return max(age(e.syncs.oldest.Load()), age(e.probe.started.Load()))
}

// syncItem is a batch in Pebble's log whose sync has not been seen yet; b is nil for an empty batch, which only keeps
// its place in the order.
type syncItem struct {
	b     *pebble.Batch
	done  func()
	start time.Duration
}

// syncWaiter waits for syncs, in order.
type syncWaiter struct {
	e        *Engine
	oldest   atomic.Int64 // start of the oldest unfinished sync, 0 none
	finished atomic.Int64 // when a sync last ended well
	joined   chan struct{}

	mu struct {
		sync.Mutex
		wake   *sync.Cond
		queue  []syncItem
		busy   bool // the goroutine is on a part of the queue that it took
		closed bool
	}
}

func (w *syncWaiter) start(e *Engine) {
	w.e = e
	w.joined = make(chan struct{})
	w.mu.wake = sync.NewCond(&w.mu)
	w.finished.Store(int64(e.now()))
	go w.run()
}

func (w *syncWaiter) push(it syncItem) {
	w.mu.Lock()
	w.mu.queue = append(w.mu.queue, it)
	first := len(w.mu.queue) == 1
	if first && !w.mu.busy {
		w.oldest.Store(int64(it.start))
	}
	w.mu.Unlock()
	if first {
		w.mu.wake.Signal()
	}
}

// close waits until everything queued is durable, or given up after a failure, and joins the goroutine.
func (w *syncWaiter) close() {
	w.mu.Lock()
	w.mu.closed = true
	w.mu.Unlock()
	w.mu.wake.Signal()
	if w.e.fatal.pebbleDead.Load() {
		return // it may wait for a sync that never ends
	}
	<-w.joined
}

func (w *syncWaiter) run() {
	defer close(w.joined)
	var taken []syncItem
	for {
		w.mu.Lock()
		w.mu.busy = false
		if len(w.mu.queue) == 0 {
			w.oldest.Store(0)
		}
		for len(w.mu.queue) == 0 && !w.mu.closed {
			w.mu.wake.Wait()
		}
		taken, w.mu.queue = w.mu.queue, taken[:0]
		w.mu.busy = true
		w.mu.Unlock()
		if len(taken) == 0 {
			return
		}
		for i := range taken {
			w.finish(&taken[i])
		}
		clear(taken) // lets go of batches and callbacks
	}
}

// finish waits for one sync and hands the batch back. After a failure nothing is handed back any more, not even what
// Pebble calls synced: the process is about to end, and its successor decides from what is on disk.
func (w *syncWaiter) finish(it *syncItem) {
	w.oldest.Store(int64(it.start))
	if it.b != nil {
		if err := it.b.SyncWait(); err != nil {
			w.e.fail(fmt.Errorf("sync of the write-ahead log: %w", err))
		}
	}
	if w.e.fatal.stopped.Load() {
		return
	}
	now := w.e.now()
	w.finished.Store(int64(now))
	w.e.metrics.commitSeconds.Observe((now - it.start).Seconds())
	it.done()
}

// probe tests an idle log: being alive means having synced recently (rule L2). It also catches a commit pipeline that
// is stuck before the log, where no sync is queued at all.
type probe struct {
	e       *Engine
	started atomic.Int64 // start of the probe under way, 0 none
	stop    chan struct{}
	joined  chan struct{}
}

func (p *probe) start(e *Engine) {
	p.e, p.stop, p.joined = e, make(chan struct{}), make(chan struct{})
	if e.opts.ProbeInterval < 0 {
		close(p.joined)
		return
	}
	go p.run()
}

func (p *probe) close() {
	close(p.stop)
	if p.e.fatal.pebbleDead.Load() {
		return // it may be inside Pebble
	}
	<-p.joined
}

func (p *probe) run() {
	defer close(p.joined)
	tick := time.NewTimer(clock.UntilAligned(p.e.opts.ProbeInterval))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.e.pollSpace() // first: on a full disk the probe may wait
			p.poll()
			tick.Reset(clock.UntilAligned(p.e.opts.ProbeInterval))
		case <-p.stop:
			return
		case <-p.e.fatal.ch:
			return
		}
	}
}

// poll writes a record that exists in the log only, if no sync has ended for an interval, and waits until it is
// durable.
func (p *probe) poll() (worked bool) {
	now := p.e.now()
	if now-time.Duration(p.e.syncs.finished.Load()) < p.e.opts.ProbeInterval {
		return false
	}
	p.started.Store(int64(now))
	defer p.started.Store(0)
	b := p.e.NewBatch()
	if err := b.pb().LogData(nil, nil); err != nil {
		b.Close()
		return false
	}
	if p.e.Commit(b, true) == nil {
		b.Close()
		p.e.metrics.probes.Inc()
	}
	return true
}
