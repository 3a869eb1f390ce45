package shard

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

// What busy shards are asked for. Offer: one request in sampleEvery brings the span of keys that it touched and its
// weight. Keep: a weighted reservoir holds a fair sample of bounded size (reservoir), a sketch the busiest keys
// (hotkeys.go). Turn: every windowLength both start anew, so that what is decided rests on one window of the recent
// past. Decide (loadsplit.go): who asks gets the verdict on the last whole window, computed once.

const (
	windowLength = 10 * time.Second
	// windowSpans and windowBytes bound the reservoir of a window: spans, and bytes of their keys.
	windowSpans = 128
	windowBytes = 32 << 10
	// requestWeight is added to a request's bytes, so that small requests count by their number and large ones by their
	// size.
	requestWeight = 1 << 10
)

// sampler looks at one busy shard's requests. A sample that would have to wait for another is left out.
type sampler struct {
	writes atomic.Uint64 // offered to pickWrite

	mu struct {
		sync.Mutex
		rng       *rand.Rand
		cur, last *window
		verdict   *LoadSplit // on last; nil until somebody asks
	}
}

func newSampler(seed uint64, now time.Duration) *sampler {
	s := &sampler{}
	s.mu.rng = rand.New(rand.NewPCG(seed, uint64(now)))
	s.mu.cur = &window{began: now}
	return s
}

// turnLocked starts a new window once the current one is over; one that nobody wrote to meanwhile is empty.
func (s *sampler) turnLocked(now time.Duration) {
	cur := s.mu.cur
	d := now - cur.began
	if d < windowLength {
		return
	}
	old := s.mu.last
	if old == nil {
		old = &window{}
	}
	s.mu.verdict = nil
	s.mu.last = cur
	if d >= 2*windowLength { // nobody came for a whole window: the one before is past, too
		cur.reset(now - windowLength)
	}
	old.reset(now)
	s.mu.cur = old
}

// read takes a sampled read: op and its whole answer.
func (s *sampler) read(op *wire.Op, answer []byte, now time.Duration) {
	var a wire.Answer
	if _, err := wire.DecodeAnswer(answer, &a); err != nil || a.Code != wire.OK && a.Code != wire.NotFound {
		return
	}
	lo, hi := op.Key, []byte(nil)
	if op.Code == wire.OpScan {
		if lo, hi = scanned(op, &a); hi == nil {
			return
		}
	}
	s.offer(lo, hi, float64(len(answer)+requestWeight), now)
}

// scanned returns the span that a page was taken from: a scan that stops early did not touch its whole range.
func scanned(op *wire.Op, a *wire.Answer) (lo, hi []byte) {
	if a.Flags&wire.FlagMore == 0 {
		return op.Key, op.Value
	}
	var row wire.Row
	for b := a.Payload; len(b) > 0; {
		rest, err := wire.DecodeRow(b, &row)
		if err != nil {
			return nil, nil
		}
		b = rest
	}
	if row.Key == nil {
		return nil, nil
	}
	if op.Flags&wire.FlagReverse != 0 {
		return row.Key, op.Value
	}
	return op.Key, append(bytes.Clone(row.Key), 0)
}

// write takes a write that the leader has queued, if it is one to be sampled.
func (s *sampler) write(op *wire.Op, size int, now time.Duration) {
	if !picked(s.writes.Add(1)) {
		return
	}
	lo, hi := written(op)
	s.offer(lo, hi, float64(size+requestWeight), now)
}

// written returns the key of a valid write, or the span of one that touches several.
func written(op *wire.Op) (lo, hi []byte) {
	switch op.Code {
	case wire.OpDeleteRange:
		return op.Key, op.Value
	case wire.OpBatch:
		lo, hi = op.Key, op.Key
		var step wire.Sub
		var open []byte // exclusive end of the highest range
		for b := op.Value; len(b) > 0; {
			rest, err := wire.DecodeSub(b, &step)
			if err != nil {
				return op.Key, nil
			}
			if bytes.Compare(step.Key, lo) < 0 {
				lo = step.Key
			}
			if bytes.Compare(step.Key, hi) > 0 {
				hi = step.Key
			}
			if step.Code == wire.OpDeleteRange && bytes.Compare(step.Value, open) > 0 {
				open = step.Value
			}
			b = rest
		}
		switch {
		case bytes.Compare(open, hi) > 0:
			return lo, open
		case bytes.Equal(lo, hi):
			return lo, nil
		}
		return lo, append(bytes.Clone(hi), 0)
	}
	return op.Key, nil
}

// offer counts a sampled request on [lo, hi), or on the key lo with a nil hi.
func (s *sampler) offer(lo, hi []byte, weight float64, now time.Duration) {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	s.turnLocked(now)
	w := s.mu.cur
	w.requests++
	if hi == nil {
		w.keys.add(lo)
	}
	w.add(lo, hi, weight, s.mu.rng)
}

// window is what one stretch of time has brought.
type window struct {
	began    time.Duration
	requests uint64 // sampled
	keys     sketch

	reservoir
}

func (w *window) reset(now time.Duration) {
	w.began, w.requests = now, 0
	w.keys.reset()
	w.reservoir.reset()
}
