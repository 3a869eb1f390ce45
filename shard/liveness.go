package shard

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/liveness"
)

// What the Monitor says about whole stores, on its way to the workers. Each worker looks through its replicas and queues
// those that an event concerns (runout.go).

// liveEvent is something that a store has to say about many groups.
type liveEvent struct {
	kind   liveEventKind
	store  base.StoreID
	epoch  uint64
	groups []liveness.Group // released: those of this worker
}

type liveEventKind uint8

const (
	storeLapsed   liveEventKind = iota // our support of it
	storeSupports                      // its support of us
	storeLost                          // its support of us is over
	groupsReleased
	rouse // all that sleep have to look around
)

// Liveness hands what another store says of itself to the Monitor; the transport calls it.
func (s *Store) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	if s.live != nil {
		s.live.Receive(from, incarnation, payload)
	}
}

// PeerStores returns the other stores that have a replica of a shard of this store, ascending: those with which it
// exchanges beats. It looks through the descriptors only if one has changed since the last call.
func (s *Store) PeerStores() []base.StoreID {
	p := &s.peers
	p.Lock()
	defer p.Unlock()
	changes := p.changes.Load() // before the look
	if p.known && p.seen == changes {
		return p.stores
	}
	found := map[base.StoreID]bool{}
	s.mu.RLock()
	for _, r := range s.mu.replicas {
		d := r.desc.Load()
		if d == nil {
			continue // it has heard from its leader, and that store from its own descriptor
		}
		for i := range d.Replicas {
			found[d.Replicas[i].Store] = true
		}
	}
	s.mu.RUnlock()
	delete(found, s.cfg.Store)
	p.stores, p.seen, p.known = slices.Sorted(maps.Keys(found)), changes, true
	return p.stores
}

// peerStores is what PeerStores found, and whether it still is so.
type peerStores struct {
	changes atomic.Uint64 // of descriptors, and of the replicas that are here

	sync.Mutex
	stores []base.StoreID // never changed
	seen   uint64         // changes, when they were looked for
	known  bool
}

// changed is called after a descriptor or a replica was published or taken away.
func (p *peerStores) changed() { p.changes.Add(1) }

// OnLapse is what liveness.Config.OnLapse has to call.
func (s *Store) OnLapse(store base.StoreID, epoch uint64) {
	s.tellWorkers(liveEvent{kind: storeLapsed, store: store, epoch: epoch})
}

// OnSupport is what liveness.Config.OnSupport has to call.
func (s *Store) OnSupport(store base.StoreID, _ uint64, _ bool) {
	s.supporters.Lock()
	s.supporters.held[store] = true
	s.supporters.Unlock()
	s.tellWorkers(liveEvent{kind: storeSupports, store: store})
}

// OnReleased is what liveness.Config.OnReleased has to call.
func (s *Store) OnReleased(from base.StoreID, items []liveness.Group) {
	parts := make([][]liveness.Group, len(s.workers))
	for _, g := range items {
		i := s.pool.Worker(uint64(g.Shard))
		parts[i] = append(parts[i], g)
	}
	for i, part := range parts {
		if len(part) > 0 {
			s.workers[i].tell(liveEvent{kind: groupsReleased, store: from, groups: part})
		}
	}
}

// Leads is what liveness.Config.Leads has to call. No leadership binds a replica that was removed: it may not know, if the
// word of that was lost, and would wait in silence for as long as the term lasts. One that the lease may count must not be
// told that, so it goes by the configuration that the lease goes by, which may be behind what is applied.
func (s *Store) Leads(g liveness.Group) bool {
	r := s.lookup(g.Shard)
	if r == nil {
		return false
	}
	// Who asks has stepped a message of this term, and before it left the leadership was published.
	l := r.lead.Load()
	d := r.ruled.Load()
	return l.term == g.Term && l.leader == r.id && (g.Follower == 0 || d == nil || !removed(d, g.Follower))
}

// Follows is what liveness.Config.Follows has to call.
func (s *Store) Follows(store base.StoreID) (out []liveness.Group) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, r := range s.mu.replicas {
		if p := r.promised.Load(); p != nil && p.store == store {
			out = append(out, liveness.Group{Shard: id, Term: p.term, Follower: r.id})
		}
	}
	return out
}

func (s *Store) tellWorkers(e liveEvent) {
	for _, w := range s.workers {
		w.tell(e)
	}
}

// rouse wakes all that sleep, a bounded number at a time: something has changed that replicas look at on their ticks.
func (s *Store) rouse() {
	if s.live != nil {
		s.tellWorkers(liveEvent{kind: rouse})
	}
}

func (w *worker) tell(e liveEvent) {
	w.mu.Lock()
	w.mu.events = append(w.mu.events, e)
	w.mu.Unlock()
	w.store.pool.Enqueue(w.control)
}

// watchSupport finds the stores whose support of us has run out since the last tick.
func (s *Store) watchSupport() {
	if s.live == nil {
		return
	}
	now := s.clock.Boot()
	var lost []base.StoreID
	s.supporters.Lock()
	for store, held := range s.supporters.held {
		if sup := s.live.Held(store); held && (sup == nil || sup.Until <= now) {
			s.supporters.held[store] = false
			lost = append(lost, store)
		}
	}
	s.supporters.Unlock()
	for _, store := range lost {
		s.tellWorkers(liveEvent{kind: storeLost, store: store})
	}
}

// takeEvents queues the replicas that events concern.
func (w *worker) takeEvents(events []liveEvent) {
	for i := range events {
		e := &events[i]
		switch e.kind {
		case groupsReleased:
			for _, g := range e.groups {
				if r := w.byShard[uint64(g.Shard)]; r != nil {
					w.takeRelease(r, e.store, &g)
				}
			}
			continue
		case storeLapsed:
			w.each(func(r *replica) {
				if p := r.promised.Load(); p != nil && p.store == e.store && p.epoch == e.epoch {
					w.queueRunOut(r, e.store)
				}
			})
		default:
			w.each(func(r *replica) {
				switch {
				case e.kind != rouse && (!r.worker.leads || !r.livesOn(e.store)):
				case e.kind == storeSupports && r.worker.awake && !r.worker.rests:
					w.greet(r, e.store)
				default:
					w.queueWake(r, e.store)
				}
			})
		}
	}
	if len(events) > 0 {
		w.fire()
	}
}

// each calls f for the replicas that are neither ended nor uninitialised, in random order, those awake first.
func (w *worker) each(f func(*replica)) {
	all := make([]*replica, 0, len(w.replicas))
	for _, r := range w.replicas {
		if !r.worker.disposed && !r.uninitialised() {
			all = append(all, r)
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	slices.SortStableFunc(all, func(a, b *replica) int { return cmp.Compare(awakeFirst(a), awakeFirst(b)) })
	for _, r := range all {
		f(r)
	}
}

func awakeFirst(r *replica) int {
	if r.worker.awake {
		return 0
	}
	return 1
}
