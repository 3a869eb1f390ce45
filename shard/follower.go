package shard

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Reads at a replica that does not lead (decision 0018). Intake (readHere): what the caller believes of the shard is
// checked; a read that accepts an old state is done at once if its age can be proved. Ask: all waiting reads of the
// replica share one question to the leader's store; the questions of all replicas travel together. Confirm: the leader
// answers with its commit index, by lease or by a round to the quorum, exactly as for a read of its own. Wait: until that
// index is applied here. Then the waiter is completed, and its owner calls Store.Read, which opens the view and then
// checks descriptor, freeze and removal, as at the leader (V6).
//
// Why the index is enough: it is at least that of every write of this shard that was acknowledged, and of every split,
// freeze and merge of it that anybody has acted on, before the question was asked (V5). Where this replica stands in
// the configuration by now does not matter: it is the same log.
//
// Proof of age. "The leader confirmed index i to a question that was asked when this store's clock stood at t, and i is
// applied here" means that every write acknowledged before t is in the state. A read that arrives at now may be served
// from it with a bound d if now - t <= d, less what two clocks may differ in rate. Only the moment before the question
// left counts, never that of the answer, and only a question: a heartbeat may have been under way for any length of
// time, and come from a leader that is none any more. The proof is in memory only, of one replica object: a restart or
// a snapshot begins without one.

// IndexAsker asks the store that leads a shard for a read index (wire.OpReadIndex; start is the start of the shard).
// AskIndex never blocks. It calls done at most once, from any goroutine, maybe before it returns; an error says that no
// answer came.
type IndexAsker interface {
	AskIndex(to base.StoreID, shard base.ShardID, start []byte, timeout time.Duration, done func(wire.Answer, error))
}

// far is what a replica has to do with the leader for its readers.
type far struct {
	sync.Mutex
	ended *wire.Answer  // what to tell who comes too late; nil: the replica lives
	open  *ask          // the question under way, nil if none is
	next  []ReadRequest // for the question after it
	rest  time.Duration // no question ahead of need before this moment

	fresh atomic.Pointer[freshness] // nil: nothing can be proved
}

// ask is one question for a read index.
type ask struct {
	r      *replica
	at     time.Duration // on Clock.Boot, before it left
	hinted bool          // it was sent on to where the first answer pointed
	reqs   []ReadRequest // guarded by far; nil once somebody has taken them
}

// freshness is what can be proved about the age of the state. Values are never changed once published.
type freshness struct {
	latest, before confirmation // before was applied when latest came
}

// confirmation says that every write acknowledged before at has an index of at most index.
type confirmation struct {
	index uint64
	at    time.Duration
}

// indexPause is how long a question that failed keeps others from being asked ahead of need.
const indexPause = 100 * time.Millisecond

// within reports whether an age counted by one clock is at most d by any other: their rates differ by up to 5 %, the
// bound that leases go by.
func within(age, d time.Duration) bool { return age <= d-d/20 }

// age returns how old the state may be that has applied up to an index; ok is false if nothing is known.
func (f *freshness) age(applied uint64, now time.Duration) (age time.Duration, ok bool) {
	switch {
	case f == nil:
		return 0, false
	case f.latest.index <= applied:
		return now - f.latest.at, true
	case f.before.index > 0:
		return now - f.before.at, true
	}
	return 0, false
}

// noteFresh takes a confirmed index: the question was asked not before at.
func (r *replica) noteFresh(index uint64, at time.Duration) {
	r.far.Lock()
	defer r.far.Unlock()
	f := freshness{latest: confirmation{index, at}}
	if old := r.far.fresh.Load(); old != nil {
		if old.latest.at >= at {
			return
		}
		f.before = old.before
		if old.latest.index <= r.applied.Load() {
			f.before = old.latest
		}
	}
	r.far.fresh.Store(&f)
}

// readHere takes a read that any replica may serve. It returns false if the leader's way is open and this store leads.
func (s *Store) readHere(r *replica, req *ReadRequest, now time.Duration) bool {
	a := wire.Answer{Code: wire.OK}
	have := r.desc.Load().Epoch.Version
	why, bad := r.faultReason()
	switch {
	case bad:
		a = answerText(wire.Failed, why)
	case have > req.Version:
		a = r.epochMismatch(req.Key, req.End)
	case r.frozen.Load() != nil:
		a = s.frozenAnswer()
	case req.MaxAge > 0 && have == req.Version && r.provesAge(req.MaxAge, now):
		s.metrics.followerReads.WithLabelValues("proved").Inc()
		s.metrics.readyReads.Inc()
	case r.lead.Load().leads:
		return false
	case s.cfg.Indexes == nil:
		a = r.notLeader()
	default:
		// An older descriptor than the caller's is no reason to refuse: what it has heard of may be applied with the index.
		s.askFor(r, req, now)
		return true
	}
	if a.Code != wire.OK {
		s.metrics.refused(a.Code)
	}
	r.complete(req.Waiter, req.Req, a)
	return true
}

// provesAge reports whether the applied state is at most d old, as of now. If that will not be so for much longer, it
// asks the leader, so that the next readers need not wait.
func (r *replica) provesAge(d, now time.Duration) bool {
	age, ok := r.far.fresh.Load().age(r.applied.Load(), now)
	if !ok || !within(age, d) {
		return false
	}
	if s := r.store; age > d/2 && s.cfg.Indexes != nil && !r.lead.Load().leads {
		r.far.Lock()
		var q *ask
		if r.far.open == nil && r.far.ended == nil && now >= r.far.rest {
			q = r.beginAskLocked()
		}
		r.far.Unlock()
		s.send(q)
	}
	return true
}

// askFor queues a read until the leader has told an index that was confirmed after now.
func (s *Store) askFor(r *replica, req *ReadRequest, now time.Duration) {
	req.Deadline = s.deadline(req.Deadline, now)
	if a, ok := r.countRead(); !ok {
		s.metrics.refused(a.Code)
		r.complete(req.Waiter, req.Req, a)
		return
	}
	r.far.Lock()
	if ended := r.far.ended; ended != nil {
		r.far.Unlock()
		r.completeReads([]ReadRequest{*req}, *ended)
		return
	}
	r.far.next = append(r.far.next, *req)
	var q *ask
	if r.far.open == nil {
		q = r.beginAskLocked()
	}
	r.far.Unlock()
	s.send(q)
}

// beginAskLocked makes the question of all reads that wait. far is locked.
func (r *replica) beginAskLocked() *ask {
	q := &ask{r: r, at: r.store.clock.Boot(), reqs: r.far.next}
	r.far.open, r.far.next = q, nil
	return q
}

// send lets a question go; nil is none. No lock is held.
func (s *Store) send(q *ask) {
	if q == nil {
		return
	}
	to := q.r.lead.Load().store
	if to == 0 || to == s.cfg.Store {
		s.answerAsk(q, wire.Answer{Code: wire.NotLeader}, nil)
		return
	}
	s.sendTo(to, q)
}

func (s *Store) sendTo(to base.StoreID, q *ask) {
	r := q.r
	s.asks.add(q)
	s.cfg.Indexes.AskIndex(to, r.shard, r.desc.Load().Start, s.cfg.IndexTimeout, func(a wire.Answer, err error) {
		s.asks.drop(q)
		lead := base.StoreID(a.Arg)
		if err == nil && a.Code == wire.NotLeader && lead != 0 && lead != s.cfg.Store && lead != to && !q.hinted {
			q.hinted = true // it knows better than this replica
			s.sendTo(lead, q)
			return
		}
		s.answerAsk(q, a, err)
	})
}

// answerAsk takes what became of a question.
func (s *Store) answerAsk(q *ask, a wire.Answer, err error) {
	r := q.r
	if err != nil {
		a = answerText(wire.Unavailable, fmt.Sprintf("the leader of %s cannot be asked: %s", r.shard, err))
	}
	s.metrics.indexAsks.WithLabelValues(a.Code.String()).Inc()
	if a.Code == wire.OK {
		r.noteFresh(a.Arg, q.at) // good also if nobody waits for it any more
	}
	reqs := s.endAsk(q, a.Code != wire.OK)
	if a.Code != wire.OK {
		r.completeReads(reqs, forReader(a))
		return
	}
	if len(reqs) == 0 {
		return
	}
	s.metrics.followerReads.WithLabelValues("asked").Add(float64(len(reqs)))
	if a.Arg > r.applied.Load() {
		s.asks.watch(r) // before they are put where the watcher looks
	}
	r.awaitApplied(a.Arg, reqs)
}

// endAsk closes a question, begins the next one if reads wait for it, and returns the reads of this one.
func (s *Store) endAsk(q *ask, failed bool) []ReadRequest {
	r := q.r
	r.far.Lock()
	reqs := q.reqs
	q.reqs = nil
	var next *ask
	if r.far.open == q {
		r.far.open = nil
		if failed {
			r.far.rest = s.clock.Boot() + indexPause
		}
		if len(r.far.next) > 0 {
			next = r.beginAskLocked()
		}
	}
	r.far.Unlock()
	s.send(next)
	return reqs
}

// forReader is the leader's refusal as a reader at this store is told it.
func forReader(a wire.Answer) wire.Answer {
	switch a.Code {
	case wire.ShardNotFound: // there, not here
		return wire.Answer{Code: wire.NotLeader}
	case wire.Invalid, wire.Failed:
		return answerText(wire.Unavailable, fmt.Sprintf("the leader answered %s: %s", a.Code, a.Payload))
	}
	return wire.Answer{Code: a.Code, Arg: a.Arg, Payload: a.Payload}
}

// answerIndexes completes the requests that asked for the index alone and returns the others.
func (r *replica) answerIndexes(index uint64, reqs []ReadRequest) []ReadRequest {
	first := 0
	for first < len(reqs) && !reqs[first].IndexOnly {
		first++
	}
	if first == len(reqs) {
		return reqs
	}
	rest := reqs[:first]
	var done []ReadRequest
	for i := first; i < len(reqs); i++ {
		if reqs[i].IndexOnly {
			done = append(done, reqs[i])
		} else {
			rest = append(rest, reqs[i])
		}
	}
	clear(reqs[len(rest):])
	if r.noticing.Load() { // somebody waits for them there
		r.store.call(r, func(r *replica) { r.store.workerOf(r.shard).sendNotices(r) })
	}
	r.completeReads(done, wire.Answer{Code: wire.OK, Arg: index})
	return rest
}

// endFar answers the reads that wait for an index at a replica that has ended.
func (r *replica) endFar(a wire.Answer) {
	r.far.Lock()
	reqs := r.far.next
	if q := r.far.open; q != nil {
		reqs = append(reqs, q.reqs...)
		q.reqs = nil
	}
	r.far.ended, r.far.open, r.far.next = &a, nil, nil
	r.far.fresh.Store(nil)
	r.far.Unlock()
	r.completeReads(reqs, a)
}

// asks are the questions under way and the replicas whose reads wait for apply: what the store looks at with each tick,
// since followers that sleep are not ticked.
type asks struct {
	mu struct {
		sync.Mutex
		open    map[*ask]struct{}
		waiting map[*replica]struct{}
	}
}

func (a *asks) init() {
	a.mu.open, a.mu.waiting = make(map[*ask]struct{}), make(map[*replica]struct{})
}

func (a *asks) add(q *ask) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.open[q] = struct{}{}
}

func (a *asks) drop(q *ask) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.mu.open, q)
}

func (a *asks) watch(r *replica) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.waiting[r] = struct{}{}
}

// tickAsks gives up questions without an answer and reads past their deadline.
func (s *Store) tickAsks() {
	now := s.clock.Boot()
	var late []*ask
	var waiting []*replica
	s.asks.mu.Lock()
	for q := range s.asks.mu.open {
		if now-q.at >= s.cfg.IndexTimeout {
			late = append(late, q)
			delete(s.asks.mu.open, q)
		}
	}
	for r := range s.asks.mu.waiting {
		waiting = append(waiting, r)
		delete(s.asks.mu.waiting, r)
	}
	s.asks.mu.Unlock()
	for _, q := range late {
		s.metrics.indexAsks.WithLabelValues("none").Inc()
		reqs := s.endAsk(q, true)
		q.r.completeReads(reqs, answerText(wire.TimedOut, "the leader did not answer"))
	}
	for _, r := range waiting {
		if r.sweepWaiting(now) {
			s.asks.watch(r)
		}
	}
}
