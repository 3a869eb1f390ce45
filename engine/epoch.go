package engine

import "sync/atomic"

// FlushEpoch tells what has reached the tables from what is in memory only. Bytes written while Now was n are in tables
// once Flushed is above n. It is exact but for commits that a change of memtables overtakes.
type FlushEpoch struct{ Now, Flushed uint64 }

// flushEpochs follows Pebble's events: a memtable begins with its own log, and a flush takes all that were complete when
// it began.
type flushEpochs struct {
	now, begun, flushed atomic.Uint64
}

func (f *flushEpochs) logCreated() { f.now.Add(1) }
func (f *flushEpochs) flushBegan() { f.begun.Store(f.now.Load()) }
func (f *flushEpochs) flushEnded() { f.flushed.Store(f.begun.Load()) }

// FlushEpoch returns the present one.
func (e *Engine) FlushEpoch() FlushEpoch {
	flushed := e.epochs.flushed.Load() // first, so that it is never above now
	return FlushEpoch{Now: e.epochs.now.Load(), Flushed: flushed}
}
