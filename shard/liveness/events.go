package liveness

import (
	"context"
	"log/slog"

	"github.com/shardd/shardd/internal/base"
)

type eventKind uint8

const (
	begin         eventKind = iota // our support of a store
	lapse                          // its end
	supportGained                  // a store's support of us
	supportLost
	released
	asked
	check
)

// event is a call or a log line that waits until no lock is held.
type event struct {
	kind  eventKind
	store base.StoreID
	epoch uint64
	fresh bool
	why   string
	items []Group
}

func (m *Monitor) eventLocked(e event) { m.mu.events = append(m.mu.events, e) }

// unlock releases mu and delivers what was reported meanwhile. One goroutine delivers at a time, in order; others leave
// theirs to it.
func (m *Monitor) unlock() {
	if m.mu.draining || len(m.mu.events) == 0 {
		m.mu.Unlock()
		return
	}
	m.mu.draining = true
	for len(m.mu.events) > 0 {
		events := m.mu.events
		m.mu.events = nil
		m.mu.Unlock()
		for i := range events {
			m.deliver(&events[i])
		}
		m.mu.Lock()
	}
	m.mu.draining = false
	m.mu.Unlock()
}

func (m *Monitor) deliver(e *event) {
	c := &m.cfg
	switch e.kind {
	case begin:
		m.metrics.epochs.Inc()
		m.say(slog.LevelInfo, "store is supported", e)
	case lapse:
		m.metrics.lapses.WithLabelValues(e.why).Inc()
		m.say(slog.LevelWarn, "store is not supported any more", e)
		if c.OnLapse != nil {
			c.OnLapse(e.store, e.epoch)
		}
	case supportGained:
		m.say(slog.LevelInfo, "store supports us", e)
		if c.OnSupport != nil {
			c.OnSupport(e.store, e.epoch, e.fresh)
		}
	case supportLost:
		m.metrics.losses.WithLabelValues(e.why).Inc()
		m.say(slog.LevelWarn, "store does not support us any more", e)
	case released:
		m.metrics.released.Add(float64(len(e.items)))
		if c.OnReleased != nil {
			c.OnReleased(e.store, e.items)
		}
	case asked:
		m.answer(e)
	case check:
		m.check(e.store)
	}
}

// answer releases what another store believes we lead and we do not.
func (m *Monitor) answer(e *event) {
	m.metrics.asked.Add(float64(len(e.items)))
	if m.cfg.Leads == nil {
		return
	}
	var not []Group
	for _, g := range e.items {
		if !m.cfg.Leads(g) {
			not = append(not, g)
		}
	}
	if len(not) == 0 {
		return
	}
	m.mu.Lock()
	defer m.unlock()
	if p := m.peer(e.store); p != nil {
		m.enqueueLocked(p, &p.releases, not)
	}
}

// say logs one change.
func (m *Monitor) say(level slog.Level, what string, e *event) {
	incarnation, count := SplitEpoch(e.epoch)
	attrs := []any{slog.String("store", e.store.String()), slog.Uint64("incarnation", incarnation),
		slog.Uint64("epoch", count)}
	if e.why != "" {
		attrs = append(attrs, slog.String("reason", e.why))
	}
	m.cfg.Logger.Log(context.Background(), level, what, attrs...)
}
