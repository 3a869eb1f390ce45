package node

import (
	"context"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// watch is one leadership of the driver.
type watch struct {
	*driver
	term    uint64
	ctx     context.Context // ends with the leadership
	wg      sync.WaitGroup  // operators that begin, and transfers
	founded bool            // the making of the cluster has ended
	trimmed time.Duration   // Boot time of the last look for lives of shards that are no more
	trimAt  base.ShardID
}

func (w *watch) d() *driver { return w.driver }

// leads reports whether this node still leads the meta shard at the term.
func (w *watch) leads() bool {
	term, ok := w.m.leadsMeta()
	return ok && term == w.term && w.ctx.Err() == nil
}

// fence takes the right to drive, once for the term.
func (w *watch) fence() error {
	if _, ok := w.held(); ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.ctx, driverRead)
	defer cancel()
	f, err := w.m.dir.TakeFence(ctx, w.term)
	if err != nil {
		return err
	}
	c := &w.m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term == w.term {
		c.driverState.fence, c.driverState.fenced = f, true
	}
	return nil
}

// held returns the fence.
func (w *watch) held() (placement.Fence, bool) {
	c := &w.m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != w.term || c.driverState == nil {
		return placement.Fence{}, false
	}
	return c.driverState.fence, c.driverState.fenced
}

const (
	// lifeKept is how long the life of a shard that was merged away is kept, by the wall clock.
	lifeKept = 7 * 24 * time.Hour
	lifeTrim = time.Hour
)

// writeLives records what happened to shards since the last round.
func (w *watch) writeLives() {
	f, ok := w.held()
	if !ok {
		return
	}
	c := &w.m.plan
	c.mu.Lock()
	var events map[base.ShardID][]placement.LifeEvent
	if c.term == w.term && len(c.driverState.events) > 0 {
		events = c.driverState.events
		c.driverState.events = make(map[base.ShardID][]placement.LifeEvent)
	}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.ctx, driverRead)
	defer cancel()
	if len(events) > 0 {
		if err := w.m.dir.AddLife(ctx, f, events); err != nil && w.ctx.Err() == nil {
			w.m.log.Warn("cannot record the life of shards", "shards", len(events), "err", err)
		}
	}
	now := w.m.clock.Boot()
	if w.trimmed != 0 && now-w.trimmed < lifeTrim && w.trimAt == 0 {
		return
	}
	before := w.m.clock.Wall().Add(-lifeKept).UnixMilli()
	next, err := w.m.dir.TrimLives(ctx, f, uint64(max(before, 0)), w.trimAt)
	if err == nil {
		w.trimmed, w.trimAt = now, next
	}
}
