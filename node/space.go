package node

import (
	"context"
	"fmt"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/clock"
)

// Space and damage: what the engine sees of the disk, and what the store does about it.

// spacePoll is the time between looks at the free space; the engine looks at the disk each second itself.
const spacePoll = time.Second

// spaceLoop tells the store how full the disk is, and watches how fast.
func (m *member) spaceLoop(ctx context.Context) {
	every := min(spacePoll, m.n.cfg.Settings.ReportInterval)
	for ctx.Err() == nil {
		level, _, _, _ := m.n.eng.Space() // the engine logs each change, with its numbers
		m.store.SetSpace(level)
		ok, detail := m.store.SyncHealthy()
		m.slow.see(ok, detail, m.clock.Boot())
		pause(ctx, clock.UntilAligned(every))
	}
}

// diskLevel returns ok, low or critical.
func (n *Node) diskLevel() string {
	level, _, _, _ := n.eng.Space()
	return level.String()
}

// spaceHealthy fails when the disk is so full that the node takes no writes, and says so when it is getting there.
func (n *Node) spaceHealthy() (detail string, err error) {
	switch level, free, low, critical := n.eng.Space(); level {
	case engine.SpaceCritical:
		return "", fmt.Errorf("%d bytes are free, %d is the critical limit: the store takes no appends; free space or drain "+
			"the node", free, critical)
	case engine.SpaceLow:
		return fmt.Sprintf("%d bytes are free, %d is the low limit: leaders refuse writes that add bytes", free, low), nil
	}
	return "ok", nil
}

// corrupt is told by the engine of a damaged file with keys from lo to hi: no replica may go on that has any of them.
func (n *Node) corrupt(lo, hi []byte) {
	m := n.member.Load()
	if m == nil {
		return // boot asks for the files that are known then
	}
	if lo == nil && hi == nil {
		m.log.Error("a damaged file of unknown content: the replicas that meet it will stop by themselves")
		return
	}
	stopped := m.store.QuarantineRange(lo, hi, fmt.Sprintf("a file with keys from %x to %x is damaged", lo, hi))
	m.log.Error("damaged file", "lo", fmt.Sprintf("%x", lo), "hi", fmt.Sprintf("%x", hi), "replicas_stopped", stopped)
}

// quarantineKnown stops the replicas that files touch which were found damaged before the member existed.
func (m *member) quarantineKnown() {
	for _, f := range m.n.eng.CorruptFiles() {
		m.n.corrupt(f.Lo, f.Hi)
	}
}

func millis(ms uint64) time.Duration { return time.Duration(ms) * time.Millisecond }
