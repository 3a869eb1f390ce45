package engine

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
)

// ErrViewLost is returned by OpenView when the shard's range is being replaced or keeps moving. Nothing is damaged:
// open the view again, after a moment.
var ErrViewLost = errors.New("the shard's range is being replaced or moved: open the view again")

// ErrNoReplica is returned where an initialised replica of the shard is needed and the store has none.
var ErrNoReplica = errors.New("the store has no initialised replica of the shard")

// ErrViewClosed is returned by reads of a view that has been closed, perhaps by a time-out.
var ErrViewClosed = errors.New("the view is closed")

// View is one shard's state at one applied index, for snapshots and checksums: later writes, deletions of ranges and
// excises do not show in it (rules W1, W2). It holds disk space that compactions would free, and until the next flush
// of the memtable makes them keep what it sees, so it should live minutes, not days. Safe for concurrent use; close
// it before the engine.
//
// Underneath is an EventuallyFileOnlySnapshot of Pebble over the shard's sessions, records and data. An excise would
// take keys away from one that still needs the memtable. Pebble means to wait for the flush then, but it looks for such
// views before it lets other writers go on, and panics when it meets one that came after. So excises are announced in
// viewSet: no view is opened over their range meanwhile, and a flush makes the open ones independent of the memtable.
type View struct {
	e       *Engine
	shard   base.ShardID
	data    pebble.KeyRange
	es      *pebble.EventuallyFileOnlySnapshot
	desc    *base.Descriptor
	applied AppliedState
	approx  uint64

	mu struct {
		sync.RWMutex // held shared while an iterator is being opened
		closed       bool
	}
}

// viewSet knows the open views and the excises under way.
type viewSet struct {
	mu struct {
		sync.Mutex
		open    map[*View]struct{}
		excises map[*pebble.KeyRange]struct{}
	}
}

// viewTries is how often OpenView starts again when the range moved under it: splits of one shard come seconds apart.
const viewTries = 10

// OpenView opens a view of the shard as it is now. It costs no I/O but a few reads. It fails with ErrNoReplica, with
// ErrViewLost, or with ErrCorrupt for a damaged record.
func (e *Engine) OpenView(shard base.ShardID) (*View, error) {
	for range viewTries {
		b, ok, err := e.get(shardKey(spanDesc, shard))
		if err == nil && !ok {
			err = ErrNoReplica
		}
		if err != nil {
			return nil, fmt.Errorf("view of %s: %w", shard, err)
		}
		d, err := decodeStoredDesc(shard, b)
		if err != nil {
			return nil, fmt.Errorf("view of %s: %w", shard, err)
		}
		v, err := e.openView(d)
		if err != nil {
			return nil, fmt.Errorf("view of %s: %w", shard, err)
		}
		if bytes.Equal(v.desc.Start, d.Start) && bytes.Equal(v.desc.End, d.End) {
			v.approx = e.ApproxBytes(d.Start, d.End)
			return v, nil
		}
		if err := v.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("view of %s: %w", shard, ErrViewLost)
}

// openView opens a view over the range of d and reads descriptor and applied state in it.
func (e *Engine) openView(d *base.Descriptor) (*View, error) {
	spans := make([]pebble.KeyRange, 0, 4)
	for _, span := range [...]byte{spanApplied, spanSession, spanDesc} { // ascending
		lo, hi := shardSpan(span, d.Shard)
		spans = append(spans, pebble.KeyRange{Start: lo, End: hi})
	}
	v := &View{e: e, shard: d.Shard, data: pebble.KeyRange{Start: d.Start, End: d.End}}
	spans = append(spans, v.data)

	s := &e.views
	s.mu.Lock()
	for x := range s.mu.excises {
		if rangesOverlap(*x, v.data) {
			s.mu.Unlock()
			return nil, ErrViewLost
		}
	}
	v.es = e.db.NewEventuallyFileOnlySnapshot(spans)
	if s.mu.open == nil {
		s.mu.open = make(map[*View]struct{})
	}
	s.mu.open[v] = struct{}{}
	s.mu.Unlock()

	if err := v.load(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *View) load() error {
	read := func(span byte) ([]byte, error) {
		b, closer, err := v.es.Get(shardKey(span, v.shard))
		if errors.Is(err, pebble.ErrNotFound) {
			return nil, ErrNoReplica
		}
		if err != nil {
			return nil, readError(err)
		}
		b = bytes.Clone(b)
		return b, closeGet(closer)
	}
	desc, err := read(spanDesc)
	if err == nil {
		v.desc, err = decodeStoredDesc(v.shard, desc)
	}
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	applied, err := read(spanApplied)
	if err == nil {
		v.applied, err = decodeApplied(applied)
	}
	if err != nil {
		return fmt.Errorf("applied state: %w", err)
	}
	return nil
}

// Desc returns the shard's descriptor in the view. Do not change it.
func (v *View) Desc() *base.Descriptor { return v.desc }

// Applied returns the applied state in the view: index, term and configuration of a snapshot made from it. Do not
// change its lists.
func (v *View) Applied() AppliedState { return v.applied }

// ApproxBytes returns what the shard's data took on disk when the view was opened; what has not been flushed is not
// counted.
func (v *View) ApproxBytes() uint64 { return v.approx }

// NewIter opens an iterator over the routing keys of [lo, hi), which must lie in the shard's range, placed at its first
// key. The iterator outlives the view.
func (v *View) NewIter(lo, hi []byte) (*Iter, error) {
	if bytes.Compare(lo, v.desc.Start) < 0 || bytes.Compare(hi, v.desc.End) > 0 {
		return nil, fmt.Errorf("iterator over [%x, %x) in a view of %s: %w", lo, hi, v.desc, ErrInvalidKey)
	}
	it, err := v.iter(lo, hi)
	if err != nil {
		return nil, fmt.Errorf("iterator over [%x, %x) in a view of %s: %w", lo, hi, v.desc.Shard, err)
	}
	i := v.e.iters.Get().(*Iter)
	i.it, i.reverse, i.err = it, false, nil
	i.set(it.First())
	return i, nil
}

// iter opens an iterator of Pebble's; it must be closed.
func (v *View) iter(lo, hi []byte) (*pebble.Iterator, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.mu.closed {
		return nil, ErrViewClosed
	}
	it, err := v.es.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	return it, readError(err)
}

// Close lets go of the view; a second call does nothing. Iterators and chunks under way are not disturbed.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.closed {
		return nil
	}
	v.mu.closed = true
	err := v.es.Close()
	v.e.views.mu.Lock()
	delete(v.e.views.mu.open, v) // not earlier: until it is closed an excise has to know it
	v.e.views.mu.Unlock()
	if err != nil {
		return fmt.Errorf("close view of %s: %w", v.shard, err)
	}
	return nil
}

// awaitClose returns at once unless Close, which holds the lock, is under way.
func (v *View) awaitClose() {
	v.mu.RLock()
	defer v.mu.RUnlock()
}

// announce holds off new views over a range that is about to be excised. The first of the returned functions is to be
// called after a flush: that made the open views independent of the memtable, since no key that they see is younger
// than it, and what is left is to wait for those that are being closed, which a flush passes by. (Pebble's own
// WaitForFileOnlySnapshot returns too early if only commits in flight overlapped a view when it was opened.) The second
// function ends the announcement.
func (s *viewSet) announce(span pebble.KeyRange) (flushed, done func()) {
	var touched []*View
	s.mu.Lock()
	if s.mu.excises == nil {
		s.mu.excises = make(map[*pebble.KeyRange]struct{})
	}
	s.mu.excises[&span] = struct{}{}
	for v := range s.mu.open {
		if rangesOverlap(span, v.data) {
			touched = append(touched, v)
		}
	}
	s.mu.Unlock()
	flushed = func() {
		for _, v := range touched {
			v.awaitClose()
		}
	}
	done = func() {
		s.mu.Lock()
		delete(s.mu.excises, &span)
		s.mu.Unlock()
	}
	return flushed, done
}

func rangesOverlap(a, b pebble.KeyRange) bool {
	return bytes.Compare(a.Start, b.End) < 0 && bytes.Compare(b.Start, a.End) < 0
}

// ApproxBytes returns what the data in [lo, hi) takes on disk, separated values included and before compression, from
// what Pebble knows about its files: cheap, and rough to a block at each end. What has not been flushed is not counted.
func (e *Engine) ApproxBytes(lo, hi []byte) uint64 {
	n, err := e.db.EstimateDiskUsage(lo, hi)
	if err != nil {
		return 0 // inverted bounds
	}
	return n
}
