package engine

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// The entry cache keeps the newest raft entries of all replicas in memory, so that sending and applying them reads
// nothing back. Each log has a ring of consecutive entries that ends at its last index; all rings share one budget.
//
// A ring is cut into runs of about runBytes. The store-wide list of runs is in the order of their making; past the
// budget the oldest whole runs go, whichever log they are of. So an append takes its own ring's lock, which only an
// eviction contends for, and the list's lock once per run, not per entry.
//
// Slices handed out stay valid: entries in a ring's array are never written twice. Dropping from the front moves the
// slice, cutting from the back caps it, so that the next append moves to a new array.
const (
	runBytes      = 64 << 10
	entryOverhead = 56 // bytes of a raftpb.Entry itself
	minSweep      = 1024
)

type entryCache struct {
	budget int64
	bytes  atomic.Int64 // of all rings
	stale  atomic.Int64 // runs in the list that are in no ring any more

	mu struct { // taken before a ring's lock, never after
		sync.Mutex
		runs []cacheRun // oldest first
		head int        // runs[:head] are gone
	}
}

// cacheRun names a run by its first index.
type cacheRun struct {
	ring  *ring
	start uint64
}

func (c *entryCache) init(budget int64) { c.budget = budget }

func (c *entryCache) push(r cacheRun) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := int64(len(c.mu.runs) - c.mu.head); n > minSweep && c.stale.Load() > n/2 {
		c.sweepLocked()
	}
	c.mu.runs = append(c.mu.runs, r)
}

// sweepLocked drops the runs that truncations and closed logs have left behind.
func (c *entryCache) sweepLocked() {
	kept := c.mu.runs[:0]
	for _, r := range c.mu.runs[c.mu.head:] {
		if r.ring.has(r.start) {
			kept = append(kept, r)
		} else {
			c.stale.Add(-1)
		}
	}
	clear(c.mu.runs[len(kept):])
	c.mu.runs, c.mu.head = kept, 0
}

func (c *entryCache) popOldest() (cacheRun, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.head == len(c.mu.runs) {
		return cacheRun{}, false
	}
	r := c.mu.runs[c.mu.head]
	c.mu.runs[c.mu.head] = cacheRun{}
	c.mu.head++
	if c.mu.head >= minSweep && c.mu.head > len(c.mu.runs)/2 {
		n := copy(c.mu.runs, c.mu.runs[c.mu.head:])
		clear(c.mu.runs[n:])
		c.mu.runs, c.mu.head = c.mu.runs[:n], 0
	}
	return r, true
}

// charge accounts for new bytes and evicts until the budget holds.
func (c *entryCache) charge(n int64) {
	for total := c.bytes.Add(n); total > c.budget; total = c.bytes.Load() {
		r, ok := c.popOldest()
		if !ok {
			return
		}
		r.ring.evict(r.start)
	}
}

// ring is one log's part of the cache.
type ring struct {
	cache *entryCache

	mu struct {
		sync.Mutex
		ents    []raftpb.Entry // consecutive, the last is the log's last
		starts  []uint64       // first index of each run in it, ascending
		open    int64          // bytes of the newest run
		dropped int            // entries of the array in front of ents, at most
	}
}

func entryCost(e *raftpb.Entry) int64 { return int64(len(e.Data)) + entryOverhead }

// append adds entries behind the index before ents[0], replacing what the ring has from there on.
func (r *ring) append(ents []raftpb.Entry) {
	first := ents[0].Index
	var added int64
	for i := range ents {
		added += entryCost(&ents[i])
	}
	r.mu.Lock()
	freed := r.cutLocked(first)
	if n := len(r.mu.ents); n > 0 && r.mu.ents[n-1].Index+1 != first {
		freed += r.dropLocked(len(r.mu.ents)) // a hole, after a snapshot: start anew
	}
	newRun := len(r.mu.starts) == 0 || r.mu.open >= runBytes
	if newRun {
		r.mu.starts = append(r.mu.starts, first)
		r.mu.open = 0
	}
	r.mu.open += added
	r.mu.ents = append(r.mu.ents, ents...)
	r.mu.Unlock()
	if newRun {
		r.cache.push(cacheRun{ring: r, start: first})
	}
	r.cache.charge(added - freed)
}

// cutLocked removes the entries from index on and returns their cost.
func (r *ring) cutLocked(index uint64) (freed int64) {
	n := len(r.mu.ents)
	if n == 0 || r.mu.ents[n-1].Index < index {
		return 0
	}
	k := 0
	if first := r.mu.ents[0].Index; index > first {
		k = int(index - first)
	}
	for i := k; i < n; i++ {
		freed += entryCost(&r.mu.ents[i])
	}
	r.mu.ents = r.mu.ents[:k:k]
	for s := len(r.mu.starts); s > 0 && (k == 0 || r.mu.starts[s-1] >= index); s-- {
		r.mu.starts = r.mu.starts[:s-1]
		r.cache.stale.Add(1)
	}
	if k == 0 {
		r.mu.ents, r.mu.dropped = nil, 0
	}
	r.mu.open = runBytes // size unknown now: the next append starts a run
	return freed
}

// dropLocked removes the oldest k entries and returns their cost.
func (r *ring) dropLocked(k int) (freed int64) {
	for i := range k {
		freed += entryCost(&r.mu.ents[i])
	}
	r.mu.ents = r.mu.ents[k:]
	r.mu.dropped += k
	switch n := len(r.mu.ents); {
	case n == 0:
		r.mu.ents, r.mu.dropped = nil, 0
		r.cache.stale.Add(int64(len(r.mu.starts)))
		r.mu.starts = r.mu.starts[:0]
	default:
		if r.mu.dropped > n+64 { // the array in front holds more than the ring
			r.mu.ents = append(make([]raftpb.Entry, 0, n+n/4), r.mu.ents...)
			r.mu.dropped = 0
		}
		first := r.mu.ents[0].Index
		gone := 0
		for gone+1 < len(r.mu.starts) && r.mu.starts[gone+1] <= first {
			gone++
		}
		r.cache.stale.Add(int64(gone))
		r.mu.starts = append(r.mu.starts[:0], r.mu.starts[gone:]...)
	}
	return freed
}

// evict removes the run that starts at start, if it is still the oldest of the ring.
func (r *ring) evict(start uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mu.starts) == 0 || r.mu.starts[0] != start {
		r.cache.stale.Add(-1)
		return
	}
	k := len(r.mu.ents)
	if len(r.mu.starts) > 1 {
		k = int(r.mu.starts[1] - r.mu.ents[0].Index)
	}
	// The run's own place in the list is gone already: take it out first, so that it does not count as stale.
	r.mu.starts = append(r.mu.starts[:0], r.mu.starts[1:]...)
	r.cache.bytes.Add(-r.dropLocked(k))
}

// truncate removes the entries up to index.
func (r *ring) truncate(index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.mu.ents); n > 0 && r.mu.ents[0].Index <= index {
		k := n
		if index < r.mu.ents[n-1].Index {
			k = int(index-r.mu.ents[0].Index) + 1
		}
		r.cache.bytes.Add(-r.dropLocked(k))
	}
}

func (r *ring) has(start uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.mu.starts {
		if s == start {
			return true
		}
	}
	return false
}

// entries returns the cached part of [lo, hi) that ends at hi-1, and the index it starts at, hi if there is none. The
// slice is shared: read only.
func (r *ring) entries(lo, hi uint64) (ents []raftpb.Entry, from uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mu.ents) == 0 {
		return nil, hi
	}
	first := r.mu.ents[0].Index
	if first >= hi {
		return nil, hi
	}
	from = max(lo, first)
	a, b := int(from-first), int(hi-first)
	return r.mu.ents[a:b:b], from
}

// term returns the term of a cached entry.
func (r *ring) term(index uint64) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.mu.ents); n > 0 && index >= r.mu.ents[0].Index && index <= r.mu.ents[n-1].Index {
		return r.mu.ents[index-r.mu.ents[0].Index].Term, true
	}
	return 0, false
}

// EntryCacheBytes returns how many bytes of raft entries are held in memory now.
func (e *Engine) EntryCacheBytes() int64 { return e.cache.bytes.Load() }
