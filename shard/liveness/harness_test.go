package liveness

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

const ms = time.Millisecond

func dur(n int64) time.Duration { return time.Duration(n) }

// world is some stores, each with its own clock, and a network between them, in virtual real time.
type world struct {
	t      testing.TB
	now    time.Duration // real time, which no store can see
	rng    *rand.Rand
	stores []*testStore
	queue  []*packet
	cut    map[[2]base.StoreID]bool
	net    netFaults
	config func(*Config) // changes every store's Config
}

type netFaults struct {
	drop, duplicate    float64
	minDelay, maxDelay time.Duration
}

type packet struct {
	at          time.Duration
	from, to    base.StoreID
	incarnation uint64
	payload     []byte
}

// testStore is one store; its Monitor goes with its process, its clock stays.
type testStore struct {
	w           *world
	id          base.StoreID
	mon         *Monitor // nil: down
	incarnation uint64
	recorded    time.Duration
	sick        bool
	paused      bool
	inbox       []*packet // came while paused
	nextTick    time.Duration
	sent        int
	log         bytes.Buffer

	// The clock: reading at real time since, and how fast it goes from there.
	reading, since time.Duration
	rate           float64

	events   []string
	released []Group
	leads    map[Group]bool
	ended    map[uint64]bool // epochs reported by OnLapse
}

// Boot implements clock.Clock.
func (s *testStore) Boot() time.Duration {
	return s.reading + time.Duration(float64(s.w.now-s.since)*s.rate)
}

// Wall implements clock.Clock.
func (s *testStore) Wall() time.Time { return time.Unix(0, 0) }

func (s *testStore) setRate(r float64) { s.reading, s.since, s.rate = s.Boot(), s.w.now, r }

func newWorld(t testing.TB, seed uint64, stores int, config func(*Config)) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 5)), cut: map[[2]base.StoreID]bool{}, config: config}
	for i := range stores {
		s := &testStore{w: w, id: base.StoreID(i + 1), rate: 1, reading: time.Duration(w.rng.Int64N(int64(time.Hour))),
			leads: map[Group]bool{}, ended: map[uint64]bool{}}
		w.stores = append(w.stores, s)
	}
	for _, s := range w.stores {
		s.start()
	}
	return w
}

// start gives a store a new life.
func (s *testStore) start() {
	s.incarnation++
	s.paused, s.inbox = false, nil
	cfg := Config{
		Store: s.id, Incarnation: s.incarnation, Promise: 800 * ms, Interval: 100 * ms, Recorded: s.recorded, Margin: 0.05, Clock: s,
		Healthy: func() bool { return !s.sick },
		Logger: slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}})),
		Leads: func(g Group) bool { return s.leads[g] },
		OnLapse: func(store base.StoreID, epoch uint64) {
			if s.ended[epoch] {
				s.w.t.Errorf("%s: epoch %x of %s ended twice", s.id, epoch, store)
			}
			s.ended[epoch] = true
			s.note("lapse %s %s", store, short(epoch))
		},
		OnSupport: func(store base.StoreID, epoch uint64, fresh bool) {
			s.note("support %s %s fresh=%v", store, short(epoch), fresh)
		},
		OnReleased: func(_ base.StoreID, items []Group) { s.released = append(s.released, items...) },
	}
	if s.w.config != nil {
		s.w.config(&cfg)
	}
	life := s.incarnation
	cfg.Send = func(to base.StoreID, payload []byte) {
		s.sent++
		s.w.send(&packet{from: s.id, to: to, incarnation: life, payload: payload})
	}
	s.recorded = max(s.recorded, cfg.Promise)
	s.mon = New(cfg)
	var peers []base.StoreID
	for _, o := range s.w.stores {
		peers = append(peers, o.id)
	}
	s.mon.SetPeers(peers)
	s.nextTick = s.w.now
}

func (s *testStore) kill() { s.mon, s.inbox = nil, nil }

func short(epoch uint64) string {
	return fmt.Sprintf("%d.%d", epoch>>epochBits, epoch&(1<<epochBits-1))
}

func (s *testStore) note(format string, args ...any) {
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// takeEvents returns what was called back since the last call.
func (s *testStore) takeEvents() []string {
	out := s.events
	s.events = nil
	return out
}

func (w *world) send(p *packet) {
	if w.cut[[2]base.StoreID{p.from, p.to}] || w.rng.Float64() < w.net.drop {
		return
	}
	copies := 1
	if w.rng.Float64() < w.net.duplicate {
		copies++
	}
	for range copies {
		q := *p
		q.at = w.now + w.net.minDelay
		if span := w.net.maxDelay - w.net.minDelay; span > 0 {
			q.at += time.Duration(w.rng.Int64N(int64(span)))
		}
		w.queue = append(w.queue, &q)
	}
}

func (w *world) store(id base.StoreID) *testStore { return w.stores[id-1] }

// step moves real time on by d: bodies that are due arrive, stores that run tick.
func (w *world) step(d time.Duration) {
	w.now += d
	slices.SortStableFunc(w.queue, func(a, b *packet) int { return int(a.at - b.at) })
	for len(w.queue) > 0 && w.queue[0].at <= w.now {
		p := w.queue[0]
		w.queue = w.queue[1:]
		if s := w.store(p.to); s.mon != nil && s.paused {
			s.inbox = append(s.inbox, p)
		} else if s.mon != nil {
			s.mon.Receive(p.from, p.incarnation, p.payload)
		}
	}
	for _, s := range w.stores {
		if s.mon == nil || s.paused {
			continue
		}
		for _, p := range s.inbox {
			s.mon.Receive(p.from, p.incarnation, p.payload)
		}
		s.inbox = nil
		select {
		case <-s.mon.wake:
			s.nextTick = w.now
		default:
		}
		if w.now >= s.nextTick {
			s.nextTick = w.now + s.mon.Tick(s.Boot())
		}
	}
}

// run moves time on in steps of a millisecond; after each, check is called, if there is one.
func (w *world) run(d time.Duration, check ...func()) {
	for end := w.now + d; w.now < end; {
		w.step(min(ms, end-w.now))
		for _, c := range check {
			c()
		}
	}
}

// counts says whether holder counts on supporter now.
func (w *world) counts(holder, supporter base.StoreID) bool {
	h := w.store(holder)
	if h.mon == nil {
		return false
	}
	s := h.mon.Held(supporter)
	return s != nil && s.Until > h.Boot()
}

// cutBoth ends, or mends, the traffic between two stores.
func (w *world) cutBoth(a, b base.StoreID, cut bool) {
	w.cut[[2]base.StoreID{a, b}], w.cut[[2]base.StoreID{b, a}] = cut, cut
}

// breach names a pair of which the holder counts on support that the supporter's promise does not back at this moment of
// real time, or nil. A supporter that is down votes for nobody; one that has started again is bound by its silence.
func (w *world) breach() error {
	for _, h := range w.stores {
		for _, s := range w.stores {
			if h == s || s.mon == nil || !w.counts(h.id, s.id) {
				continue
			}
			held := h.mon.Held(s.id)
			if EpochIncarnation(held.Epoch) != s.incarnation {
				if s.mon.QuietUntil() > s.Boot() {
					continue
				}
			} else if s.mon.Supports(h.id, held.Epoch, s.Boot()) {
				continue
			}
			return fmt.Errorf("at %s %s counts on %s for another %s under epoch %s, which has ended (incarnation %d)",
				w.now, h.id, s.id, held.Until-h.Boot(), short(held.Epoch), s.incarnation)
		}
	}
	return nil
}

// wantEvents compares what was called back at a store since the last look, in any order.
func (s *testStore) wantEvents(want ...string) {
	s.w.t.Helper()
	got := s.takeEvents()
	if !maps.Equal(tally(got), tally(want)) {
		s.w.t.Fatalf("%s: events %q, want %q", s.id, got, want)
	}
}

func tally(list []string) map[string]int {
	m := map[string]int{}
	for _, s := range list {
		m[s]++
	}
	return m
}
