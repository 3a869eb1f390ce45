package node

import (
	"context"
	"time"
)

// Leaving, on SIGTERM. Tell: the node says that it is not ready, and the meta leader hears at once that it should be
// given no leaderships. Hand over: every leadership goes to a voter on a fit node, and what comes back meanwhile too;
// requests are served all along, so that what a client sees of a shard is one election. Stop: streams end, calls finish.
// Whatever is not handed over in time is left to the elections of the others.

// leave hands all leaderships over, within a limit.
func (m *member) leave(ctx context.Context, limit time.Duration) {
	m.n.leaving.Store(true)
	m.n.setHealth(false)
	m.store.PauseLeading(true)
	m.reports.wakeUp()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	from := m.clock.Boot()
	moved, err := m.store.HandOver(ctx)
	took := (m.clock.Boot() - from).Round(time.Millisecond)
	if err != nil {
		m.log.Warn("not all leaderships handed over", "moved", moved, "took", took, "err", err)
		return
	}
	m.log.Info("leaderships handed over", "moved", moved, "took", took)
}
