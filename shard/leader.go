package shard

import (
	"go.etcd.io/etcd/raft/v3"

	"github.com/shardd/shardd/internal/base"
)

// publishLeader compares what raft says about term and leader with what is published, and acts on the difference. A
// leader that lost its term fails its reads (R5) and refuses its queued writes; what it has proposed stays pending,
// since the new leader may well commit it.
func (w *worker) publishLeader(r *replica, rd *raft.Ready) {
	old, led := r.lead.Load(), r.worker.leads
	l := *old
	if rd.SoftState != nil {
		l.leader = base.ReplicaID(rd.SoftState.Lead)
		r.worker.leads = rd.SoftState.RaftState == raft.StateLeader
		l.leads = r.worker.leads && !r.worker.nonvoter
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		l.term = rd.HardState.Term
	}
	l.store = 0
	if l.leader != 0 {
		l.store = r.storeOf(l.leader)
	}
	if led && (!r.worker.leads || l.term != old.term) {
		w.endLeading(r, old.term) // V4: before anything of the new term leaves
	}
	if r.worker.leads && (!led || l.term != old.term) {
		w.beginLeading(r, l.term, rd.Entries)
	}
	w.announce(r, old, l)
}

// publishRole follows a change of the configuration: a leader that is no voter any more takes no requests, though raft
// still lets it lead (V13).
func (w *worker) publishRole(r *replica) {
	old := r.lead.Load()
	l := *old
	l.leads = r.worker.leads && !r.worker.nonvoter
	if l.leader != 0 {
		l.store = r.storeOf(l.leader)
	}
	if r.worker.leads {
		w.publishLease(r)
	}
	w.announce(r, old, l)
}

func (w *worker) announce(r *replica, old *leadership, l leadership) {
	if l == *old {
		return
	}
	s := w.store
	fresh := l // l itself stays on the stack for the many calls that end above
	r.lead.Store(&fresh)
	lost := old.leads && (!l.leads || l.term != old.term)
	if lost {
		a := r.notLeader()
		if t := r.worker.transfer; a.Arg == 0 && t != nil && t.started {
			a.Arg = uint64(t.to) // the election is on, and this is who called it
		}
		r.refuseReads(a)
		r.loseTracked()
		if !l.leads { // leading again at another term, queued writes are as good as new
			r.refuseWrites(a)
		}
	}
	if old.leads != l.leads {
		if l.leads {
			s.metrics.leaders.Inc()
			s.log.Debug("leadership gained", "replica", r.String(), "term", l.term)
		} else {
			s.metrics.leaders.Dec()
			s.log.Debug("leadership lost", "replica", r.String(), "term", l.term, "leader", l.store)
		}
	}
	if r.worker.transfer != nil {
		w.transferSaw(r, &fresh)
	}
	if s.cfg.OnLeader != nil && l.leader != 0 && (l.leader != old.leader || l.term != old.term) {
		s.cfg.OnLeader(r.shard, l.store, l.term)
	}
}

// Leader returns the store that leads a shard, as the local replica knows it; ok is false without a replica or a
// leader.
func (s *Store) Leader(shard base.ShardID) (leader base.StoreID, term uint64, ok bool) {
	r := s.lookup(shard)
	if r == nil {
		return 0, 0, false
	}
	l := r.lead.Load()
	return l.store, l.term, l.leader != 0
}
