package leasemodel

import (
	"cmp"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/liveness"
)

// support is a store's end of the store-level protocol: the real Monitor. What the Monitor sends and reports is
// collected and then acted on in a fixed order, since it walks its peers in any.
type support struct {
	st   *store
	mon  *liveness.Monitor
	busy bool
	sent []body
	said []hint
}

type body struct {
	to      base.StoreID
	payload []byte
}

// hint is one call back from the Monitor.
type hint struct {
	store base.StoreID
	kind  int
	epoch uint64
	items []liveness.Group
}

const (
	lapse = iota
	fresh
	again
	released
)

// boot is a store's clock, as the Monitor reads it.
type boot struct{ st *store }

func (b boot) Boot() time.Duration { return b.st.clock() }
func (boot) Wall() time.Time       { return time.Time{} }

func newSupport(st *store) *support {
	s := &support{st: st}
	w := st.w
	cfg := liveness.Config{
		Store: st.id, Incarnation: st.life, Promise: promise, Margin: margin, Interval: beat,
		CheckInterval: -1, Clock: boot{st},
		Send: func(to base.StoreID, payload []byte) { s.sent = append(s.sent, body{to, payload}) },
		OnLapse: func(store base.StoreID, epoch uint64) {
			s.said = append(s.said, hint{store: store, kind: lapse, epoch: epoch})
		},
		OnSupport: func(store base.StoreID, epoch uint64, isFresh bool) {
			kind := again
			if isFresh {
				kind = fresh
			}
			s.said = append(s.said, hint{store: store, kind: kind, epoch: epoch})
		},
		OnReleased: func(from base.StoreID, items []liveness.Group) {
			s.said = append(s.said, hint{store: from, kind: released, items: items})
		},
		Leads: func(g liveness.Group) bool {
			r := st.replica(g.Shard)
			return r != nil && r.leads == g.Term
		},
	}
	if st.life > 1 {
		cfg.Recorded = promise
	}
	if w.without(Margin) {
		cfg.Margin = 0
	}
	s.mon = liveness.New(cfg)
	var peers []base.StoreID
	for id := range w.stores {
		peers = append(peers, base.StoreID(id+1))
	}
	s.mon.SetPeers(peers)
	return s
}

func (s *support) tick() {
	s.mon.Tick(s.st.clock())
	s.flush()
}

// ask is V8's check: do the stores that this one's replicas are bound to still lead them?
func (s *support) ask() {
	for _, peer := range s.st.w.stores {
		var gs []liveness.Group
		for _, r := range s.st.replicas {
			if r.promise.store == peer.id {
				gs = append(gs, liveness.Group{Shard: r.shard, Term: r.promise.term})
			}
		}
		s.mon.Ask(peer.id, gs)
	}
	s.flush()
}

func (s *support) receive(from base.StoreID, life uint64, payload []byte) {
	s.mon.Receive(from, life, payload)
	s.flush()
}

func (s *support) release(g liveness.Group) {
	var peers []base.StoreID
	for id := range s.st.w.stores {
		if to := base.StoreID(id + 1); to != s.st.id {
			peers = append(peers, to)
		}
	}
	s.mon.Release(peers, g)
	s.flush()
}

// epoch is the one under which this store supports another now; 0: it does not.
func (s *support) epoch(of base.StoreID) uint64 { return s.mon.Epoch(of, s.st.clock()) }

// supports reports whether what was promised under an epoch binds now.
func (s *support) supports(of base.StoreID, epoch uint64) bool {
	return s.mon.Supports(of, epoch, s.st.clock())
}

// held is the epoch under which another store supports this one now; 0: it does not.
func (s *support) held(by base.StoreID) uint64 {
	if h := s.mon.Held(by); h != nil && h.Until > s.st.clock() {
		return h.Epoch
	}
	return 0
}

// flush acts on what the Monitor has collected. Acting may make it report more.
func (s *support) flush() {
	if s.busy {
		return
	}
	s.busy = true
	defer func() { s.busy = false }()
	for len(s.sent) > 0 || len(s.said) > 0 {
		sent, said := s.sent, s.said
		s.sent, s.said = nil, nil
		slices.SortStableFunc(sent, func(a, b body) int { return cmp.Compare(a.to, b.to) })
		slices.SortStableFunc(said, func(a, b hint) int { return cmp.Compare(a.store, b.store) })
		for _, b := range sent {
			s.st.sendBody(b)
		}
		for _, h := range said {
			s.st.takeHint(h)
		}
	}
}

// takeHint wakes the groups that something about stores concerns, each after a while of its own.
func (st *store) takeHint(h hint) {
	w := st.w
	switch h.kind {
	case lapse:
		w.stats.lapses++
	case fresh:
		w.stats.fresh++
	}
	if w.tracing() {
		kind := [...]string{"lapse", "fresh", "again", "released"}[h.kind]
		w.logf("%s: %s of %s, epoch %x %v", st, kind, h.store, h.epoch, h.items)
	}
	for _, r := range st.replicas {
		r := r
		switch h.kind {
		case lapse: // V1
			if p := r.promise; p.store == h.store && p.epoch == h.epoch {
				w.in(w.between(time.Millisecond, 50*time.Millisecond), st, r.runOut)
			}
		case fresh, again: // V2, V12: a new stamp is needed, or what was missed is
			w.in(w.between(time.Millisecond, 50*time.Millisecond), st, func() { r.wake() })
		case released: // V8
			for _, g := range h.items {
				if p := r.promise; g.Shard == r.shard && p.store == h.store && p.term == g.Term {
					r.promise = given{}
					w.in(w.between(time.Millisecond, 50*time.Millisecond), st, r.runOut)
				}
			}
		}
	}
}
