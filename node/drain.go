package node

import (
	"context"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// drainMarks keeps what the meta shard says is kept off which node, and which nodes are leaving, so that answering a
// report reads nothing.
type drainMarks struct {
	mu sync.Mutex
	nodeMarks
	at        time.Duration // Boot time of the marks
	forgotten uint64        // how often
}

// nodeMarks are never changed, only replaced.
type nodeMarks struct {
	modes       map[base.StoreID]placement.DrainMode
	commissions map[base.StoreID]placement.Commission
}

// mode is what is kept off a node: a node that leaves, or has left, gets nothing.
func (n *nodeMarks) mode(id base.StoreID) placement.DrainMode {
	if n.commissions[id] != placement.InCommission {
		return placement.DrainReplicas
	}
	return n.modes[id]
}

// drainMarksFresh is how old a mark may be that is told to a node.
const drainMarksFresh = time.Second

// all returns the marks, at most drainMarksFresh old.
func (d *drainMarks) all(ctx context.Context, dir *placement.Directory, now time.Duration) (nodeMarks, error) {
	d.mu.Lock()
	marks, at, forgotten := d.nodeMarks, d.at, d.forgotten
	d.mu.Unlock()
	if marks.modes != nil && now-at < drainMarksFresh {
		return marks, nil
	}
	marks, err := readMarks(ctx, dir)
	if err != nil {
		return nodeMarks{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.forgotten == forgotten { // else they were read before what made others forget them
		d.nodeMarks, d.at = marks, now
	}
	return marks, nil
}

func readMarks(ctx context.Context, dir *placement.Directory) (out nodeMarks, err error) {
	if out.modes, err = dir.Draining(ctx); err == nil {
		out.commissions, err = dir.Commissions(ctx)
	}
	return out, err
}

// forget makes the next question read the meta shard.
func (d *drainMarks) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.modes = nil
	d.forgotten++
}

// drainMode returns what is kept off a node: none, leaders or replicas; "" if that cannot be read now. For the meta
// leader.
func (m *member) drainMode(ctx context.Context, id base.StoreID) string {
	marks, err := m.jobs.marks.all(ctx, m.dir, m.clock.Boot())
	if err != nil {
		return ""
	}
	return marks.mode(id).String()
}

// obeyDrain does on this node what its mark asks for: as long as there is one, no leaderships. "" changes nothing.
func (m *member) obeyDrain(mode string) {
	if mode == "" || m.n.leaving.Load() {
		return
	}
	paused := mode != placement.DrainNone.String()
	if m.jobs.paused.Swap(paused) == paused {
		return
	}
	m.log.Info("draining", "mode", mode)
	m.store.PauseLeading(paused)
}
