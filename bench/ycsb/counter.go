package ycsb

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// counterWindow is how far the oldest insert under way may lag behind the newest.
const counterWindow = 1 << 20

// counter hands out record numbers and knows up to which all of them have been acknowledged (YCSB's
// AcknowledgedCounterGenerator): a read must not pick a record whose insert is still under way.
type counter struct {
	issued atomic.Int64 // next number
	limit  atomic.Int64 // highest number up to which all are acknowledged

	mu     sync.Mutex
	window []uint64 // a bit for each acknowledged number above limit, by number modulo the window
}

func newCounter(start int64) *counter {
	c := &counter{window: make([]uint64, counterWindow/64)}
	c.issued.Store(start)
	c.limit.Store(start - 1)
	return c
}

// next issues a number.
func (c *counter) next() int64 { return c.issued.Add(1) - 1 }

// last is the highest number up to which all are acknowledged; one less than the first number if none is.
func (c *counter) last() int64 { return c.limit.Load() }

// acknowledge makes a number count, once all before it do. It fails if one insert lags a whole window behind.
func (c *counter) acknowledge(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := c.limit.Load()
	if n-limit > counterWindow {
		return fmt.Errorf("insert of record %d is still under way while record %d is done: more than %d apart",
			limit+1, n, counterWindow)
	}
	c.window[n%counterWindow/64] |= 1 << (n % 64)
	for {
		word, bit := &c.window[(limit+1)%counterWindow/64], uint64(1)<<((limit+1)%64)
		if *word&bit == 0 {
			break
		}
		*word &^= bit
		limit++
	}
	c.limit.Store(limit)
	return nil
}
