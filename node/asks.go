package node

import (
	"context"
	"sync"
)

// asks runs questions to other nodes for callers that must not block, such as workers of the store. It takes them from
// the moment it is made; they run once run has begun, and end with its context.
type asks struct {
	mu struct {
		sync.Mutex
		ctx    context.Context // nil: not running
		queued []func(context.Context)
		closed bool
	}
	wg sync.WaitGroup
}

// Add runs f on a goroutine of its own. After the end of run it is dropped.
func (a *asks) Add(f func(context.Context)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.mu.closed:
	case a.mu.ctx == nil:
		a.mu.queued = append(a.mu.queued, f)
	default:
		ctx := a.mu.ctx
		a.wg.Go(func() { f(ctx) })
	}
}

// run lets questions run until ctx ends, and waits for the last of them.
func (a *asks) run(ctx context.Context) {
	a.mu.Lock()
	a.mu.ctx = ctx
	queued := a.mu.queued
	a.mu.queued = nil
	for _, f := range queued {
		a.wg.Go(func() { f(ctx) })
	}
	a.mu.Unlock()
	<-ctx.Done()
	a.mu.Lock()
	a.mu.closed = true
	a.mu.Unlock()
	a.wg.Wait()
}
