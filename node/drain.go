package node

import (
	"context"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// drainMarks keeps what the meta shard says is kept off which node, so that answering a report reads nothing.
type drainMarks struct {
	mu    sync.Mutex
	modes map[base.StoreID]placement.DrainMode
	at    time.Duration // Boot time of modes
}

// drainMarksFresh is how old a mark may be that is told to a node.
const drainMarksFresh = time.Second

// all returns the marks, at most drainMarksFresh old.
func (d *drainMarks) all(ctx context.Context, dir *placement.Directory, now time.Duration) (
	map[base.StoreID]placement.DrainMode, error) {
	d.mu.Lock()
	modes, at := d.modes, d.at
	d.mu.Unlock()
	if modes != nil && now-at < drainMarksFresh {
		return modes, nil
	}
	modes, err := dir.Draining(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.modes, d.at = modes, now
	return modes, nil
}

// forget makes the next question read the meta shard.
func (d *drainMarks) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.modes = nil
}

// drainMode returns what is kept off a node: none, leaders or replicas; "" if that cannot be read now. For the meta
// leader.
func (m *member) drainMode(ctx context.Context, id base.StoreID) string {
	modes, err := m.jobs.marks.all(ctx, m.dir, m.clock.Boot())
	if err != nil {
		return ""
	}
	return modes[id].String()
}

// obeyDrain does on this node what its mark asks for: as long as there is one, no leaderships. "" changes nothing.
func (m *member) obeyDrain(mode string) {
	if mode == "" {
		return
	}
	paused := mode != placement.DrainNone.String()
	if m.jobs.paused.Swap(paused) == paused {
		return
	}
	m.log.Info("draining", "mode", mode)
	m.store.PauseLeading(paused)
}
