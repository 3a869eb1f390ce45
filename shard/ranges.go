package shard

import (
	"bytes"

	"github.com/google/btree"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// ranges finds replicas by what they own. Store.mu guards it. A shard keeps its start for life, so an entry is right as
// long as its replica is published; where the range ends is for the replica's descriptor to say.
type ranges struct {
	tree *btree.BTreeG[rangeItem]
}

type rangeItem struct {
	start []byte
	r     *replica
}

func newRanges() ranges {
	return ranges{btree.NewG(32, func(a, b rangeItem) bool { return bytes.Compare(a.start, b.start) < 0 })}
}

// add enters an initialised replica, in the place of an older object of it.
func (x *ranges) add(r *replica) {
	if d := r.desc.Load(); d != nil {
		x.tree.ReplaceOrInsert(rangeItem{d.Start, r})
	}
}

// remove takes a replica out, unless another one has its place.
func (x *ranges) remove(r *replica) {
	d := r.desc.Load()
	if d == nil {
		return
	}
	if i, ok := x.tree.Get(rangeItem{start: d.Start}); ok && i.r == r {
		x.tree.Delete(i)
	}
}

// overlapping calls f for the descriptors that share a key with [lo, hi), ascending, until f returns false. An empty hi
// means lo alone.
func (x *ranges) overlapping(lo, hi []byte, f func(*base.Descriptor) bool) {
	first := rangeItem{start: lo}
	x.tree.DescendLessOrEqual(first, func(i rangeItem) bool {
		if i.r.desc.Load().Contains(lo) {
			first = i
		}
		return false
	})
	x.tree.AscendGreaterOrEqual(first, func(i rangeItem) bool {
		d := i.r.desc.Load()
		if bytes.Compare(d.Start, lo) > 0 && bytes.Compare(d.Start, hi) >= 0 {
			return false
		}
		return f(d)
	})
}

// maxMismatchDescs bounds how many descriptors an answer carries: a range that was split into more is asked for again,
// piece by piece.
const maxMismatchDescs = 64

// absent is the answer for a shard without a replica here. If others own a part of [lo, hi), or of lo alone, it was
// merged into one of them, or this is where it was split off, and they are what to ask for instead.
func (s *Store) absent(lo, hi []byte) wire.Answer {
	s.metrics.refused(wire.ShardNotFound)
	var others []*base.Descriptor
	if len(lo) > 0 {
		s.mu.RLock()
		s.mu.ranges.overlapping(lo, hi, func(d *base.Descriptor) bool {
			others = append(others, d)
			return len(others) < maxMismatchDescs
		})
		s.mu.RUnlock()
	}
	if len(others) == 0 {
		return wire.Answer{Code: wire.ShardNotFound}
	}
	return wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, others...)}
}

// absentFor is absent for an operation.
func (s *Store) absentFor(op *wire.Op) wire.Answer {
	if op.Code == wire.OpScan || op.Code == wire.OpDeleteRange {
		return s.absent(op.Key, op.Value)
	}
	return s.absent(op.Key, nil)
}

// routes returns the descriptor of a replica and of whatever else on this store owns a part of [lo, hi), so that a
// client whose descriptor is old finds all of it without asking the directory. An empty hi means lo alone.
func (r *replica) routes(lo, hi []byte) []*base.Descriptor {
	out := []*base.Descriptor{r.desc.Load()}
	if len(lo) == 0 {
		return out
	}
	s := r.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	// Again, under the lock that a split publishes both of its sides under.
	out[0] = r.desc.Load()
	s.mu.ranges.overlapping(lo, hi, func(d *base.Descriptor) bool {
		if d.Shard != r.shard {
			out = append(out, d)
		}
		return len(out) < maxMismatchDescs
	})
	return out
}
