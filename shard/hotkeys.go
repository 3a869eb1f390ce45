package shard

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// sketch finds the busiest keys in bounded memory. It is the space-saving algorithm (A. Metwally, D. Agrawal, A. El
// Abbadi, "Efficient computation of frequent and top-k elements in data streams", ICDT 2005): a key without a counter
// takes over the smallest one, whose count it may owe to others. Every key with more than total/sketchKeys requests is
// in it, and no count is too low.
type sketch struct {
	total    uint64
	counters []keyCount
}

type keyCount struct {
	key   []byte
	count uint64
	owed  uint64 // at most so much of count belongs to other keys
}

const (
	sketchKeys = 64
	// sketchKeyBytes is the longest key that has a counter. Longer ones are counted in the total only; one that carries
	// most of the load is found in the reservoir.
	sketchKeyBytes = 512
)

func (s *sketch) add(key []byte) {
	s.total++
	if len(key) > sketchKeyBytes {
		return
	}
	least := 0
	for i := range s.counters {
		c := &s.counters[i]
		if bytes.Equal(c.key, key) {
			c.count++
			return
		}
		if c.count < s.counters[least].count {
			least = i
		}
	}
	if len(s.counters) < sketchKeys {
		var k []byte
		if n := len(s.counters); n < cap(s.counters) {
			k = s.counters[:n+1][n].key[:0] // a buffer of the window before
		}
		s.counters = append(s.counters, keyCount{key: append(k, key...), count: 1})
		return
	}
	c := &s.counters[least]
	c.key, c.owed = append(c.key[:0], key...), c.count
	c.count++
}

// reset forgets the counts and keeps the buffers.
func (s *sketch) reset() { s.total, s.counters = 0, s.counters[:0] }

// HotKey is one of the busiest keys of a shard.
type HotKey struct {
	Key []byte // routing key
	// Share of the shard's requests, at most this; it may be too high by Error, never too low.
	Share, Error float64
}

// HotKeys returns up to n keys of a shard that were asked for most in the last whole window of ten seconds, busiest
// first, and how many requests were sampled in it. Only requests on single keys count towards a key. It returns nothing
// for shards that do less than about a hundred requests per second. It fails with NotFoundError or, where this store
// does not lead the shard, with NotLeaderError.
func (s *Store) HotKeys(shard base.ShardID, n int) (keys []HotKey, sampled uint64, err error) {
	r, err := s.leading(shard)
	if err != nil {
		return nil, 0, err
	}
	now := s.clock.Boot()
	r.foldLoad(now)
	sm := r.load.sampler.Load()
	if sm == nil {
		return nil, 0, nil
	}
	keys, sampled = sm.hotKeys(n, now)
	return keys, sampled, nil
}

func (s *sampler) hotKeys(n int, now time.Duration) ([]HotKey, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turnLocked(now)
	w := s.mu.last
	if w == nil || w.requests == 0 {
		return nil, 0
	}
	top := slices.Clone(w.keys.counters)
	slices.SortFunc(top, func(a, b keyCount) int {
		return cmp.Or(cmp.Compare(b.count, a.count), bytes.Compare(a.key, b.key))
	})
	top = top[:min(n, len(top))]
	out := make([]HotKey, len(top))
	for i, c := range top {
		out[i] = HotKey{
			Key: bytes.Clone(c.key), Share: float64(c.count) / float64(w.requests),
			Error: float64(c.owed) / float64(w.requests),
		}
	}
	return out, w.requests
}

// leading returns the replica that leads a shard here.
func (s *Store) leading(shard base.ShardID) (*replica, error) {
	r, err := s.find(shard)
	if err != nil {
		return nil, err
	}
	if l := r.lead.Load(); !l.leads {
		return nil, &NotLeaderError{Shard: shard, Leader: l.store}
	}
	return r, nil
}
