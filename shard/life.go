package shard

import (
	"context"
	"slices"
	"sync"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// The life of a replica on a store, as its mark tells it (rule I1):
//
//	absent --message--> uninitialised --snapshot, Create--> initialised --conf change, proof--> removed
//	   \--------------------- snapshot, Create -------------/                the mark stays, ids below it never return
//
// Each arrow is a boundary step. Reserve: nobody else changes the shard, or takes the range, meanwhile. Park: the
// replicas it touches stand still on their own workers, one after the other by shard id: no Ready in flight, apply
// drained (rule I7). Commit: one synced batch, or one ingest. Publish: the maps change, and the worker gets the new
// replica for the old one. A crash before Commit leaves what was there, a crash after it what boot then finds.
//
// A replica object never changes from uninitialised to initialised, nor does a snapshot change the state under one:
// the object is replaced. Whoever still holds the old one finds its inbox closed.
//
// Commit and Publish run on one goroutine of the store, so that neither an ingest nor the sync of a removal holds up
// the groups that share a worker.

// life is the queue of that goroutine.
type life struct {
	wake chan struct{} // capacity 1

	mu struct {
		sync.Mutex
		jobs    []func()
		wanted  []newcomer
		asked   map[base.ShardID]struct{} // in wanted
		early   map[base.ShardID]*early   // messages for replicas that are not there yet
		commits int                       // under way; each brings a job
		closed  bool
	}
}

func (l *life) init() {
	l.wake = make(chan struct{}, 1)
	l.mu.asked = make(map[base.ShardID]struct{})
	l.mu.early = make(map[base.ShardID]*early)
}

func (l *life) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// post queues a job; it is dropped once the store has stopped, when every boundary has been ended.
func (l *life) post(f func()) {
	l.mu.Lock()
	if !l.mu.closed {
		l.mu.jobs = append(l.mu.jobs, f)
	}
	l.mu.Unlock()
	l.signal()
}

func (l *life) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.closed = true
	l.mu.jobs, l.mu.wanted = nil, nil
	clear(l.mu.early)
}

// busy reports whether there is a job, or a disk is about to bring one.
func (l *life) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.mu.closed && (l.mu.commits > 0 || len(l.mu.jobs) > 0 || len(l.mu.wanted) > 0)
}

// pollLife runs what is queued and reports whether anything was.
func (s *Store) pollLife() (worked bool) {
	l := &s.life
	l.mu.Lock()
	jobs, wanted := l.mu.jobs, l.mu.wanted
	l.mu.jobs, l.mu.wanted = nil, nil
	clear(l.mu.asked)
	l.mu.Unlock()
	for _, f := range jobs {
		f()
	}
	if len(wanted) > 0 {
		s.createUninitialised(wanted)
	}
	return len(jobs)+len(wanted) > 0
}

func (s *Store) runLife(ctx context.Context) {
	for ctx.Err() == nil {
		if s.pollLife() {
			continue
		}
		select {
		case <-ctx.Done():
		case <-s.life.wake:
		}
	}
}

// commitBoundary commits a batch synced and then runs f on the life-cycle goroutine. The error is that of an invalid
// batch; nothing is written then. If the disk fails, the process ends and f never runs.
func (s *Store) commitBoundary(b *engine.Batch, f func()) error {
	if err := b.Err(); err != nil {
		b.Close()
		return err
	}
	l := &s.life
	l.mu.Lock()
	l.mu.commits++
	l.mu.Unlock()
	s.engine.CommitAsync(b, func() {
		b.Close()
		l.mu.Lock()
		l.mu.commits--
		if !l.mu.closed {
			l.mu.jobs = append(l.mu.jobs, f)
		}
		l.mu.Unlock()
		l.signal()
	})
	return nil
}

// boundary is one boundary step from its reservation to its outcome.
type boundary struct {
	shards []base.ShardID   // nobody else changes these
	desc   *base.Descriptor // what is about to own its range here, nil for none
	ended  chan struct{}
	done   func(error) // the outcome, called once; nil if nobody waits

	// Guarded by Store.mu.
	held     []*replica // parked for it
	working  bool       // past the point where it can be called off
	finished bool
	behind   []func() // wait for it to end; they run on the life-cycle goroutine
}

func newBoundary(done func(error), d *base.Descriptor, shards ...base.ShardID) *boundary {
	return &boundary{shards: shards, desc: d, ended: make(chan struct{}), done: done}
}

// inTheWayLocked returns a boundary under way that touches one of op's shards or its range.
func (s *Store) inTheWayLocked(op *boundary) *boundary {
	for _, id := range op.shards {
		if o := s.mu.busy[id]; o != nil {
			return o
		}
	}
	if op.desc != nil {
		for _, o := range s.mu.busy {
			if o.desc != nil && o.desc.Overlaps(op.desc) {
				return o
			}
		}
	}
	return nil
}

func (s *Store) reserveLocked(op *boundary) {
	for _, id := range op.shards {
		s.mu.busy[id] = op
	}
}

// begin takes a boundary past the point of no return; false if it was called off.
func (s *Store) begin(op *boundary) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op.finished {
		return false
	}
	op.working = true
	return true
}

// callOff ends a boundary that has not begun to change anything; false if it has, or has ended.
func (s *Store) callOff(op *boundary, err error) bool {
	s.mu.Lock()
	if op.working || op.finished {
		s.mu.Unlock()
		return false
	}
	s.mu.Unlock()
	return s.finish(op, err)
}

// finish lets go of everything a boundary holds and reports its outcome. Only the first call counts.
func (s *Store) finish(op *boundary, err error) bool {
	s.mu.Lock()
	if op.finished {
		s.mu.Unlock()
		return false
	}
	op.finished = true
	for _, id := range op.shards {
		if s.mu.busy[id] == op {
			delete(s.mu.busy, id)
		}
	}
	held, behind := op.held, op.behind
	op.held, op.behind = nil, nil
	s.mu.Unlock()
	for _, r := range held {
		s.unpark(r)
	}
	for _, f := range behind {
		s.life.post(f)
	}
	close(op.ended)
	if op.done != nil {
		op.done(err)
	}
	return true
}

// parkAll parks replicas one after the other, which the caller has sorted by shard id, and then calls f: with false if
// one of them has ended meanwhile. f runs on a worker, or at once; it must not block.
func (s *Store) parkAll(op *boundary, rs []*replica, f func(ok bool)) {
	if len(rs) == 0 {
		f(true)
		return
	}
	r := rs[0]
	s.park(r, func(ok bool) {
		if !ok {
			f(false)
			return
		}
		s.mu.Lock()
		late := op.finished
		if !late {
			op.held = append(op.held, r)
		}
		s.mu.Unlock()
		if late {
			s.unpark(r) // called off meanwhile
			return
		}
		s.parkAll(op, rs[1:], f)
	})
}

// park makes a replica stand still and then calls f on its worker: no Ready is in flight, apply is drained or has halted
// at a boundary entry, and nothing is stepped until unpark. While it stands still, raft and log are whoever's who parked it. A replica that has ended
// calls f with false, maybe at once. One boundary parks a replica at a time: it has reserved the shard.
func (s *Store) park(r *replica, f func(ok bool)) {
	r.in.Lock()
	gone := r.in.gone
	if !gone {
		r.in.park = f
		r.parking.Store(true)
	}
	r.in.Unlock()
	if gone {
		f(false)
		return
	}
	s.pool.Enqueue(uint64(r.shard))
}

// unpark lets a parked replica go on.
func (s *Store) unpark(r *replica) {
	w := s.workerOf(r.shard)
	w.mu.Lock()
	w.mu.released = append(w.mu.released, r)
	w.mu.Unlock()
	s.pool.Enqueue(w.control)
}

// tryPark parks the replica if somebody asks for it and it can stand still now; true means that it must not be stepped.
// It comes with no Ready in flight, or ended.
func (w *worker) tryPark(r *replica) bool {
	if !r.parking.Load() {
		return false
	}
	if !r.handed.rests() {
		r.handed.wanted.Store(true) // apply wakes us
		if !r.handed.rests() {
			return true
		}
	}
	r.in.Lock()
	f := r.in.park
	r.in.park = nil
	r.parking.Store(false)
	r.in.Unlock()
	if f == nil {
		return false
	}
	w.holdStill(r, func() { f(true) })
	return true
}

// tryParkHalted parks a replica whose Ready waits for a conf change behind the boundary entry at which apply has halted.
// Who parks it may hold what the entry's step waits for. The Ready is synced and said, so nothing of it is open but that
// change, which comes once the replica is let go, or never if the replica is replaced.
func (w *worker) tryParkHalted(r *replica) {
	if !r.worker.synced || !r.parking.Load() {
		return
	}
	r.handed.wanted.Store(true) // the halt wakes us
	if r.handed.halted.Load() {
		w.tryPark(r)
	}
}

// holdStill stops the replica and calls f at the end of the pass, when everything that this worker has written about it
// is in the engine's log: what f leads to must come after it.
func (w *worker) holdStill(r *replica, f func()) {
	r.worker.still = true
	w.stopped = append(w.stopped, f)
}

// leaving is a replica that its worker is to end.
type leaving struct {
	r      *replica
	code   wire.Code // for requests that never were proposed
	reason string
	err    error // for who waits for a transfer
}

// retire ends a replica for good on its worker: it was removed, or another object has taken its place.
func (w *worker) retire(l *leaving) {
	r := l.r
	if w.byShard[uint64(r.shard)] == r {
		delete(w.byShard, uint64(r.shard))
		w.replicas = slices.DeleteFunc(w.replicas, func(o *replica) bool { return o == r })
	}
	r.dispose(l.code, l.reason, l.err)
	r.dropHanded(l.reason)
	w.logTotal -= r.worker.logSeen
	r.worker.retired = true
	if r.worker.rn != nil {
		r.worker.log.Close() // its share of the entry cache
		r.worker.rn, r.worker.ready, r.worker.held, r.worker.sending = nil, underWay{}, nil, nil
		r.worker.notices = nil
	}
	r.in.Lock()
	r.in.gone = true
	f := r.in.park
	r.in.park = nil
	r.in.Unlock()
	if f != nil {
		w.stopped = append(w.stopped, func() { f(false) })
	}
}

// publish makes a replica visible to callers and to its worker, in the place of old if there is one.
func (s *Store) publish(r, old *replica, reason string) {
	s.mu.Lock()
	s.publishLocked(r, old, reason)
	s.mu.Unlock()
	s.pool.EnqueueMany([]uint64{s.workerOf(r.shard).control, uint64(r.shard)})
}

func (s *Store) publishLocked(r, old *replica, reason string) {
	s.mu.replicas[r.shard] = r
	s.mu.ranges.add(r)
	s.peers.changed()
	s.note(r)
	if r.doubtful(s.silence()) {
		s.doubt(r)
	}
	delete(s.mu.dead, r.shard)
	w := s.workerOf(r.shard)
	w.mu.Lock()
	defer w.mu.Unlock()
	if old != nil {
		// Not the leader: clients come back and find the new object, or the leader.
		w.mu.left = append(w.mu.left, leaving{r: old, code: wire.NotLeader, reason: reason,
			err: &NotLeaderError{Shard: r.shard}})
	}
	w.mu.created = append(w.mu.created, r)
}
