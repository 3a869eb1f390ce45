package shard

import (
	"bytes"
	"slices"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Where to split a busy shard. Each sampled span's start is a candidate. A span that ends at or before the key will be
// the left side's work, one that starts at or behind it the right side's, and one that reaches across it will be work
// for both. The best key is the one whose busier side has the least to do; it is good enough if that is at most
// maxSide of all. (The idea is that of CockroachDB's load-based splitter, which counts the same three kinds for a few
// candidates as requests come in; here the reservoir is looked at once, with every candidate.) If one key alone makes
// up hotShare of the load, no key helps: it is named instead.
//
// Not every imbalance is a case for a split: with long scans everything reaches across every key, and with one hot key
// the halves would be split again and again, each time with all of the load on one side.

const (
	// maxSide is the most of the load that the busier half may have. A half of three quarters is still relief; the
	// next split divides it again.
	maxSide = 0.75
	// hotShare is from which share of the load on a single key counts as hot.
	hotShare = 0.5
	// minSpans is the fewest samples that say anything. With twenty, a half that seems to have half of the load has
	// between 28 and 72 % of it, in 19 of 20 cases.
	minSpans = 20
)

// SplitLimits say when a shard is due for a split. Zero means the default of each; negative never.
type SplitLimits struct {
	// Bytes is the size on disk at which a shard splits, 256 MiB. At twice that its leader refuses writes that add
	// bytes. Smaller shards move and recover faster and cost more groups.
	Bytes int64
	// Requests is the number of reads and writes per second at which a shard splits by load, 2500: at the 45 to 90 us of
	// the servers' CPU that an operation of a mixed workload was measured to take, between a tenth and a quarter of a
	// core, so that a handful of such shards fills a small machine and there is something to spread.
	Requests float64
	// RequestBytes is the number of bytes read and written per second at which a shard splits by load, 32 MiB: what
	// a node moves for snapshots by default, so that a shard can be moved faster than it is written.
	RequestBytes float64
	// CPUMicros is the estimate of CPU at which a shard splits by load, 500,000 us per second: half of a core. Scans, and
	// writes with large values, come to it before they come to the others.
	CPUMicros float64
}

// WithDefaults returns the limits with the default where a field is zero.
func (l SplitLimits) WithDefaults() SplitLimits {
	orElse(&l.Bytes, 256<<20)
	orElse(&l.Requests, 2500)
	orElse(&l.RequestBytes, 32<<20)
	orElse(&l.CPUMicros, 500_000)
	return l
}

// busy reports whether a load calls for a split.
func (l *SplitLimits) busy(rate Load) bool {
	return l.Requests > 0 && rate.Requests() >= l.Requests || l.RequestBytes > 0 && rate.Bytes() >= l.RequestBytes ||
		l.CPUMicros > 0 && rate.CPUMicros >= l.CPUMicros
}

// These are the loads, per second, from which on requests are sampled. It takes some 25 KiB.
const (
	watchedRequests = 100
	watchedBytes    = 4 << 20
	watchedMicros   = 20_000
)

// watched reports whether requests are to be sampled; over is by how much the load may be below the border.
func (l *SplitLimits) watched(rate Load, over float64) bool {
	requests, size := float64(watchedRequests), float64(watchedBytes)
	if l.Requests > 0 {
		requests = min(requests, l.Requests/4)
	}
	if l.RequestBytes > 0 {
		size = min(size, l.RequestBytes/4)
	}
	return rate.Requests()*over >= requests || rate.Bytes()*over >= size || rate.CPUMicros*over >= watchedMicros
}

func (s *Store) splitLimits() *SplitLimits { return s.split.Load() }

// SetSplitLimits changes when shards count as due for a split, and when their leaders here refuse writes; zero fields
// mean the default. It holds until the next start.
func (s *Store) SetSplitLimits(l SplitLimits) {
	l = l.WithDefaults()
	s.split.Store(&l)
}

// LoadSplit is what the requests to a busy shard say about dividing them.
type LoadSplit struct {
	// Key is where to split, a routing key strictly inside the shard; nil if no key divides the load.
	Key []byte
	// Left, Right and Across are the shares of the load that end before the key, start behind it and reach across it.
	Left, Right, Across float64
	// HotKey carries HotShare of the load, at least half; nil if there is none. Then Key is nil.
	HotKey   []byte
	HotShare float64
	// Samples is the number of requests that it rests on.
	Samples int
}

// LoadSplit returns how the load of a shard that this store leads would best be divided, by the requests of the last
// whole window of ten seconds. The key is never inside a group of keys. The zero value means that the shard is not busy
// enough for its requests to be sampled, or has not been for long. It fails as HotKeys does.
func (s *Store) LoadSplit(shard base.ShardID, groups ...engine.KeyGroup) (LoadSplit, error) {
	r, err := s.leading(shard)
	if err != nil {
		return LoadSplit{}, err
	}
	now := s.clock.Boot()
	r.foldLoad(now)
	sm := r.load.sampler.Load()
	if sm == nil {
		return LoadSplit{}, nil
	}
	return sm.divide(r.desc.Load(), groups, now), nil
}

// divide judges the last whole window.
func (s *sampler) divide(d *base.Descriptor, groups []engine.KeyGroup, now time.Duration) LoadSplit {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turnLocked(now)
	if s.mu.last == nil {
		return LoadSplit{}
	}
	if len(groups) > 0 { // rarely asked, and for one key
		return s.mu.last.divide(d, groups)
	}
	if s.mu.verdict == nil {
		v := s.mu.last.divide(d, nil)
		s.mu.verdict = &v
	}
	v := *s.mu.verdict
	if v.Key != nil && !inside(v.Key, d) { // the range has changed since
		v = LoadSplit{Samples: v.Samples}
	}
	return v
}

func inside(key []byte, d *base.Descriptor) bool {
	return bytes.Compare(key, d.Start) > 0 && bytes.Compare(key, d.End) < 0
}

// divide finds the key that divides the sampled load best.
func (w *window) divide(d *base.Descriptor, groups []engine.KeyGroup) LoadSplit {
	out := LoadSplit{Samples: len(w.spans)}
	if len(w.spans) < minSpans {
		return out
	}
	spans := slices.Clone(w.spans)
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.lo, b.lo) })
	var total float64
	loads := make([]float64, len(spans))
	for i := range spans {
		loads[i] = w.estimate(&spans[i])
		total += loads[i]
	}
	if key, share := hottest(spans, loads, total); share >= hotShare {
		out.HotKey, out.HotShare = bytes.Clone(key), share
		return out
	}
	best := maxSide
	var last []byte
	for i := range spans {
		key, ok := engine.GroupStart(spans[i].lo, groups)
		if !ok || !inside(key, d) || bytes.Equal(key, last) {
			continue
		}
		last = key
		var left, right float64
		for k := range spans {
			switch sp := &spans[k]; {
			case bytes.Compare(sp.lo, key) >= 0:
				right += loads[k]
			case sp.hi == nil || bytes.Compare(sp.hi, key) <= 0:
				left += loads[k]
			}
		}
		left, right = left/total, right/total
		across := max(0, 1-left-right)
		if side := max(left, right) + across; side <= best {
			best = side
			out.Key, out.Left, out.Right, out.Across = key, left, right, across
		}
	}
	out.Key = bytes.Clone(out.Key)
	return out
}

// hottest returns the key with the most load on it alone, of spans sorted by their start.
func hottest(spans []span, loads []float64, total float64) (key []byte, share float64) {
	var at []byte
	var sum float64
	for i := range spans {
		if spans[i].hi != nil {
			continue
		}
		if !bytes.Equal(spans[i].lo, at) {
			at, sum = spans[i].lo, 0
		}
		if sum += loads[i]; sum/total > share {
			key, share = at, sum/total
		}
	}
	return key, share
}
