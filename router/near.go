package router

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// ReadMode says who may serve a read, and how old a state it accepts. The zero value is a linearizable read at the
// leader.
type ReadMode struct {
	// Follower lets any replica serve the read; it stays linearizable.
	Follower bool
	// MaxAge, if above 0, lets any replica serve the read from a state of at most that age. In whole milliseconds.
	MaxAge time.Duration
}

// Set puts the mode into a Get or Scan.
func (m *ReadMode) Set(op *wire.Op) {
	if m.Follower {
		op.Flags |= wire.FlagFollower
	}
	if m.MaxAge > 0 {
		op.Flags |= wire.FlagStale
		op.MaxAge = uint32(m.MaxAge / time.Millisecond)
	}
}

// A read that any replica may serve is sent to the nearest one first: the one that Config.Near ranks highest, of those a
// follower if the read asked for one, of those a voter, of those each in turn. One that failed a moment ago comes after
// all others. Whoever does not serve it is not asked again; when all have been asked, the read goes on like any other,
// to the leader and wherever the answers point.

// shunFor is how long a node that did not answer, or could not serve, comes last.
const shunFor = 2 * time.Second

// shunned remembers which nodes failed reads a moment ago.
type shunned struct {
	any atomic.Bool // there may be some
	mu  struct {
		sync.Mutex
		until map[base.StoreID]time.Time
	}
}

func (s *shunned) add(id base.StoreID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.until == nil {
		s.mu.until = make(map[base.StoreID]time.Time)
	}
	s.mu.until[id] = time.Now().Add(shunFor)
	s.any.Store(true)
}

func (s *shunned) has(id base.StoreID) bool {
	if !s.any.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.mu.until[id]
	if ok && time.Now().After(until) {
		delete(s.mu.until, id)
		s.any.Store(len(s.mu.until) > 0)
		ok = false
	}
	return ok
}

// maxAsked bounds the replicas that a read asks before it goes to the leader.
const maxAsked = 5

// asked is the part of a flight that knows which replicas it has tried.
type asked struct {
	of     *entry // they are of this one
	spin   uint32 // where this flight begins among equals
	n      int
	stores [maxAsked]base.StoreID
}

func (a *asked) has(id base.StoreID) bool {
	for _, s := range a.stores[:a.n] {
		if s == id {
			return true
		}
	}
	return false
}

// pickNear returns the next replica to ask for a read that any may serve, 0 if all were.
func (r *Router) pickNear(f *flight) base.StoreID {
	a := &f.asked
	if a.of != f.entry {
		*a = asked{of: f.entry, spin: a.spin}
	}
	if a.spin == 0 {
		a.spin = r.spin.Add(1)
	}
	if a.n == maxAsked {
		return 0
	}
	best, equals := 0, uint32(0)
	for i := range f.entry.desc.Replicas {
		switch rank := r.rank(f, &f.entry.desc.Replicas[i]); {
		case rank == 0:
		case equals == 0 || rank > best:
			best, equals = rank, 1
		case rank == best:
			equals++
		}
	}
	if equals == 0 {
		return 0
	}
	turn := a.spin % equals
	for i := range f.entry.desc.Replicas {
		rep := &f.entry.desc.Replicas[i]
		if r.rank(f, rep) != best {
			continue
		}
		if turn == 0 {
			a.stores[a.n] = rep.Store
			a.n++
			return rep.Store
		}
		turn--
	}
	return 0 // somebody has just failed a read, or not any more: the leader serves as well
}

// rank says how good a choice a replica is, the higher the better; 0: it was asked already.
func (r *Router) rank(f *flight, rep *base.ReplicaDesc) int {
	if f.asked.has(rep.Store) {
		return 0
	}
	rank := 1
	if r.cfg.Near != nil {
		rank += 4 * r.cfg.Near(rep.Store)
	}
	if f.call.op.Flags&wire.FlagFollower == 0 || uint64(rep.Store) != f.entry.leader.Load() {
		rank += 2
	}
	if rep.Role != base.RoleLearner {
		rank++
	}
	if r.shunned.has(rep.Store) {
		rank -= 1 << 20
	}
	return rank
}

// near reports whether the attempt went to a replica as such, not to the supposed leader.
func (f *flight) near() bool { return f.call.op.AnyReplica() && !f.led }

// learnNear takes from the answer of a replica what it says about the shard. The next one is asked whatever it says.
func (r *Router) learnNear(f *flight, act action, a *wire.Answer) {
	switch act {
	case follow:
		if lead := base.StoreID(a.Arg); lead != 0 && lead != f.store {
			f.entry.leader.Store(uint64(lead))
		}
	case repair:
		r.insertAll(f.store, a)
	case search:
		f.lookup = true // the replica was moved: later reads should know
	case another:
		if err := f.out.err; !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			r.shunned.add(f.store)
		}
	}
}
