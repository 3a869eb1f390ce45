package shard

import (
	"math"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/liveness"
)

// Leases: what a leader knows of the promises made to it (rules V2, V3, V4). Count: each answer of a follower carries the
// epoch under which it keeps its promise; the replica is counted while that is the epoch that its store's support has
// now. Publish: the worker puts who may be counted into an immutable lease, and whoever reads asks that lease, on his own
// goroutine, whether a quorum is counted at this moment. Withdraw: the worker takes the lease back before anything leaves
// that could make another leader: a message of a higher term, a vote, the order of a transfer's target to campaign; the
// latter for the rest of the term.
//
// While a lease of term t holds at some moment, no leader of a higher term has been elected before that moment: its
// election would need a vote of a counted replica, which has promised not to give one, or of this leader itself, whose
// lease would be withdrawn; but for the votes that a transfer asks for, which it lets pass, and for which the leader of
// the term before, and so by induction this one, has given its lease up.

// lease is what a leader may count on in one term. It is never changed.
type lease struct {
	term  uint64
	first uint64 // index of the term's first entry: there is no lease before it is applied (V3)
	// halves are the voters of the configuration, two lists in a joint one: a majority of each has to be counted.
	halves [2]leaseHalf
}

type leaseHalf struct {
	voters int          // 0: there is no such half
	self   bool         // this replica is one of them (V13)
	others []leaseVoter // those of the others that have promised
}

// leaseVoter is a replica that keeps its promise while the support of its store is of this epoch.
type leaseVoter struct {
	store base.StoreID
	epoch uint64
}

// holds reports whether a quorum is counted at a moment. Whoever relies on it reads the clock, and loads the lease, after
// what it is to vouch for.
func (l *lease) holds(live *liveness.Monitor, now time.Duration) bool {
	for i := range l.halves {
		h := &l.halves[i]
		if h.voters == 0 {
			continue
		}
		need := h.voters/2 + 1
		if h.self {
			need--
		}
		for j := 0; need > 0 && j < len(h.others); j++ {
			v := &h.others[j]
			if s := live.Held(v.store); s != nil && s.Epoch == v.epoch && s.Until > now {
				need--
			}
		}
		if need > 0 {
			return false
		}
	}
	return true
}

// leaseAt returns the replica's lease if it holds.
func (r *replica) leaseAt(now time.Duration) *lease {
	if l := r.lease.Load(); l != nil && l.holds(r.store.live, now) {
		return l
	}
	return nil
}

// followerStamp is the last stamp of one follower in the term that this replica leads.
type followerStamp struct {
	replica base.ReplicaID
	epoch   uint64        // 0: none yet
	commit  uint64        // what it knew to be committed
	heard   time.Duration // when it last answered anything
}

// leading is what the worker of a leader keeps for its lease.
type leading struct {
	term   uint64
	first  uint64 // index of the first entry of the term; not 0 while this replica leads
	stamps []followerStamp
	gaveUp bool // no lease for the rest of the term (V4)
	since  int  // ticks since then
	again  bool // another transfer was tried since
}

// takeStamp notes that a follower has answered, and what it has promised.
func (w *worker) takeStamp(r *replica, m *inMessage) {
	ld := &r.worker.leading
	if ld.first == 0 || m.msg.Term != ld.term {
		return
	}
	id := base.ReplicaID(m.msg.From)
	at := slices.IndexFunc(ld.stamps, func(s followerStamp) bool { return s.replica == id })
	if at < 0 {
		ld.stamps = append(ld.stamps, followerStamp{replica: id})
		at = len(ld.stamps) - 1
	}
	s := &ld.stamps[at]
	s.heard = w.now
	switch {
	case m.stamp.Epoch < s.epoch:
		return // overtaken on its way, or none
	case m.stamp.Epoch > s.epoch:
		s.epoch, s.commit = m.stamp.Epoch, m.stamp.Commit
	default:
		s.commit = max(s.commit, m.stamp.Commit)
	}
	if s.epoch != 0 && votes(r.worker.conf, uint64(id)) && !r.counts(m.store, s.epoch) {
		w.publishLease(r)
	}
}

// counts reports whether the published lease has a promise already.
func (r *replica) counts(store base.StoreID, epoch uint64) bool {
	l := r.lease.Load()
	if l == nil {
		return false
	}
	for i := range l.halves {
		if slices.Contains(l.halves[i].others, leaseVoter{store, epoch}) {
			return true
		}
	}
	return false
}

// publishLease makes a lease of the configuration and the promises as they are now.
func (w *worker) publishLease(r *replica) {
	rw := &r.worker
	ld := &rw.leading
	if w.store.live == nil || ld.first == 0 || ld.gaveUp {
		return
	}
	if rw.nonvoter {
		r.lease.Store(nil) // V13
		return
	}
	l := &lease{term: ld.term, first: ld.first}
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if base.ReplicaID(id) == r.id || pr.Match < ld.first {
			return // it may not have this leader's log yet
		}
		at := slices.IndexFunc(ld.stamps, func(s followerStamp) bool { return s.replica == base.ReplicaID(id) })
		store := r.storeOf(base.ReplicaID(id))
		if at < 0 || store == 0 {
			return
		}
		for i, half := range [2][]uint64{rw.conf.Voters, rw.conf.VotersOutgoing} {
			if slices.Contains(half, id) {
				l.halves[i].others = append(l.halves[i].others, leaseVoter{store, ld.stamps[at].epoch})
			}
		}
	})
	for i, half := range [2][]uint64{rw.conf.Voters, rw.conf.VotersOutgoing} {
		l.halves[i].voters, l.halves[i].self = len(half), slices.Contains(half, uint64(r.id))
	}
	r.lease.Store(l)
}

// beginLeading starts what goes with a leadership: its first entry is in the Ready that shows it.
func (w *worker) beginLeading(r *replica, term uint64, ents []raftpb.Entry) {
	r.promised.Store(nil) // it follows nobody
	rw := &r.worker
	w.endRunOut(r)
	rw.retries = 0
	rw.leading = leading{term: term, first: math.MaxUint64}
	for i := range ents {
		if ents[i].Term == term {
			rw.leading.first = ents[i].Index
			break
		}
	}
	w.publishLease(r) // it may be the only voter
}

// endLeading takes the lease back and tells the followers' stores that they owe this replica nothing any more (V8). It is
// called before anything of another term leaves.
func (w *worker) endLeading(r *replica, term uint64) {
	r.lease.Store(nil)
	r.worker.leading = leading{}
	r.store.release(r, term)
}

// giveUpLease takes the lease back for the rest of the term, before the target of a transfer is told to campaign (V4).
func (r *replica) giveUpLease() {
	r.lease.Store(nil)
	r.worker.leading.gaveUp = true
}

// release tells the stores of all others that this replica does not lead in a term any more.
func (s *Store) release(r *replica, term uint64) {
	if s.live == nil {
		return
	}
	var to []base.StoreID
	for _, p := range r.worker.peers {
		if p.store != s.cfg.Store && !slices.Contains(to, p.store) {
			to = append(to, p.store)
		}
	}
	s.live.Release(to, liveness.Group{Shard: r.shard, Term: term})
}

// removedBy returns the replicas that a change to a descriptor removes.
func (r *replica) removedBy(d *base.Descriptor) (gone []peer) {
	for _, p := range r.worker.peers {
		if removed(d, p.replica) {
			gone = append(gone, p)
		}
	}
	return gone
}

// removed reports whether a replica was a member before a descriptor, and is none by it; so it will never be one again.
func removed(d *base.Descriptor, id base.ReplicaID) bool {
	_, stays := d.Replica(id)
	return !stays && id < d.NextReplicaID
}

// releaseRemoved tells the stores of replicas that a change has removed that they owe this leader nothing: one that misses
// its removal would wait for it in silence.
func (w *worker) releaseRemoved(r *replica, gone []peer) {
	if w.store.live == nil || !r.worker.leads {
		return
	}
	for _, p := range gone {
		if p.store != w.store.cfg.Store {
			w.store.live.Release([]base.StoreID{p.store}, liveness.Group{
				Shard: r.shard, Term: r.worker.leading.term, Follower: p.replica,
			})
		}
	}
}

// isActive reports whether a follower is there, as far as its leader knows. Raft's own mark of that is renewed by the ticks
// of an awake leader only: one that has slept asks whether the store is there.
func (w *worker) isActive(r *replica, id uint64, pr *tracker.Progress) bool {
	if w.store.live == nil || !pr.RecentActive || base.ReplicaID(id) == r.id {
		return pr.RecentActive
	}
	if s := w.store.live.Held(r.storeOf(base.ReplicaID(id))); s != nil && s.Until > w.now {
		return true
	}
	cfg := &w.store.cfg
	return w.now-r.worker.leading.stampOf(base.ReplicaID(id)).heard <= time.Duration(2*cfg.ElectionTick)*cfg.Tick
}

// tickLeaseless ends the leadership of one that has given its lease up for a transfer that came to nothing: its followers
// keep their promises, for nothing, and its reads cost a round of messages each. It tries one more transfer first, when
// raft has called off the first one; two election timeouts after it gave the lease up it gives up by itself (V4, V8).
func (w *worker) tickLeaseless(r *replica, ticks int) {
	rw := &r.worker
	ld := &rw.leading
	st := rw.rn.BasicStatus()
	if w.store.live == nil || !ld.gaveUp || st.RaftState != raft.StateLeader {
		return
	}
	election := w.store.cfg.ElectionTick
	ld.since += ticks
	switch {
	case ld.since >= 2*election:
		if rw.transfer != nil {
			w.endTransfer(r, reasonLate)
		}
		w.abdicate(r, &st)
	case !ld.again && ld.since >= election/2 && st.LeadTransferee == 0:
		ld.again = true
		failed := base.StoreID(0)
		if rw.transfer != nil {
			failed = rw.transfer.to
			w.endTransfer(r, reasonLate)
		}
		fit := func(s base.StoreID) bool { return s != failed }
		w.startTransfer(r, transferRequest{fit: fit, done: func(uint64, error) {}})
	}
}

// abdicate steps a message of the next term, as if somebody had one already. It names this replica itself as its sender: raft
// wants one that it knows, and there may be no other.
func (w *worker) abdicate(r *replica, st *raft.BasicStatus) {
	w.store.metrics.abdications.Inc()
	w.store.log.Info("leadership given up after a transfer that came to nothing", "replica", r.String(), "term", st.Term)
	self := uint64(r.id)
	_ = r.worker.rn.Step(raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: self, To: self, Term: st.Term + 1})
}

// leaseless counts the leaders here that hold no lease.
func (s *Store) leaseless() (n int) {
	if s.live == nil {
		return 0
	}
	now := s.clock.Boot()
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.mu.replicas {
		if l := r.leaseAt(now); r.lead.Load().leads && (l == nil || r.applied.Load() < l.first) {
			n++
		}
	}
	return n
}
