package engine

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
)

// The row cache keeps single rows that are read again and again, so that a Get of one of them costs a copy in place of a
// look-up through memtables, tables and blob files.
//
// Invariant: a row in the cache is what Pebble would return at this moment. Whatever may change it closes the gate of the
// row first, which drops the row and keeps it out, then becomes visible, then opens the gate (begin, end). A Get that
// misses takes the version of the gate before its look-up, and its row comes in only if the gate has not been closed
// since. So nobody who has seen a change meets an older row afterwards, not even of another key of the same batch. There
// are three ways to change data, and all go through here: Commit, commitAsync and exciseAndIngest.
//
// While there is room a row comes in when it is read. Later it does at the second miss that is remembered, so that reads
// all over a large store neither drop what is read often nor make garbage.
const (
	maxCachedRow = 16 << 10 // bytes of key and value; for larger ones the copy is most of the cost
	rowOverhead  = 160      // bytes of the row itself and its places in map and clock
	maxStripes   = 256
	minStripe    = 256 << 10 // bytes of budget below which there are fewer stripes
	rowsPerSeen  = 1 << 10   // bytes of budget per remembered miss
	// maxKeptHashes is how many changed rows an emptied batch keeps room for.
	maxKeptHashes = 4 << 10
	// maxRanges is up to how many ranges of one batch are told apart: with more of them all rows are dropped.
	maxRanges = 8
)

type rowCache struct {
	seed    maphash.Seed
	stripes []rowStripe // a power of two of them; none: no cache
	budget  int64       // of one stripe
	bytes   atomic.Int64
}

// rowStripe is a part of the cache with a gate, a budget and a clock of its own.
type rowStripe struct {
	mu           sync.Mutex
	writers      int                   // changes under way: the gate is closed while there are any
	version      uint64                // of the gate, raised whenever it is closed
	rows         map[uint64]*cachedRow // by hash
	clock        []*cachedRow          // all rows, in no order
	hand         int                   // where the search for one to drop goes on
	bytes        int64
	seen         []uint32 // hashes of misses
	hits, misses uint64
}

// cachedRow is never changed but for pos and used, which belong to the stripe.
type cachedRow struct {
	hash   uint64
	header ValueHeader
	data   []byte // key, value
	keyLen int
	pos    int  // in the clock
	used   bool // since the hand passed
}

func (r *cachedRow) cost() int64 { return int64(cap(r.data)) + rowOverhead }

// rowTicket is what a Get that missed brings its row in with.
type rowTicket struct {
	hash    uint64
	version uint64
	open    bool  // the gate was
	again   bool  // another miss is remembered
	room    int64 // bytes
}

func (c *rowCache) init(budget int64) {
	if budget <= 0 {
		return
	}
	n := int64(1)
	for n < maxStripes && budget/(2*n) >= minStripe {
		n *= 2
	}
	c.seed, c.budget, c.stripes = maphash.MakeSeed(), budget/n, make([]rowStripe, n)
}

func (c *rowCache) hash(key []byte) uint64 { return maphash.Bytes(c.seed, key) }

func (c *rowCache) stripe(hash uint64) *rowStripe {
	return &c.stripes[hash>>32&uint64(len(c.stripes)-1)]
}

// get returns a cached row, or the ticket for the one that the caller looks up next.
func (c *rowCache) get(key []byte) (*cachedRow, rowTicket) {
	if len(c.stripes) == 0 || !isDataKey(key) {
		return nil, rowTicket{}
	}
	hash := c.hash(key)
	s := c.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rows[hash]; r != nil && string(r.data[:r.keyLen]) == string(key) {
		r.used = true
		s.hits++
		return r, rowTicket{}
	}
	s.misses++
	if s.writers > 0 {
		return nil, rowTicket{}
	}
	return nil, rowTicket{
		hash: hash, version: s.version, open: true, again: c.seenBefore(s, hash), room: c.budget - s.bytes,
	}
}

// seenBefore reports whether a miss of the key is remembered, and remembers this one.
func (c *rowCache) seenBefore(s *rowStripe, hash uint64) bool {
	if s.seen == nil {
		s.seen = make([]uint32, max(c.budget/rowsPerSeen, 1))
	}
	at, tag := &s.seen[hash>>40%uint64(len(s.seen))], uint32(hash)|1
	if *at == tag {
		return true
	}
	*at = tag
	return false
}

// put brings a row in that was looked up after the ticket was taken; key and value are copied.
func (c *rowCache) put(t rowTicket, key []byte, h ValueHeader, value []byte) {
	size := len(key) + len(value)
	if !t.open || size > maxCachedRow || !t.again && t.room < int64(size)+rowOverhead {
		return
	}
	data := append(append(slices.Grow([]byte(nil), size), key...), value...) // its capacity is what it takes
	r := &cachedRow{hash: t.hash, header: h, data: data, keyLen: len(key)}
	s := c.stripe(t.hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.version != t.version || r.cost() > c.budget {
		return // it may have been looked up before a change became visible
	}
	c.dropLocked(s, t.hash)
	for s.bytes+r.cost() > c.budget {
		c.evictLocked(s)
	}
	if s.rows == nil {
		s.rows = make(map[uint64]*cachedRow)
	}
	r.pos = len(s.clock)
	s.rows[t.hash], s.clock = r, append(s.clock, r)
	s.bytes += r.cost()
	c.bytes.Add(r.cost())
}

// evictLocked drops a row that was not read since the hand last passed it. The stripe is not empty.
func (c *rowCache) evictLocked(s *rowStripe) {
	for {
		if s.hand >= len(s.clock) {
			s.hand = 0
		}
		r := s.clock[s.hand]
		if !r.used {
			c.dropLocked(s, r.hash)
			return
		}
		r.used = false
		s.hand++
	}
}

func (c *rowCache) dropLocked(s *rowStripe, hash uint64) {
	r := s.rows[hash]
	if r == nil {
		return
	}
	delete(s.rows, hash)
	last := len(s.clock) - 1
	s.clock[r.pos] = s.clock[last]
	s.clock[r.pos].pos = r.pos
	s.clock[last] = nil
	s.clock = s.clock[:last]
	s.bytes -= r.cost()
	c.bytes.Add(-r.cost())
}

// rowChanges are the rows that a batch or an ingestion changes.
type rowChanges struct {
	hashes []uint64
	ranges [][2]string // [lo, hi) of keys
	all    bool
}

// reset keeps the memory of small batches.
func (ch *rowChanges) reset() {
	if ch.hashes = ch.hashes[:0]; cap(ch.hashes) > maxKeptHashes {
		ch.hashes = nil
	}
	ch.ranges, ch.all = nil, false
}

// wide reports whether more changes than rows that are named.
func (ch *rowChanges) wide() bool { return ch.all || len(ch.ranges) > 0 }

// has reports whether a row that is in the cache is in a range that changes.
func (ch *rowChanges) has(key []byte) bool {
	if ch.all {
		return true
	}
	for _, r := range ch.ranges {
		if string(key) >= r[0] && string(key) < r[1] {
			return true
		}
	}
	return false
}

// begin closes the gates of what is about to change and drops those rows. If the change fails in a way that leaves open
// what became of it, end is never called.
func (c *rowCache) begin(ch *rowChanges) {
	for _, hash := range ch.hashes {
		s := c.stripe(hash)
		s.mu.Lock()
		s.writers++
		s.version++
		c.dropLocked(s, hash)
		s.mu.Unlock()
	}
	if !ch.wide() {
		return
	}
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		s.writers++
		s.version++
		for at := len(s.clock) - 1; at >= 0; at-- { // a row that takes a dropped one's place has been looked at
			if r := s.clock[at]; ch.has(r.data[:r.keyLen]) {
				c.dropLocked(s, r.hash)
			}
		}
		s.mu.Unlock()
	}
}

// end opens the gates that begin closed: the change is visible.
func (c *rowCache) end(ch *rowChanges) {
	open := func(s *rowStripe) {
		s.mu.Lock()
		s.writers--
		s.mu.Unlock()
	}
	for _, hash := range ch.hashes {
		open(c.stripe(hash))
	}
	if ch.wide() {
		for i := range c.stripes {
			open(&c.stripes[i])
		}
	}
}

// counts returns the rows that were asked for so far: those that were there, and the others.
func (c *rowCache) counts() (hits, misses uint64) {
	for i := range c.stripes {
		s := &c.stripes[i]
		s.mu.Lock()
		hits += s.hits
		misses += s.misses
		s.mu.Unlock()
	}
	return hits, misses
}

// RowCacheBytes returns how many bytes of rows are held in memory now.
func (e *Engine) RowCacheBytes() int64 { return e.rows.bytes.Load() }
