package snapshotter

import (
	"context"
	"sync"
)

// budget bounds the bytes that the chunks of one direction hold in memory. Requests are served in order, so that a big
// one does not starve. Safe for concurrent use.
//
// Nobody deadlocks on it: a stream that waits for its next chunk holds at most one, and that one is given back by
// another goroutine that needs nothing more.
type budget struct {
	size int64

	mu struct {
		sync.Mutex
		used    int64
		waiting []*claim // first come, first served
	}
}

type claim struct {
	n       int64
	granted chan struct{}
}

func newBudget(size int64) *budget { return &budget{size: size} }

// take waits for n bytes, or for all there are if n is more. It returns the function that gives them back, which may be
// called more than once.
func (b *budget) take(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, b.size)
	c := &claim{n: n, granted: make(chan struct{})}
	b.mu.Lock()
	b.mu.waiting = append(b.mu.waiting, c)
	b.serveLocked()
	b.mu.Unlock()
	select {
	case <-c.granted:
		return sync.OnceFunc(func() { b.release(n) }), nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, w := range b.mu.waiting {
		if w == c {
			b.mu.waiting = append(b.mu.waiting[:i], b.mu.waiting[i+1:]...)
			b.serveLocked() // those behind may be smaller
			return nil, context.Cause(ctx)
		}
	}
	b.mu.used -= n // granted meanwhile
	b.serveLocked()
	return nil, context.Cause(ctx)
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.used -= n
	b.serveLocked()
}

func (b *budget) serveLocked() {
	for len(b.mu.waiting) > 0 && b.mu.used+b.mu.waiting[0].n <= b.size {
		c := b.mu.waiting[0]
		b.mu.waiting = b.mu.waiting[1:]
		b.mu.used += c.n
		close(c.granted)
	}
}

// used returns the bytes taken.
func (b *budget) used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.used
}
