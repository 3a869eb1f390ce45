package shard

import (
	"cmp"
	"math"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/liveness"
)

// What concerns all groups of another store at once, and how they are woken (rules V1, V8, V12). Event: the Monitor says
// that our support of a store has ended, that a store's support of us has begun, or that a store leads a group no more;
// the event goes to the workers, each of which looks through its replicas and queues those that it concerns. Fire: with
// the event and at each tick a worker takes at most fireBatch from its queues, those that were awake first, the rest in
// random order. Check: whether there still is reason, since much may have changed. Then a follower whose leader's store is
// gone runs its election clock out and stands for election; a leader sends a heartbeat.
//
// Two followers of one leader lose its store at about the same time. So that they do not divide the votes, their turns
// come one after the other: ranks differ from shard to shard, so that the leaderships of a lost store end up evenly on
// those that are left. A candidate that comes before the others' support has lapsed is ignored by them, and asks again. Of
// two that ask at the same moment one yields.

const (
	// fireBatch is how many groups a worker wakes per tick: with the default tick 2,500 in a second, each of which costs its
	// members one or two synced writes that share their batches.
	fireBatch = 256
	// rankTicks lie between the turns of two followers, and as many more as the queue is long: an election takes one or two
	// round trips and syncs.
	rankTicks = 3
	// campaignTries is how often a candidate asks again that nobody has answered, every campaignTicks: in all for about as
	// long as two stores' support of a third may end apart.
	campaignTries = 5
	campaignTicks = 2

	never time.Duration = math.MaxInt64
)

// runOut is what a follower waits for that is to stand for election; the zero value: for nothing. It changes in its place,
// so that the queue has one entry of a replica at most.
type runOut struct {
	queued bool
	term   uint64           // raft's, when it was queued
	lost   base.StoreID     // that led it, or 0
	since  time.Duration    // its first turn
	next   bool             // since is its turn, whatever its rank
	let    []base.ReplicaID // the candidates of asked that it has let go first
	asked  uint64           // the term that they asked for
}

// livesOn reports whether a store has a replica of the group.
func (r *replica) livesOn(store base.StoreID) bool {
	return slices.ContainsFunc(r.worker.peers, func(p peer) bool { return p.store == store })
}

// takeRelease ends a promise to a store that does not lead in that term any more, or to which this replica owes nothing: an
// earlier one here that was removed is not this one, which may be counted.
func (w *worker) takeRelease(r *replica, from base.StoreID, g *liveness.Group) {
	if g.Follower != 0 && g.Follower != r.id {
		return
	}
	rw, term := &r.worker, g.Term
	rw.released = releasedBy{from, term, w.now + w.store.live.Promise()}
	p := r.promised.Load()
	if p == nil || p.store != from || p.term > term {
		return
	}
	switch ended := rw.disposed || rw.rn == nil; {
	case ended || rw.still || rw.inflight:
		// Not now: raft is gone, or somebody else's, or a Ready is under way. What binds it is gone, also for the object that
		// takes its place; the rest is for the run-out.
		if r.promised.Store(&promise{store: p.store, replica: p.replica, term: p.term}); ended {
			return
		}
	default:
		w.runOut(r)
	}
	// Whoever gives up has most often met a candidate or a leader of a later term, of which this replica has not heard yet: a
	// transfer's target above all. It would only be disturbed.
	if !rw.runOut.queued {
		w.queueAt(r, from, w.now+w.rankTime())
	}
}

// queueRunOut has a follower stand for election in its turn, unless it is about to.
func (w *worker) queueRunOut(r *replica, lost base.StoreID) {
	rw := &r.worker
	if rw.runOut.queued || rw.disposed || rw.rn == nil {
		return
	}
	w.queueAt(r, lost, w.now)
}

func (w *worker) queueAt(r *replica, lost base.StoreID, since time.Duration) {
	rw := &r.worker
	w.endRunOut(r)
	rw.runOut = runOut{queued: true, term: rw.term, lost: lost, since: since}
	w.runOutDue = min(w.runOutDue, since)
	w.runOutsOpen++
	w.runOutsPeak = max(w.runOutsPeak, w.runOutsOpen)
	if !rw.inRunOuts {
		rw.inRunOuts = true
		w.runOuts = append(w.runOuts, r)
	}
}

// endRunOut makes a replica wait for no turn any more; the queue finds that out when it is looked through.
func (w *worker) endRunOut(r *replica) {
	if !r.worker.runOut.queued {
		return
	}
	r.worker.runOut = runOut{}
	if w.runOutsOpen--; w.runOutsOpen == 0 {
		w.runOutsPeak = 0
	}
}

// queueWake has a replica that sleeps, or rests, wake up, if there still is reason when it is its turn: because of a follower on a
// store, or in any case, which is 0.
func (w *worker) queueWake(r *replica, store base.StoreID) {
	rw := &r.worker
	switch {
	case rw.awake && !rw.rests:
	case !rw.waking:
		rw.waking, rw.wakeFor = true, store
		w.wakes = append(w.wakes, r)
	case rw.wakeFor != store:
		rw.wakeFor = 0 // of several reasons each is enough
	}
}

// pace sets how many are woken until the next tick. A worker that has missed ticks has more to do than it can: elections take
// longer than election timeouts then, leaders step down again before their followers have answered, and each more makes it
// worse. So it wakes fewer, and slowly more once it keeps up.
func (w *worker) pace(ticks int) {
	w.fired = 0
	if ticks > 1 {
		w.held = min(w.held+(w.fireBatch-w.held)/2, w.fireBatch-w.fireBatch/paceLeast)
	} else {
		w.held = max(w.held-w.fireBatch/paceSteps, 0)
	}
}

const (
	// paceLeast is the part of fireBatch that is woken per tick in any case: a sixteenth.
	paceLeast = 16
	// paceSteps is after how many ticks in time the whole batch is woken again.
	paceSteps = 16
)

// mayFire reports whether one more may be woken before the next tick.
func (w *worker) mayFire() bool { return w.fired < w.fireBatch-w.held }

// fire wakes those whose turn it is, as far as the tick's batch goes. It looks through them only if it may be somebody's.
func (w *worker) fire() {
	if len(w.runOuts) > 0 && w.runOutDue <= w.now && w.mayFire() {
		w.fireRunOuts()
	}
	if len(w.wakes) == 0 {
		return
	}
	waiting := w.wakes[:0]
	for _, r := range w.wakes {
		if !w.mayFire() {
			waiting = append(waiting, r)
			continue
		}
		r.worker.waking = false
		if w.mustWake(r, r.worker.wakeFor) {
			w.fired++
			w.wake(r)
			if r.worker.leads { // a heartbeat at once
				r.worker.ticks = max(r.worker.ticks, w.store.cfg.HeartbeatTick)
			}
			w.activate(r)
		}
	}
	clear(w.wakes[len(waiting):])
	w.wakes = waiting
}

// fireRunOuts is fire for those that stand for election.
func (w *worker) fireRunOuts() {
	keep := w.runOuts[:0]
	due := never
	for _, r := range w.runOuts {
		if !w.mayFire() {
			keep = append(keep, r)
			due = w.now // at the next tick
			continue
		}
		at, waits, cost := w.fireRunOut(r)
		w.fired += cost
		if waits {
			keep = append(keep, r)
			due = min(due, at)
		} else {
			r.worker.inRunOuts = false
		}
	}
	clear(w.runOuts[len(keep):])
	w.runOuts, w.runOutDue = keep, due
}

// fireRunOut looks at one follower. It waits, until the time at, unless it has had its turn, or there is no reason for one
// any more.
func (w *worker) fireRunOut(r *replica) (at time.Duration, waits bool, cost int) {
	rw := &r.worker
	if rw.disposed || rw.rn == nil || !rw.runOut.queued {
		w.endRunOut(r)
		return 0, false, 0
	}
	if !w.mayRunOut(r) {
		w.endRunOut(r)
		w.wake(r) // whatever it is about, it goes on by its own clock
		return 0, false, 0
	}
	if at = rw.runOut.since; w.now < at {
		return at, true, 0
	}
	rank, ok := w.rank(r, rw.runOut.lost)
	if ok && !rw.runOut.next {
		if at += time.Duration(rank) * w.rankTime(); w.now < at {
			return at, true, 0
		}
	}
	w.endRunOut(r)
	rw.stand = standUp
	if !ok || w.restrained(r) {
		rw.stand = standBack
	}
	rw.retries, rw.retryIn = 0, 0
	w.store.metrics.runOuts.Inc()
	w.wake(r)
	w.activate(r)
	return 0, false, 1
}

// mayRunOut reports whether there still is reason for a replica to wait for its turn: support, term and leader may have
// changed since it was queued (V13).
func (w *worker) mayRunOut(r *replica) bool {
	rw := &r.worker
	return !rw.leads && rw.term == rw.runOut.term && r.bound(w.now) == nil
}

// rankTime lies between the turns of two followers of one leader.
func (w *worker) rankTime() time.Duration {
	return time.Duration(rankTicks+w.runOutsPeak/w.fireBatch) * w.store.cfg.Tick
}

// rank says how many others go first; not ok if the replica is no voter.
func (w *worker) rank(r *replica, lost base.StoreID) (rank int, ok bool) {
	d := r.desc.Load()
	if d == nil {
		return 0, false
	}
	self, n := -1, 0
	for _, rep := range d.Replicas {
		switch {
		case rep.Role == base.RoleLearner:
			continue
		case rep.Replica == r.id:
			self = n
		case rep.Store == lost || w.store.live.Epoch(rep.Store, w.now) == 0:
			continue // it does not live, as far as we know
		}
		n++
	}
	if self < 0 {
		return 0, false
	}
	return (self + r.turn(n)) % n, true
}

// turn is a number below n that differs from shard to shard, without a pattern: the order of the stores in descriptors goes
// round with the shards of a new cluster, and a turn that did so too would make one store the first in all of them.
func (r *replica) turn(n int) int { return int(uint64(r.shard) * 0x9e3779b97f4a7c15 >> 33 % uint64(n)) }

// mustWake reports whether there is reason to wake a replica, because of a follower on a store or in any case.
func (w *worker) mustWake(r *replica, store base.StoreID) bool {
	rw := &r.worker
	switch {
	case rw.disposed || rw.rn == nil || rw.awake && !rw.rests:
		return false
	case store == 0:
		return true
	case !rw.leads:
		return false
	}
	held := w.store.live.Held(store)
	if held == nil || held.Until <= w.now {
		return r.leaseAt(w.now) == nil // one that is gone does not matter while a quorum is there
	}
	lacks := false
	last, commit := r.lastIndex(), r.commit.Load()
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if rid := base.ReplicaID(id); rid != r.id && r.storeOf(rid) == store {
			s := rw.leading.stampOf(rid)
			lacks = lacks || s.epoch != held.Epoch || s.commit != commit || pr.Match != last
		}
	})
	return lacks
}

// stampOf returns the last stamp of a follower, the zero value if there is none.
func (ld *leading) stampOf(id base.ReplicaID) (s followerStamp) {
	for i := range ld.stamps {
		if ld.stamps[i].replica == id {
			return ld.stamps[i]
		}
	}
	return s
}

// standing is what a replica is to do about an election at its next step.
type standing uint8

const (
	standNot   standing = iota
	standAlone          // campaign, unless it knows a leader
	standUp             // its leader's store is gone: run the clock out, and campaign
	standBack           // the same, and leave it to others to campaign
)

// standNow campaigns if the replica is to and may. It runs within step.
func (w *worker) standNow(r *replica) {
	rw := &r.worker
	st := rw.rn.BasicStatus()
	if st.RaftState == raft.StateLeader || w.store.live != nil && r.bound(w.now) != nil ||
		rw.stand == standAlone && st.Lead != raft.None { // V13: a leader that came first is not disturbed
		rw.stand = standNot
		return
	}
	if w.mustKeepQuiet(r) {
		return // later
	}
	stand := rw.stand
	rw.stand = standNot
	if w.store.live != nil {
		w.runOut(r)
	}
	if stand == standBack {
		return
	}
	if w.store.live != nil {
		rw.retries, rw.retryIn, rw.yielding = campaignTries, 1, 0
	}
	_ = rw.rn.Campaign() // fails only for what raft logs: not promotable, conf change pending
}

// retryCampaign asks again for the votes that nobody has answered: some store may have supported the lost leader for a
// moment longer than this one.
func (w *worker) retryCampaign(r *replica, ticks int) {
	rw := &r.worker
	if rw.retries == 0 && rw.yielding == 0 {
		return
	}
	if rw.rn.BasicStatus().RaftState != raft.StatePreCandidate {
		rw.retries, rw.yielding = 0, 0
		return
	}
	if rw.yielding > 0 {
		if rw.yielding = max(rw.yielding-ticks, 0); rw.yielding == 0 {
			_ = rw.rn.Campaign()
		}
		return
	}
	if rw.retryIn -= ticks; rw.retryIn > 0 {
		return
	}
	rw.retries--
	rw.retryIn = campaignTicks
	_ = rw.rn.Campaign()
}

// refused notes that another voter's log is ahead of a candidate's: where that does not end its pre-candidacy, since others
// have not answered, it asks no more. The other will stand in its turn.
func (w *worker) refused(r *replica, m *inMessage) {
	rw := &r.worker
	if rw.retries > 0 && votes(rw.conf, m.msg.From) && rw.rn.BasicStatus().RaftState == raft.StatePreCandidate {
		rw.retries = 0
	}
}

// letsPass looks at a vote that no promise forbids, at a replica that may be about to campaign itself. It is dropped if this
// one goes first.
func (w *worker) letsPass(r *replica, m *inMessage) bool {
	rw := &r.worker
	if p := r.promised.Load(); p != nil {
		w.runOut(r)
		w.queueRunOut(r, p.store) // the word of the lapse, which is under way, will find nothing to end
	}
	ahead, ok := r.compareLog(&m.msg)
	waits := rw.runOut.queued && rw.term < m.msg.Term
	asks := m.msg.Type == raftpb.MsgPreVote && rw.retries > 0 && rw.rn.BasicStatus().RaftState == raft.StatePreCandidate
	switch {
	case !ok:
		return true
	case ahead < 0:
		w.goNext(r, base.ReplicaID(m.msg.From))
		return true // raft tells it that it cannot win
	case !waits && !asks:
		return true
	case waits:
		w.letGoFirst(r, m)
	}
	if !asks {
		return true
	}
	if ahead == 0 && !r.prefers(base.ReplicaID(m.msg.From)) {
		return false
	}
	rw.yielding = rankTicks // as long as it would take to go after the other
	return true
}

// letGoFirst puts a replica's turn off: somebody who can win was quicker, and it comes if that leads to nothing. It waits
// once for each candidate and term, however often that one asks.
func (w *worker) letGoFirst(r *replica, m *inMessage) {
	o := &r.worker.runOut
	if o.asked < m.msg.Term {
		o.asked, o.let = m.msg.Term, nil
	}
	from := base.ReplicaID(m.msg.From)
	if o.asked > m.msg.Term || slices.Contains(o.let, from) {
		return
	}
	o.let = append(o.let, from)
	o.lost, o.since, o.next = 0, w.now+w.rankTime(), false
	w.runOutDue = min(w.runOutDue, o.since)
}

// goNext brings a replica's turn forward, before those of lower rank: somebody who has had its turn cannot win, since it
// lacks entries that this one has, and with many that wait the next turn is far. What it waits for besides stays, above all
// V12. Of two that learn of it at the same moment one yields.
func (w *worker) goNext(r *replica, from base.ReplicaID) {
	o := &r.worker.runOut
	if !o.queued || o.next || !votes(r.worker.conf, uint64(from)) {
		return
	}
	rank, ok := w.rank(r, o.lost)
	if !ok {
		return
	}
	at := max(w.now, o.since) + time.Duration(max(rank-1, 0)*rankTicks)*w.store.cfg.Tick
	if at < o.since+time.Duration(rank)*w.rankTime() {
		o.next, o.since = true, at
		w.runOutDue = min(w.runOutDue, at)
	}
}

// compareLog says whether a candidate's log is ahead of the replica's own (1), equal (0) or behind it (-1).
func (r *replica) compareLog(m *raftpb.Message) (ahead int, ok bool) {
	_, last := r.worker.log.Bounds()
	term, err := r.worker.log.Term(last)
	return cmp.Or(cmp.Compare(m.LogTerm, term), cmp.Compare(m.Index, last)), err == nil
}

// prefers reports whether another voter goes before this one, of two that campaign at the same moment. All replicas
// of a group agree on that.
func (r *replica) prefers(other base.ReplicaID) bool {
	d := r.desc.Load()
	if d == nil {
		return true
	}
	mine, its := -1, -1
	n := len(d.Replicas)
	for i, rep := range d.Replicas {
		at := (i + r.turn(n)) % n
		switch rep.Replica {
		case r.id:
			mine = at
		case other:
			its = at
		}
	}
	return its >= 0 && its < mine
}

// releasedBy remembers for a while that a store has ceased to lead: its messages of that term, and those before, may still
// come.
type releasedBy struct {
	store base.StoreID
	term  uint64
	until time.Duration
}

func (b *releasedBy) covers(store base.StoreID, term uint64, now time.Duration) bool {
	return b.store == store && term <= b.term && now < b.until
}
