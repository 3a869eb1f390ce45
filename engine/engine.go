package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// Engine is the open storage of one store. All methods are safe for concurrent use unless they say otherwise.
type Engine struct {
	opts    Options
	db      *pebble.DB
	lock    *pebble.Lock
	fsClose func() error
	events  *eventLog
	metrics engineMetrics
	reg     []prometheus.Collector // registered, to be taken out by Close
	start   time.Time
	batches sync.Pool // of *Batch, empty
	iters   sync.Pool // of *Iter, closed

	cache      entryCache
	rows       rowCache
	syncs      syncWaiter
	probe      probe
	ident      identState
	views      viewSet
	staging    stagingSet
	chunks     chunkBuffers
	flushes    flushWatch
	epochs     flushEpochs
	stallStart atomic.Int64 // e.now() at the start of the current write stall
	space      spaceState
	damage     damageState

	fatal struct {
		stopped    atomic.Bool   // checked by every write
		pebbleDead atomic.Bool   // Pebble gave up itself: its locks may be held for ever
		dead       chan struct{} // closed then
		opening    atomic.Bool   // Open still runs: it returns the error instead of calling Options.Fatal
		ch         chan struct{} // closed by the first failure
		mu         sync.Mutex
		err        error
	}

	life struct {
		sync.RWMutex // held shared by whatever reads Pebble's metrics, which may race with Close
		closed       bool
	}
}

// now is a clock for durations only.
func (e *Engine) now() time.Duration { return time.Since(e.start) }

// fail records the first failure and calls Options.Fatal with it; later ones are dropped.
func (e *Engine) fail(err error) {
	e.fatal.mu.Lock()
	if e.fatal.err != nil {
		e.fatal.mu.Unlock()
		return
	}
	e.fatal.err = err
	e.fatal.stopped.Store(true) // before anybody is told
	close(e.fatal.ch)
	e.fatal.mu.Unlock()
	if e.fatal.opening.Load() {
		return
	}
	if e.opts.Fatal != nil {
		e.events.log(slog.LevelError, "store stopped", slog.String("error", oneLine(err.Error())))
		e.opts.Fatal(err)
		return
	}
	// Both: the logger's sink may be what is broken.
	e.opts.Logger.Error("store stopped: nothing is acknowledged any more", "error", err)
	fmt.Fprintf(os.Stderr, "shardd: store stopped: %v\n", err)
	os.Exit(1)
}

// stopErr returns the error for writes after a failure.
func (e *Engine) stopErr() error {
	e.fatal.mu.Lock()
	defer e.fatal.mu.Unlock()
	return fmt.Errorf("%w: %w", ErrStopped, e.fatal.err)
}

// Close stops the engine: it waits for batches in flight, joins its goroutines and closes Pebble. All iterators must be
// closed and no other call be in progress or follow, but for SyncAge, DiskStats and metrics. After a failure of Pebble
// itself it leaves Pebble as it is, since Pebble's locks may be held for ever, and returns the failure.
func (e *Engine) Close() error {
	e.life.Lock()
	if e.life.closed {
		e.life.Unlock()
		return nil
	}
	e.life.closed = true
	e.life.Unlock()

	e.damage.close()
	e.probe.close()
	e.syncs.close()
	if !e.fatal.pebbleDead.Load() { // else a callback may be inside Pebble
		<-e.damage.joined
	}
	e.unregister()
	var err error
	if e.fatal.pebbleDead.Load() {
		err = e.stopErr()
	} else if err = e.db.Close(); e.fatal.stopped.Load() {
		err = e.stopErr() // a complaint of Pebble's is a consequence
	}
	err = errors.Join(err, e.lock.Close(), e.fsClose())
	e.events.close()
	if err != nil {
		return fmt.Errorf("close engine %s: %w", e.opts.Dir, err)
	}
	return nil
}

// pebbleMetrics returns nil once the engine is closed or dead.
func (e *Engine) pebbleMetrics() *pebble.Metrics {
	e.life.RLock()
	defer e.life.RUnlock()
	if e.life.closed || e.fatal.pebbleDead.Load() {
		return nil
	}
	return e.db.Metrics()
}

// DiskStats returns the bytes that are free on the store's file system and those that the store uses; zeros if unknown.
func (e *Engine) DiskStats() (freeBytes, usedBytes uint64) {
	if free, _, known := e.opts.FS.usage(e.opts.Dir); known {
		freeBytes = free
	}
	if m := e.pebbleMetrics(); m != nil {
		usedBytes = diskUsed(m)
	}
	return freeBytes, usedBytes
}

// diskUsed returns the bytes of all files of a store. Pebble's own sum counts the files of separated values from its
// start on (2.1): it leaves out those that it opened with, and goes below zero as they go. Files of values that only an
// iterator still needs are in neither.
func diskUsed(m *pebble.Metrics) uint64 {
	return m.DiskSpaceUsage() - m.BlobFiles.Local.LiveSize + m.BlobFiles.LiveSize
}
