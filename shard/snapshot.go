package shard

import (
	"errors"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Sending snapshots. Offer: raft asks the log for a snapshot and gets the position of what is applied (R10). Request:
// its MsgSnap never leaves as a message; it becomes a request to the snapshotter, which reads its own, newer, position
// from the view that it opens (W2). Report: the outcome comes back to the worker and is told to raft, exactly once per
// MsgSnap, a failure only after the time that the receiver has asked for: raft tries again at the next heartbeat. A
// leadership that ends meanwhile changes nothing: the stream goes on, its report is for nobody.

// Snapshots sends a shard's state to a follower whose log is too far behind. Send never blocks and ends in exactly one
// call of Done, from any goroutine: nil once the receiver has installed the snapshot, else why not. An error that has
// the method Declined() (reason string, wait time.Duration) holds back the next attempt for so long, up to a minute.
type Snapshots interface {
	Send(SnapshotRequest)
}

// SnapshotRequest is one snapshot that raft wants sent.
type SnapshotRequest struct {
	Shard    base.ShardID
	From, To base.ReplicaID
	ToStore  base.StoreID
	Term     uint64 // of the leader that asks
	Index    uint64 // the snapshot must be at this index or above
	Recovery bool   // the follower is a voter: before moves, which are to learners
	Done     func(error)
}

// sendingSnapshot is one that is in flight, from MsgSnap to Done. The log must not be truncated above Index meanwhile.
type sendingSnapshot struct {
	To      base.ReplicaID
	Index   uint64
	Started time.Duration // on Clock.Boot

	term uint64 // of the latest MsgSnap that it answers
	id   uint64
}

// snapshotDone is the end of one, on its way to the worker.
type snapshotDone struct {
	id  uint64
	err error
}

// snapshotReport waits to be told to raft.
type snapshotReport struct {
	to    base.ReplicaID
	term  uint64
	ticks int // until then
	err   error
}

// maxSnapshotWait bounds how long a decline holds back the next attempt.
const maxSnapshotWait = time.Minute

// offer is what the log answers when raft asks for a snapshot.
func (r *replica) offer() (raftpb.SnapshotMetadata, bool) {
	if r.store.cfg.Snapshots == nil || r.uninitialised() {
		return raftpb.SnapshotMetadata{}, false
	}
	st := r.appliedState()
	return raftpb.SnapshotMetadata{Index: st.Index, Term: st.Term, ConfState: st.Conf}, true
}

// sendSnapshot turns raft's MsgSnap into a request.
func (w *worker) sendSnapshot(r *replica, m *raftpb.Message) {
	rw, s := &r.worker, w.store
	to, store := base.ReplicaID(m.To), r.storeOf(base.ReplicaID(m.To))
	if s.cfg.Snapshots == nil || store == 0 || store == s.cfg.Store {
		rw.reports = append(rw.reports, snapshotReport{
			to: to, term: m.Term, ticks: s.cfg.ElectionTick, err: errors.New("its store is not known"),
		})
		return
	}
	index := m.Snapshot.Metadata.Index
	for i := range rw.sending {
		if rw.sending[i].To == to {
			rw.sending[i].term = m.Term // of an earlier leadership: its outcome answers this one too
			return
		}
	}
	id := s.sends.Add(1)
	rw.sending = append(rw.sending, sendingSnapshot{To: to, Index: index, Started: w.now, term: m.Term, id: id})
	recovery := false
	if rep, ok := r.desc.Load().Replica(to); ok {
		recovery = rep.Role != base.RoleLearner
	}
	s.metrics.snapshots.Inc()
	s.log.Info("snapshot wanted", "replica", r.String(), "to", base.ReplicaName(r.shard, to), "store", store,
		"index", index, "recovery", recovery)
	s.cfg.Snapshots.Send(SnapshotRequest{
		Shard: r.shard, From: r.id, To: to, ToStore: store, Term: m.Term, Index: index, Recovery: recovery,
		Done: func(err error) { r.snapshotEnded(snapshotDone{id: id, err: err}) },
	})
}

// snapshotEnded brings an outcome to the worker. That of a replica that is gone is for nobody.
func (r *replica) snapshotEnded(d snapshotDone) {
	r.in.Lock()
	open := r.in.closed == wire.OK
	if open {
		in := r.in.seldomLocked()
		in.sent = append(in.sent, d)
	}
	r.in.Unlock()
	if open {
		r.store.pool.Enqueue(uint64(r.shard))
	}
}

// takeSent turns outcomes into reports, and unpins the log.
func (w *worker) takeSent(r *replica, sent []snapshotDone) {
	rw := &r.worker
	for _, d := range sent {
		at := slices.IndexFunc(rw.sending, func(s sendingSnapshot) bool { return s.id == d.id })
		if at < 0 {
			continue
		}
		snap := rw.sending[at]
		rw.sending = slices.Delete(rw.sending, at, at+1)
		report := snapshotReport{to: snap.To, term: snap.term, err: d.err}
		if d.err != nil {
			w.store.metrics.snapshotFailures.Inc()
			w.store.damaged(r, d.err) // what cannot be read here cannot be sent: another replica leads then
			report.ticks = w.retryTicks(d.err)
			w.store.log.Warn("snapshot not installed", "replica", r.String(), "to", base.ReplicaName(r.shard, snap.To),
				"error", d.err, "again in", time.Duration(report.ticks)*w.store.cfg.Tick)
		}
		rw.reports = append(rw.reports, report)
	}
}

// retryTicks is how long a failure is kept from raft, in ticks: what the receiver asked for, an election timeout if the
// stream just broke.
func (w *worker) retryTicks(err error) int {
	cfg := &w.store.cfg
	var declined interface {
		Declined() (reason string, wait time.Duration)
	}
	if !errors.As(err, &declined) {
		return cfg.ElectionTick
	}
	_, wait := declined.Declined()
	return max(cfg.ElectionTick, int(min(wait, maxSnapshotWait)/cfg.Tick))
}

// report tells raft what is due: once per MsgSnap, and only in the term of that MsgSnap.
func (w *worker) report(r *replica, ticks int) {
	rw := &r.worker
	st := rw.rn.BasicStatus()
	keep := rw.reports[:0]
	for _, p := range rw.reports {
		if st.RaftState != raft.StateLeader || st.Term != p.term {
			continue
		}
		if p.ticks -= ticks; p.err != nil && p.ticks > 0 {
			keep = append(keep, p)
			continue
		}
		status := raft.SnapshotFinish
		if p.err != nil {
			status = raft.SnapshotFailure
		}
		rw.rn.ReportSnapshot(uint64(p.to), status)
	}
	clear(rw.reports[len(keep):])
	rw.reports = keep
}
