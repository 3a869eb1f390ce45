package shard

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// News. Note: whatever may change the summary of a replica puts it on a list, once: that it is new, wakes, is read, or
// fails. Take: who reports what replicas do takes the list, and only looks at what is on it. Rest: a replica that sleeps
// and does nothing leaves the list; one with data comes back on it when its size is to be measured again (size.go). So
// nobody walks over replicas that nothing happens to.

// news is what Changed has to look at.
type news struct {
	sync.Mutex
	list []*replica
	gone []base.ShardID

	later laterHeap // belongs to the caller of Changed
}

// note has Changed look at a replica.
func (s *Store) note(r *replica) {
	if r.noted.Load() || r.noted.Swap(true) {
		return
	}
	s.news.Lock()
	s.news.list = append(s.news.list, r)
	s.news.Unlock()
}

// noteGone has Changed say that a replica is not here any more.
func (s *Store) noteGone(id base.ShardID) {
	s.news.Lock()
	s.news.gone = append(s.news.gone, id)
	s.news.Unlock()
}

// Changed returns the summaries of the replicas that may have changed since the last call, by shard, and the shards that
// have had a replica here and have none now. The first call returns all. What a summary tells of time alone, such as
// SizeAge, is no change. It is for one caller.
func (s *Store) Changed() (sums []Summary, gone []base.ShardID) {
	now := s.clock.Boot()
	n := &s.news
	n.Lock()
	list, removed := n.list, n.gone
	n.list, n.gone = nil, nil
	n.Unlock()
	for len(n.later) > 0 && n.later[0].due <= now {
		if r := s.lookup(heap.Pop(&n.later).(laterItem).shard); r != nil {
			r.size.later = false
			if !r.noted.Swap(true) {
				list = append(list, r)
			}
		}
	}
	for _, r := range list {
		r.noted.Store(false) // before the look: what comes behind it is noted again
		if s.lookup(r.shard) != r {
			continue // removed, or another object has its place
		}
		asleep := r.asleep.Load()
		sum := r.summary()
		sums = append(sums, sum)
		switch {
		case !asleep || !sum.rests():
			s.note(r)
		case sum.SizeBytes > 0 && !r.size.later:
			r.size.later = true
			heap.Push(&n.later, laterItem{shard: r.shard, due: time.Duration(r.size.due.Load())})
		}
	}
	slices.Sort(removed)
	for _, id := range slices.Compact(removed) {
		if s.lookup(id) == nil {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(sums, func(a, b Summary) int { return int(a.Shard) - int(b.Shard) })
	return sums, gone
}

// A load below these rates counts as none: it has faded for a minute or more.
const (
	restRequests = 0.01
	restBytes    = 10
)

// rests reports whether the summary of a replica that sleeps stays as it is until something happens to it.
func (s *Summary) rests() bool {
	return s.Load.Requests() < restRequests && s.Load.Bytes() < restBytes && s.HotKey == nil && s.LoadSplitKey == nil
}

// Summary returns the summary of a shard's replica; false if there is none. It never waits for a worker.
func (s *Store) Summary(shard base.ShardID) (Summary, bool) {
	r := s.lookup(shard)
	if r == nil {
		return Summary{}, false
	}
	return r.summary(), true
}

// Counts returns how many initialised replicas the store has and how many of them lead.
func (s *Store) Counts() (replicas, leaders int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.mu.replicas {
		if r.uninitialised() {
			continue
		}
		replicas++
		if r.lead.Load().leads {
			leaders++
		}
	}
	return replicas, leaders
}

// laterItem is a shard whose replica is at rest and is to be measured again at a time. It holds no replica: that may be
// removed or replaced long before.
type laterItem struct {
	shard base.ShardID
	due   time.Duration
}

// laterHeap has the earliest on top.
type laterHeap []laterItem

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h laterHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *laterHeap) Push(x any)        { *h = append(*h, x.(laterItem)) }
func (h *laterHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = laterItem{}
	*h = (*h)[:last]
	return x
}
