package snapshotter

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
)

// Phase is where a snapshot stands.
type Phase uint8

// Phases in their order. The sender sees Verifying as a part of Streaming.
const (
	Waiting    Phase = iota // for a sending slot, or to be asked again
	Reserving               // for the receiver's grant
	Streaming               // data moves
	Verifying               // everything has been received; the last chunks are checked and written
	Installing              // Target.InstallSnapshot runs
	numPhases
)

// String returns the lower-case word.
func (p Phase) String() string {
	switch p {
	case Waiting:
		return "waiting"
	case Reserving:
		return "reserving"
	case Streaming:
		return "streaming"
	case Verifying:
		return "verifying"
	}
	return "installing"
}

// Progress is one snapshot as this end sees it.
type Progress struct {
	Shard              base.ShardID
	FromStore, ToStore base.StoreID
	ToReplica          base.ReplicaID
	Sending            bool // this store is the sender
	Phase              Phase
	Done, Total        uint64  // bytes of chunks sent or received; Total is an estimate and never below Done
	Rate               float64 // bytes per second, over the last seconds
	Elapsed            time.Duration
	Priority           Priority
}

// Progress returns all snapshots of this store, sent and received, waiting ones included; sorted by shard.
func (s *Service) Progress() []Progress {
	var out []Progress
	for _, m := range s.meters() {
		out = append(out, m.progress())
	}
	slices.SortFunc(out, func(a, b Progress) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.ToStore, b.ToStore),
			cmp.Compare(a.ToReplica, b.ToReplica))
	})
	return out
}

// rateWindow is the time constant of the moving rate.
const rateWindow = 5 * time.Second

// meter counts one snapshot's bytes and the time of each phase. Safe for concurrent use.
type meter struct {
	clock clock.Clock
	fixed Progress // identity; the counted fields are below

	mu struct {
		sync.Mutex
		start, entered time.Duration // boot time: of the snapshot, of the phase
		phase          Phase
		spent          [numPhases]time.Duration
		done, total    uint64

		rate   float64 // decayed sum of bytes over rateWindow, per second
		rateAt time.Duration
		moving time.Duration // when the first byte moved
		moved  bool
	}
}

func newMeter(c clock.Clock, fixed Progress) *meter {
	m := &meter{clock: c, fixed: fixed}
	now := c.Boot()
	m.mu.start, m.mu.entered = now, now
	m.mu.total = fixed.Total
	return m
}

// enter ends the current phase and starts another.
func (m *meter) enter(p Phase) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Boot()
	m.mu.spent[m.mu.phase] += now - m.mu.entered
	m.mu.phase, m.mu.entered = p, now
}

// spent returns the seconds of each phase so far.
func (m *meter) spent() [numPhases]time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.mu.spent
	out[m.mu.phase] += m.clock.Boot() - m.mu.entered
	return out
}

func (m *meter) setTotal(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.total = n
}

// setDone moves the count to where a resumed stream starts, without a rate.
func (m *meter) setDone(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.done = n
}

// add counts bytes that moved.
func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Boot()
	if !m.mu.moved {
		m.mu.moved, m.mu.moving, m.mu.rateAt = true, now, now
	}
	m.mu.done += uint64(n)
	m.mu.rate = m.decayedLocked(now) + float64(n)/rateWindow.Seconds()
	m.mu.rateAt = now
}

func (m *meter) decayedLocked(now time.Duration) float64 {
	return m.mu.rate * math.Exp(-float64(now-m.mu.rateAt)/float64(rateWindow))
}

func (m *meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Boot()
	p := m.fixed
	p.Phase, p.Done, p.Total = m.mu.phase, m.mu.done, max(m.mu.total, m.mu.done)
	p.Elapsed = now - m.mu.start
	if m.mu.moved && m.mu.phase == Streaming {
		// The sum is short of what it decays from until a window has passed.
		if full := 1 - math.Exp(-float64(now-m.mu.moving)/float64(rateWindow)); full > 0.01 {
			p.Rate = m.decayedLocked(now) / full
		}
	}
	return p
}
