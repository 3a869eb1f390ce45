package shard

import (
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Promises: what a follower owes its leader (rules V1, V2, V7, V11). Make: the worker steps a message of a leader whose
// store this one supports; from then on the answers to that leader carry the epoch of the support as a stamp. Keep: while
// that epoch lasts the replica is not ticked, does not campaign, and is shown no vote but a leadership transfer's,
// whatever raft itself believes about its leader: raft forgets it on any delayed message of a higher term. End: with the
// epoch, when the leader's store says that it leads no more (V8), or when a leader of a higher term is followed. Raft's
// election clock, which stood still meanwhile, is run out then, so that raft does not go on refusing others.
//
// A promise outlives the replica object: whatever takes the object's place inherits it. It does not outlive the process,
// which keeps quiet at its start for as long as any promise of an earlier life may last.

// promise is never changed once published.
type promise struct {
	store   base.StoreID
	replica base.ReplicaID // the leader
	term    uint64         // in which it leads
	epoch   uint64         // of this store's support of its store
}

// campaignTransfer is the context by which raft marks the votes of a transfer.
const campaignTransfer = "CampaignTransfer"

// bound returns the promise that binds the replica, nil if none does. Only its worker acts on it.
func (r *replica) bound(now time.Duration) *promise {
	p := r.promised.Load()
	if p == nil || !r.store.live.Supports(p.store, p.epoch, now) {
		return nil
	}
	return p
}

// admits reports whether a message may be stepped: it is dropped if it asks the replica for what it may not do now.
func (w *worker) admits(r *replica, m *inMessage) bool {
	switch m.msg.Type {
	case raftpb.MsgVote, raftpb.MsgPreVote:
	case raftpb.MsgPreVoteResp:
		return m.msg.Reject || r.worker.yielding == 0
	default:
		return true
	}
	// The order to campaign is the leader's own, which has given its lease up before (V4); so is what a transfer's
	// candidate then asks for. A vote of a term without such an order cannot have that mark. Leases of terms before that
	// leader's have ended with its election, so that what this store may have promised in an earlier life does not matter.
	if string(m.msg.Context) == campaignTransfer {
		return true
	}
	if w.mustKeepQuiet(r) {
		w.store.metrics.ignoredVotes.WithLabelValues("quiet").Inc()
		return false
	}
	if r.promised.Load() == nil || r.bound(w.now) == nil {
		return w.letsPass(r, m)
	}
	w.store.metrics.ignoredVotes.WithLabelValues("promised").Inc()
	return false
}

// stepped looks at a message that raft has just taken: a leader's makes a promise, an answer may carry one.
func (w *worker) stepped(r *replica, m *inMessage) {
	switch t := m.msg.Type; {
	case fromLeader(t):
		w.follow(r, m)
	case t == raftpb.MsgAppResp || t == raftpb.MsgHeartbeatResp:
		w.takeStamp(r, m)
	case t == raftpb.MsgPreVoteResp && m.msg.Reject:
		w.refused(r, m)
	}
}

// follow makes the promise that goes with following a leader.
func (w *worker) follow(r *replica, m *inMessage) {
	old := r.promised.Load()
	if old != nil && old.term == m.msg.Term && old.store == m.store && r.bound(w.now) != nil {
		return
	}
	st := r.worker.rn.BasicStatus()
	if st.Term != m.msg.Term || st.RaftState != raft.StateFollower || st.Lead != m.msg.From {
		return // raft has not followed it
	}
	if r.worker.released.covers(m.store, st.Term, w.now) {
		// It was under way when its leader gave up: raft may not wait for that one again, nor refuse others because of it.
		w.runOut(r)
		if !r.worker.runOut.queued {
			w.queueAt(r, m.store, w.now+w.rankTime())
		}
		return
	}
	w.endRunOut(r) // there is a leader
	next := promise{
		store: m.store, replica: base.ReplicaID(m.msg.From), term: st.Term, epoch: w.store.live.Epoch(m.store, w.now),
	}
	switch {
	case next.epoch != 0:
		r.promised.Store(&next)
	case old != nil && (old.term < st.Term || r.bound(w.now) == nil):
		r.promised.Store(nil) // raft's clock has just begun anew
	}
}

// stamp is what an answer to a leader carries: the promise, if this is the leader that it was made to. It is asked for when
// the message leaves, after the sync that the answer waits for.
func (w *worker) stamp(r *replica, m *raftpb.Message, to base.StoreID) (s wire.Stamp) {
	if w.store.live == nil || m.Type != raftpb.MsgAppResp && m.Type != raftpb.MsgHeartbeatResp {
		return s
	}
	p := r.promised.Load()
	if p == nil || p.store != to || p.replica != base.ReplicaID(m.To) || p.term != m.Term {
		return s
	}
	st := r.worker.rn.BasicStatus()
	if st.Term != p.term {
		return s // it has moved on within this step
	}
	return wire.Stamp{Epoch: p.epoch, Commit: st.Commit}
}

// inherit makes a replica object keep the promises of the one whose place it takes. Its worker calls it between the end of
// that one and this one's first step, so that no release of a leader falls between the two.
func (r *replica) inherit() {
	if old := r.worker.over; old != nil {
		r.promised.Store(old.promised.Load())
		r.worker.released = old.worker.released
		r.worker.over = nil
	}
}

// runOut ends what the replica had promised and brings raft's election clock to where it stops refusing others.
func (w *worker) runOut(r *replica) {
	r.promised.Store(nil)
	rn := r.worker.rn
	if rn.BasicStatus().RaftState == raft.StateLeader {
		return
	}
	for range w.store.cfg.ElectionTick {
		rn.TickQuiesced()
	}
}

// mustKeepQuiet reports whether a promise of an earlier life may bind the replica still (V7). The only replica that a group
// ever had never promised anything to anybody, unless its log may bring another configuration. One that has become the
// only voter may have: the leader that it promised something to may have left the group, and not know yet.
func (w *worker) mustKeepQuiet(r *replica) bool {
	if w.store.live == nil || w.now >= w.store.live.QuietUntil() {
		return false
	}
	d := r.desc.Load()
	return d == nil || d.NextReplicaID != 2 || !onlyVoter(d, r.id) || r.worker.nonvoter || r.mayChange()
}

// mayChange reports whether the log holds a conf change that is not applied. What an earlier life has left is looked at
// once.
func (r *replica) mayChange() bool {
	rw := &r.worker
	applied := r.applied.Load()
	if rw.confEntry <= applied {
		return false
	}
	first, last := rw.log.Bounds()
	found := uint64(0)
	for at := max(applied+1, first); at <= last; {
		ents, err := rw.log.Entries(at, last+1, r.store.cfg.MaxSizePerMsg)
		if err != nil {
			return true
		}
		for i := range ents {
			if ents[i].Type != raftpb.EntryNormal {
				found = ents[i].Index
			}
		}
		at += uint64(len(ents))
	}
	rw.confEntry = found
	return found > applied
}

// tickRaft gives the group its ticks. A leader always gets them: only beats and their answers resend what was lost (V11).
func (w *worker) tickRaft(r *replica, ticks int) {
	rw := &r.worker
	rn := rw.rn
	state := rn.BasicStatus().RaftState
	tick := rn.Tick
	switch {
	case state == raft.StateLeader:
		if rw.rests && rw.idle >= idleTicks {
			if !rw.beat {
				return
			}
			rw.beat = false
			ticks = w.store.cfg.HeartbeatTick
		}
	case w.store.live != nil && r.bound(w.now) != nil:
		r.silent.Store(0) // the leader's store is there
		w.remind(r, ticks)
		return
	case w.mustKeepQuiet(r), w.awaitsTurn(r) && state == raft.StateFollower:
		tick = rn.TickQuiesced // it does not fire, but stops refusing others
	case w.restrained(r) && state == raft.StateFollower:
		// A follower's clock runs on, so that it votes for others when its leader is gone, but it does not fire for a while.
		tick = rn.TickQuiesced
	case r.promised.Load() != nil && rw.stand == standNot:
		w.queueRunOut(r, r.promised.Load().store)
		tick = rn.TickQuiesced
	}
	for range ticks {
		tick()
	}
	w.retryCampaign(r, ticks)
}

// awaitsTurn reports whether the replica will stand for election in its turn, and so not by raft's clock.
func (w *worker) awaitsTurn(r *replica) bool {
	if r.worker.runOut.queued && !w.mayRunOut(r) {
		w.endRunOut(r)
	}
	return r.worker.runOut.queued
}

// restrained reports whether the replica leaves an election to others, as one on a drained store does for a while.
func (w *worker) restrained(r *replica) bool {
	return w.store.paused.Load() && r.silent.Load() <= int64(quietElections*w.store.cfg.ElectionTick)
}

// remind tells a leader that the replica has moved on to a higher term without one, which it must not act on itself: what
// that leader's next heartbeat would have been answered. It may be asleep.
func (w *worker) remind(r *replica, ticks int) {
	rw := &r.worker
	p, st := r.promised.Load(), rw.rn.BasicStatus()
	if p == nil || st.Term <= p.term || st.Term != rw.term {
		rw.reminded = 0
		return
	}
	if rw.reminded -= ticks; rw.reminded > 0 {
		return
	}
	rw.reminded = w.store.cfg.ElectionTick
	w.send(r, &raftpb.Message{Type: raftpb.MsgAppResp, From: uint64(r.id), To: uint64(p.replica), Term: st.Term})
}
