package apply

import (
	"bytes"
	"slices"
	"sync"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/wire"
)

// emit turns the list of writes into engine writes. See the package comment for the order.
func (r *run) emit(b *engine.Batch) {
	from := 0
	for i := range r.writes {
		if w := &r.writes[i]; w.kind == writeRange {
			r.emitPoints(b, from, i)
			b.DeleteRange(w.key, w.value)
			from = i + 1
		}
	}
	r.emitPoints(b, from, len(r.writes))
}

// emitPoints emits the puts and deletes writes[from:to], sorted by key, the last one of each key only. Sorting costs
// some 40 ns a write; an insert into a large memtable, which it saves for every key written twice, 1-2 us (measured
// with BenchmarkApply and BenchmarkApplyCommit; with uniform keys it is neither gain nor loss).
func (r *run) emitPoints(b *engine.Batch, from, to int) {
	r.order = r.order[:0]
	for i := from; i < to; i++ {
		r.order = append(r.order, int32(i))
	}
	slices.SortFunc(r.order, func(i, j int32) int {
		if c := bytes.Compare(r.writes[i].key, r.writes[j].key); c != 0 {
			return c
		}
		return int(i - j)
	})
	for n, i := range r.order {
		w := &r.writes[i]
		if n+1 < len(r.order) && bytes.Equal(w.key, r.writes[r.order[n+1]].key) {
			continue
		}
		if w.kind == writePut {
			b.Put(w.key, engine.ValueHeader{Version: w.stamp}, w.value)
		} else {
			b.Delete(w.key)
		}
	}
}

// What a run keeps of its memory for the next one, in writes. The overlay of a Batch is reset once per Batch, so it
// keeps less.
const (
	maxKeptWrites = 16 << 10
	maxKeptSteps  = 256
)

// runs holds scratch memory between calls. It is not in the Machine because a store has thousands of those.
var runs = sync.Pool{New: func() any { return new(run) }}

func getRun(m *Machine, sink Sink) *run {
	r := runs.Get().(*run)
	r.m, r.sink = m, sink
	return r
}

// putRun drops every reference into entries and the machine.
func putRun(r *run) {
	r.m, r.sink, r.decoded = nil, nil, wire.Op{}
	r.seen.reset(maxKeptWrites)
	r.own.reset(maxKeptSteps)
	clear(r.writes)
	r.writes = r.writes[:0]
	if cap(r.writes) > maxKeptWrites {
		r.writes, r.order = nil, nil
	}
	if cap(r.readBuf) > 64<<10 {
		r.readBuf = nil
	}
	runs.Put(r)
}
