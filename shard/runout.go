package shard

import (
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
// come one after the other: ranks go round with the shard's id, so that the leaderships of a lost store end up evenly on
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
)

// pendingRunOut is a follower that is to stand for election.
type pendingRunOut struct {
	r     *replica
	id    uint64        // replicaWorker.runOutID: another one means that there is no reason any more
	term  uint64        // raft's, when it was queued
	lost  base.StoreID  // that led it, or 0
	since time.Duration // its first turn
}

// pendingWake is a sleeping replica that is to wake up.
type pendingWake struct {
	r     *replica
	store base.StoreID // because of a follower on it, 0: in any case
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
	if rw.disposed || rw.rn == nil || p == nil || p.store != from || p.term > term {
		return
	}
	if rw.still || rw.inflight {
		// Not now: raft is somebody else's, or a Ready is under way. What binds it is gone, the rest is for the run-out.
		r.promised.Store(&promise{store: p.store, replica: p.replica, term: p.term})
	} else {
		w.runOut(r)
	}
	// Whoever gives up has most often met a candidate or a leader of a later term, of which this replica has not heard yet: a
	// transfer's target above all. It would only be disturbed.
	if rw.runOutID == 0 {
		w.queueAt(r, from, w.now+w.rankTime())
	}
}

// queueRunOut has a follower stand for election in its turn, unless it is about to.
func (w *worker) queueRunOut(r *replica, lost base.StoreID) {
	rw := &r.worker
	if rw.runOutID != 0 || rw.disposed || rw.rn == nil {
		return
	}
	w.queueAt(r, lost, w.now)
}

func (w *worker) queueAt(r *replica, lost base.StoreID, since time.Duration) {
	w.runOutIDs++
	r.worker.runOutID = w.runOutIDs
	w.runOuts = append(w.runOuts, pendingRunOut{
		r: r, id: w.runOutIDs, term: r.worker.term, lost: lost, since: since,
	})
	w.runOutsPeak = max(w.runOutsPeak, len(w.runOuts))
}

// queueWake has a replica that sleeps wake up, if there still is reason when it is its turn.
func (w *worker) queueWake(r *replica, store base.StoreID) {
	if rw := &r.worker; !rw.awake && !rw.waking {
		rw.waking = true
		w.wakes = append(w.wakes, pendingWake{r, store})
	}
}

// fire wakes those whose turn it is, as far as the tick's batch goes.
func (w *worker) fire() {
	if len(w.runOuts)+len(w.wakes) == 0 {
		return
	}
	keep := w.runOuts[:0]
	for _, p := range w.runOuts {
		if w.fired < w.fireBatch {
			if done, cost := w.fireRunOut(&p); done {
				w.fired += cost
				continue
			}
		}
		keep = append(keep, p)
	}
	clear(w.runOuts[len(keep):])
	if w.runOuts = keep; len(keep) == 0 {
		w.runOutsPeak = 0
	}
	waiting := w.wakes[:0]
	for _, p := range w.wakes {
		if w.fired >= w.fireBatch {
			waiting = append(waiting, p)
			continue
		}
		p.r.worker.waking = false
		if w.mustWake(&p) {
			w.fired++
			w.wake(p.r)
			if p.r.worker.leads { // a heartbeat at once
				p.r.worker.ticks = max(p.r.worker.ticks, w.store.cfg.HeartbeatTick)
			}
			w.activate(p.r)
		}
	}
	clear(w.wakes[len(waiting):])
	w.wakes = waiting
}

// fireRunOut looks at one follower: done if it has had its turn, or there is no reason for one any more.
func (w *worker) fireRunOut(p *pendingRunOut) (done bool, cost int) {
	r := p.r
	rw := &r.worker
	// Again: support, term and leader may have changed since (V13).
	if rw.disposed || rw.rn == nil || rw.runOutID != p.id {
		return true, 0
	}
	if rw.leads || rw.term != p.term || r.bound(w.now) != nil {
		rw.runOutID = 0
		w.wake(r) // whatever it is about, it goes on by its own clock
		return true, 0
	}
	if w.now < p.since {
		return false, 0
	}
	rank, ok := w.rank(r, p.lost)
	if ok && w.now < p.since+time.Duration(rank)*w.rankTime() {
		return false, 0
	}
	rw.runOutID = 0
	rw.stand = standUp
	if !ok || w.restrained(r) {
		rw.stand = standBack
	}
	rw.retries, rw.retryIn = 0, 0
	w.store.metrics.runOuts.Inc()
	w.wake(r)
	w.activate(r)
	return true, 1
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
	return (self + int(uint64(r.shard)%uint64(n))) % n, true
}

// mustWake reports whether there is reason to wake a replica.
func (w *worker) mustWake(p *pendingWake) bool {
	r := p.r
	rw := &r.worker
	switch {
	case rw.disposed || rw.rn == nil || rw.awake:
		return false
	case p.store == 0:
		return true
	case !rw.leads:
		return false
	}
	held := w.store.live.Held(p.store)
	if held == nil || held.Until <= w.now {
		return r.leaseAt(w.now) == nil // one that is gone does not matter while a quorum is there
	}
	lacks := false
	last, commit := r.lastIndex(), r.commit.Load()
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if rid := base.ReplicaID(id); rid != r.id && r.storeOf(rid) == p.store {
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

// letsPass looks at a vote that no promise forbids, at a replica that may be about to campaign itself. It is dropped if this
// one goes first.
func (w *worker) letsPass(r *replica, m *inMessage) bool {
	rw := &r.worker
	if r.promised.Load() != nil {
		w.runOut(r)
	}
	if rw.runOutID != 0 && rw.term < m.msg.Term {
		// Somebody was quicker; the own turn comes if that leads to nothing.
		w.queueAt(r, 0, w.now+w.rankTime())
	}
	if m.msg.Type != raftpb.MsgPreVote || rw.retries == 0 || rw.rn.BasicStatus().RaftState != raft.StatePreCandidate {
		return true
	}
	_, last := rw.log.Bounds()
	term, err := rw.log.Term(last)
	switch {
	case err != nil || m.msg.LogTerm < term || m.msg.LogTerm == term && m.msg.Index < last:
		return true // raft tells it that it cannot win
	case m.msg.LogTerm == term && m.msg.Index == last && !r.prefers(base.ReplicaID(m.msg.From)):
		return false
	}
	rw.yielding = rankTicks // as long as it would take to go after the other
	return true
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
		at := (i + int(uint64(r.shard)%uint64(n))) % n
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
