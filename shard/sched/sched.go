// Package sched runs keyed work on a fixed pool of workers. A key belongs to worker key % W for ever, so at most one
// worker holds a key and state owned by the holder of a key needs no lock. Enqueueing a key that already waits does
// nothing. There is no goroutine per key, and the package knows nothing about raft.
//
// The contract towards process: it is called with one or more distinct keys of one worker, never concurrently for the
// same worker; a key enqueued while process runs (from inside or outside) comes back in a later call; the slice is the
// pool's and valid only during the call.
package sched

import (
	"context"
	"runtime"
	"sync"
)

// Pool is a set of workers, each with a queue of keys. It is made stopped: call Run, or Poll from a test that owns the
// schedule.
type Pool struct {
	process func(worker int, keys []uint64)
	workers []worker
}

// maxKeys is the most keys handed to one call of process. It bounds what one pass holds in memory, not fairness: a
// worker has a single queue, first in first out.
const maxKeys = 256

type worker struct {
	wake chan struct{} // capacity 1: a token means that the queue may hold something

	mu struct {
		sync.Mutex
		queue  []uint64
		queued map[uint64]struct{} // the keys in queue
	}

	keys []uint64 // what process sees; owned by the goroutine in Poll
	_    [64]byte // workers do not share cache lines
}

// New returns a pool of so many workers (at least 1) that calls process for the keys enqueued.
func New(workers int, process func(worker int, keys []uint64)) *Pool {
	p := &Pool{process: process, workers: make([]worker, max(workers, 1))}
	for i := range p.workers {
		w := &p.workers[i]
		w.wake = make(chan struct{}, 1)
		w.mu.queued = make(map[uint64]struct{})
	}
	return p
}

// Workers returns the number of workers.
func (p *Pool) Workers() int { return len(p.workers) }

// Worker returns the worker that a key belongs to.
func (p *Pool) Worker(key uint64) int { return int(key % uint64(len(p.workers))) }

// Queued returns the number of keys that wait for a worker.
func (p *Pool) Queued(worker int) int {
	w := &p.workers[worker]
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.mu.queue)
}

// Enqueue makes the key's worker process it, unless it waits already. It never blocks.
func (p *Pool) Enqueue(key uint64) {
	w := &p.workers[p.Worker(key)]
	w.mu.Lock()
	w.addLocked(key)
	w.mu.Unlock()
	w.signal()
}

// EnqueueMany is Enqueue for many keys with one lock and one wake-up per worker.
func (p *Pool) EnqueueMany(keys []uint64) {
	if len(keys) == 1 {
		p.Enqueue(keys[0])
		return
	}
	for i := range p.workers {
		w, added := &p.workers[i], false
		for _, k := range keys {
			if p.Worker(k) != i {
				continue
			}
			if !added {
				w.mu.Lock()
				added = true
			}
			w.addLocked(k)
		}
		if added {
			w.mu.Unlock()
			w.signal()
		}
	}
}

func (w *worker) addLocked(key uint64) {
	if _, ok := w.mu.queued[key]; ok {
		return
	}
	w.mu.queued[key] = struct{}{}
	w.mu.queue = append(w.mu.queue, key)
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take moves up to maxKeys keys from the front of the queue into w.keys.
func (w *worker) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.mu.queue), maxKeys)
	w.keys = append(w.keys[:0], w.mu.queue[:n]...)
	if n == len(w.mu.queue) {
		clear(w.mu.queued)
		w.mu.queue = w.mu.queue[:0]
		return n > 0
	}
	for _, k := range w.keys {
		delete(w.mu.queued, k)
	}
	rest := copy(w.mu.queue, w.mu.queue[n:])
	w.mu.queue = w.mu.queue[:rest]
	return true
}

// Poll processes one batch of the worker's keys and reports whether there was one. It must not be called while Run
// runs.
func (p *Pool) Poll(worker int) (worked bool) {
	w := &p.workers[worker]
	if !w.take() {
		return false
	}
	p.process(worker, w.keys)
	return true
}

// Run starts one goroutine per worker and joins them when ctx ends. Keys still queued then stay queued. It returns nil.
func (p *Pool) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range p.workers {
		wg.Go(func() { p.run(ctx, i) })
	}
	wg.Wait()
	return nil
}

func (p *Pool) run(ctx context.Context, i int) {
	w := &p.workers[i]
	for ctx.Err() == nil {
		if p.Poll(i) {
			continue
		}
		select {
		case <-ctx.Done():
		case <-w.wake:
			// Once: lets whoever is runnable add its keys, so that a wake-up from idle finds a batch and not one key.
			runtime.Gosched()
		}
	}
}
