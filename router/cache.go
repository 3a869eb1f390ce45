package router

import (
	"bytes"
	"sync"
	"sync/atomic"

	"github.com/google/btree"

	"github.com/shardd/shardd/internal/base"
)

// entry is one cached descriptor with a leader hint. The descriptor never changes; the hint does, without a lock.
type entry struct {
	desc   *base.Descriptor
	leader atomic.Uint64 // base.StoreID, 0: unknown
}

// forget drops the hint if it still is store.
func (e *entry) forget(store base.StoreID) { e.leader.CompareAndSwap(uint64(store), 0) }

// cache maps key ranges to descriptors.
//
// INVARIANT(overlap): no two entries overlap. Of two descriptors that do, the one with the newer epoch stays: it knows
// of a split or merge that the other does not. Gaps are normal; they are filled by the Directory.
type cache struct {
	mu struct {
		sync.RWMutex
		tree *btree.BTreeG[item]
	}
}

// item is an entry under its start key; a value, so that a look-up allocates nothing.
type item struct {
	start []byte
	e     *entry
}

func newCache() *cache {
	c := &cache{}
	c.mu.tree = btree.NewG(32, func(a, b item) bool { return bytes.Compare(a.start, b.start) < 0 })
	return c
}

// at returns the entry that holds key, or nil.
func (c *cache) at(key []byte) (found *entry) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.mu.tree.DescendLessOrEqual(item{start: key}, func(i item) bool {
		if i.e.desc.Contains(key) {
			found = i.e
		}
		return false
	})
	return found
}

// below returns the entry that holds the largest key below key, or nil.
func (c *cache) below(key []byte) (found *entry) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.mu.tree.DescendLessOrEqual(item{start: key}, func(i item) bool {
		if bytes.Equal(i.start, key) {
			return true // the range above
		}
		if bytes.Compare(key, i.e.desc.End) <= 0 {
			found = i.e
		}
		return false
	})
	return found
}

// insert adds what a node told. guess is a leader hint to use where nothing better is known. It reports whether the
// cache now holds news: a descriptor that is not older than what it replaces. An older one is dropped.
func (c *cache) insert(d *base.Descriptor, leader, guess base.StoreID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.overlapsLocked(d)
	for _, o := range old {
		if o.desc.Shard == d.Shard && o.desc.Epoch == d.Epoch {
			if leader != 0 {
				o.leader.Store(uint64(leader))
			}
			return false
		}
		if !d.Epoch.Newer(o.desc.Epoch) {
			return false
		}
	}
	for _, o := range old {
		c.mu.tree.Delete(item{start: o.desc.Start})
		if was := base.StoreID(o.leader.Load()); leader == 0 && o.desc.Shard == d.Shard && listed(d, was) {
			leader = was // a split, a merge or a conf change rarely moves the leader
		}
	}
	if leader == 0 && listed(d, guess) {
		leader = guess
	}
	e := &entry{desc: d}
	e.leader.Store(uint64(leader))
	c.mu.tree.ReplaceOrInsert(item{start: d.Start, e: e})
	return true
}

// overlapsLocked returns the entries that share a key with d.
func (c *cache) overlapsLocked(d *base.Descriptor) (out []*entry) {
	pivot := item{start: d.Start}
	c.mu.tree.DescendLessOrEqual(pivot, func(i item) bool {
		if bytes.Compare(i.start, d.Start) < 0 && i.e.desc.Overlaps(d) {
			out = append(out, i.e)
		}
		return bytes.Equal(i.start, d.Start) // one further down may reach into d
	})
	c.mu.tree.AscendGreaterOrEqual(pivot, func(i item) bool {
		if bytes.Compare(i.start, d.End) >= 0 {
			return false
		}
		out = append(out, i.e)
		return true
	})
	return out
}

func listed(d *base.Descriptor, s base.StoreID) bool {
	_, ok := d.ReplicaOn(s)
	return s != 0 && ok
}
