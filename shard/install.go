package shard

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Receiving snapshots. Accept: before a byte is staged, marks, overlaps, epoch, term and space decide. Reserve: the
// same checks again, and nobody else may take the range from here on. Park: the replica, and those that the snapshot
// subsumes, stand still. Ingest: one atomic step brings data, records and HardState, with the term that the snapshot's
// leader has and the vote that goes with it (I8). Publish: a replica over the new state takes the place of the old one,
// and its first message is the MsgSnap, which raft now finds done and answers.
//
// Whether raft would take the snapshot is decided before the ingest, by raft's own rules, while nothing moves: what
// raft would ignore it is given, so that it answers the leader, and the staging is dropped. So nothing has happened to
// the group when an ingest fails, and the old replica goes on. A crash before the ingest leaves the old replica, one
// after it the new one; the staging goes at the next start.

// DeclinedError says that a snapshot is not taken here. Wait is after which time another attempt makes sense; 0 means
// that this snapshot never will be taken.
type DeclinedError struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	Reason  string
	Wait    time.Duration

	kind string // metric label
}

func (e *DeclinedError) Error() string {
	name := base.ReplicaName(e.Shard, e.Replica)
	if e.Wait == 0 {
		return fmt.Sprintf("snapshot for %s declined: %s", name, e.Reason)
	}
	return fmt.Sprintf("snapshot for %s declined: %s; try again in %s", name, e.Reason, e.Wait)
}

// Declined returns the reason and the wait, for callers that do not know this package.
func (e *DeclinedError) Declined() (reason string, wait time.Duration) { return e.Reason, e.Wait }

// How long a declined sender waits, by what has to happen here first.
const (
	waitSplit   = time.Second / 2  // another shard here has to come to a split, or a merge
	waitBusy    = time.Second      // another boundary step of the shard or the range
	waitRemoval = 2 * time.Second  // an older replica has to be removed
	waitSpace   = 10 * time.Second // also: a faulted replica has to be removed
)

// AcceptSnapshot decides, before anything is staged, whether a snapshot would be installed. A replica that already has
// what it brings tells the leader so. The error is a *DeclinedError, ErrStopping or the engine's.
func (s *Store) AcceptSnapshot(m *engine.SnapshotMeta) error {
	err := s.checkMark(m.Shard, m.To, true)
	if err == nil {
		s.mu.Lock()
		var own *replica
		own, _, err = s.judgeLocked(m)
		s.mu.Unlock()
		if err == nil && own != nil && m.Applied.Index <= own.commit.Load() {
			own.pushFirst(m)
			s.pool.Enqueue(uint64(m.Shard))
			err = decline(m, "done", 0, "the replica has index %d already, the snapshot is at %d",
				own.commit.Load(), m.Applied.Index)
		}
	}
	return s.declined(m, err)
}

// declined counts a refusal and turns what a mark says into one.
func (s *Store) declined(m *engine.SnapshotMeta, err error) error {
	if mark, ok := err.(*MarkError); ok {
		err = decline(m, "mark", 0, "%s", mark)
	}
	if d, ok := err.(*DeclinedError); ok {
		s.metrics.declines.WithLabelValues(d.kind).Inc()
		s.log.Info("snapshot declined", "replica", base.ReplicaName(m.Shard, m.To), "from", m.FromStore,
			"index", m.Applied.Index, "reason", d.Reason, "wait", d.Wait)
	}
	return err
}

func decline(m *engine.SnapshotMeta, kind string, wait time.Duration, format string, args ...any) error {
	return &DeclinedError{
		Shard: m.Shard, Replica: m.To, Reason: fmt.Sprintf(format, args...), Wait: wait, kind: kind,
	}
}

// judgeLocked checks a snapshot against everything on this store but the marks, and returns the replica that it is for,
// nil if there is none, and the older ones of other shards that lie in its range and go with it (I3).
func (s *Store) judgeLocked(m *engine.SnapshotMeta) (own *replica, inside []*replica, err error) {
	if s.mu.stopped {
		return nil, nil, ErrStopping
	}
	d := m.Desc
	if rep, ok := d.Replica(m.To); !ok || d.Shard != m.Shard || rep.Store != m.ToStore || m.ToStore != s.cfg.Store {
		return nil, nil, decline(m, "address", 0, "%s does not list replica %d on %s", d, m.To, s.cfg.Store)
	}
	if !lists(&m.Applied.Conf, m.To) || m.RaftTerm < m.Applied.Term {
		return nil, nil, decline(m, "address", 0, "its configuration at index %d, term %d (leader's term %d) does not fit",
			m.Applied.Index, m.Applied.Term, m.RaftTerm)
	}
	if why := s.declineSnapshots.Load(); why != nil {
		return nil, nil, decline(m, "space", waitSpace, "%s", *why)
	}
	own = s.mu.replicas[m.Shard]
	if own != nil {
		if err := own.judge(m); err != nil {
			return nil, nil, err
		}
	}
	for _, r := range s.mu.replicas {
		old := r.desc.Load()
		switch {
		case old == nil || r.shard == m.Shard || !old.Overlaps(d):
		case old.Epoch.Version < d.Epoch.Version && string(d.Start) <= string(old.Start):
			// A shard keeps its start for life: a newer one that has it has merged it away. It may have been split since, so
			// that not all of the old range need be in this snapshot; what is not goes as well.
			inside = append(inside, r)
		case old.Epoch.Version < d.Epoch.Version && string(old.Start) < string(d.Start) &&
			(own == nil || s.clock.Boot()-own.born <= splitPending):
			// What begins inside an older range was split off it: that comes by its own log, without a snapshot (I4).
			return nil, nil, decline(m, "split-pending", waitSplit, "split pending: %s has not come to it on this store", old)
		default:
			return nil, nil, decline(m, "overlap", waitRemoval, "%s overlaps %s on this store", d, old)
		}
	}
	for _, r := range inside {
		f := r.frozen.Load()
		if f == nil || f.Into == m.Shard || !s.awaitsMergeLocked(f) ||
			slices.ContainsFunc(inside, func(r *replica) bool { return r.shard == f.Into }) {
			continue
		}
		// The left one's log takes it in, and cannot do without it; or the left one's own snapshot does.
		return nil, nil, decline(m, "merge-pending", waitSplit, "merge pending: %s has not come to merge %d of %s on this store",
			f.Into, f.ID, r.shard)
	}
	for id, o := range s.mu.busy {
		if id == m.Shard || o.desc != nil && o.desc.Overlaps(d) ||
			slices.ContainsFunc(inside, func(r *replica) bool { return r.shard == id }) {
			return nil, nil, decline(m, "busy", waitBusy, "%s is being created, replaced or removed", id)
		}
	}
	return own, inside, nil
}

// judge checks a snapshot against the replica of its shard.
func (r *replica) judge(m *engine.SnapshotMeta) error {
	why, bad := r.faultReason()
	switch {
	case r.id < m.To:
		r.newer.Store(true)
		r.store.doubt(r)
		return decline(m, "other-replica", waitRemoval, "replica %d has to be removed from this store first", r.id)
	case r.id > m.To:
		return decline(m, "other-replica", 0, "replica %d is newer", r.id)
	case bad:
		return decline(m, "faulted", waitSpace, "the replica is faulted and has to be removed: %s", why)
	case m.RaftTerm < r.lead.Load().term:
		return decline(m, "term", 0, "its leader's term %d is over, this is term %d", m.RaftTerm, r.lead.Load().term)
	}
	if d := r.desc.Load(); d != nil &&
		(m.Desc.Epoch.Version < d.Epoch.Version || m.Desc.Epoch.ConfVer < d.Epoch.ConfVer) {
		return decline(m, "epoch", 0, "its epoch %s is older than %s", m.Desc.Epoch, d.Epoch)
	}
	return nil
}

func lists(c *raftpb.ConfState, id base.ReplicaID) bool {
	return slices.Contains(c.Voters, uint64(id)) || slices.Contains(c.Learners, uint64(id)) ||
		slices.Contains(c.VotersOutgoing, uint64(id))
}

// InstallSnapshot makes a staged snapshot the state of the replica that it is for, which it creates if there is none
// and there may be one, and answers the leader. The staging is used up, whatever comes out. It returns nil once the
// snapshot is installed and durable, or if raft has no use for it. Errors: *DeclinedError, ErrStopping, the engine's
// (the old replica goes on), or ctx's: then nothing was or will be installed; once the ingest has begun, ctx is not
// looked at.
func (s *Store) InstallSnapshot(ctx context.Context, m *engine.SnapshotMeta, st *engine.Staging) error {
	ch := make(chan error, 1)
	op := s.installSnapshot(m, st, func(err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
	}
	s.callOff(op, fmt.Errorf("install snapshot for %s: %w", base.ReplicaName(m.Shard, m.To), ctx.Err()))
	return <-ch
}

// install is a snapshot on its way in.
type install struct {
	op      *boundary
	meta    *engine.SnapshotMeta
	staging *engine.Staging
	own     *replica // nil: there is none yet
	inside  []*replica
	started time.Duration
}

// installSnapshot is InstallSnapshot for callers that do not wait; done is called once, by anybody.
func (s *Store) installSnapshot(m *engine.SnapshotMeta, st *engine.Staging, done func(error)) *boundary {
	in := &install{meta: m, staging: st, started: s.clock.Boot()}
	in.op = newBoundary(func(err error) {
		if rerr := st.Remove(); rerr != nil {
			s.log.Warn("staging of a snapshot stays until the next start", "replica", base.ReplicaName(m.Shard, m.To),
				"error", rerr)
		}
		done(s.declined(m, err))
	}, m.Desc, m.Shard)

	s.mu.Lock()
	own, inside, err := s.judgeLocked(m)
	if err == nil {
		in.own, in.inside = own, inside
		for _, r := range inside {
			in.op.shards = append(in.op.shards, r.shard)
		}
		s.reserveLocked(in.op)
	}
	s.mu.Unlock()
	if err == nil {
		err = s.checkMark(m.Shard, m.To, own != nil)
	}
	if err != nil {
		s.finish(in.op, err)
		return in.op
	}
	still := slices.Clone(inside)
	if own != nil {
		still = append(still, own)
	}
	slices.SortFunc(still, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
	s.parkAll(in.op, still, func(ok bool) {
		s.life.post(func() {
			if !ok {
				s.finish(in.op, decline(m, "busy", waitBusy, "the replica is being removed"))
			} else if s.begin(in.op) {
				s.ingest(in)
			}
		})
	})
	return in.op
}

// ingest goes on with an installation once everybody stands still.
func (s *Store) ingest(in *install) {
	m, own := in.meta, in.own
	hard := raftpb.HardState{Term: m.RaftTerm, Commit: m.Applied.Index}
	if own != nil {
		// Again, at rest: the replica has moved on since, or faulted.
		if err := own.judge(m); err != nil {
			s.finish(in.op, err)
			return
		}
		have := own.worker.rn.BasicStatus().HardState
		ignored, err := own.wouldIgnore(m)
		if err != nil {
			s.finish(in.op, fmt.Errorf("install snapshot for %s: %w", own, err))
			return
		}
		if ignored {
			s.metrics.ignored.Inc()
			s.log.Info("snapshot not needed", "replica", own.String(), "index", m.Applied.Index, "commit", have.Commit)
			own.pushFirst(m)
			s.finish(in.op, nil)
			return
		}
		if have.Term == m.RaftTerm {
			hard.Vote = have.Vote
		}
	}
	for _, r := range in.inside {
		if d := r.desc.Load(); d.Epoch.Version >= m.Desc.Epoch.Version {
			s.finish(in.op, decline(m, "overlap", waitRemoval, "%s overlaps %s on this store", m.Desc, d))
			return
		}
	}
	in.leaving(true)
	state, err := s.engine.Install(engine.Install{
		Staging: in.staging, Hard: hard, Subsume: subsumed(in.inside),
		Mark: engine.ReplicaMark{ReplicaID: m.To, NextReplicaID: m.Desc.NextReplicaID},
	})
	if err != nil {
		in.leaving(false)
		s.finish(in.op, fmt.Errorf("install snapshot for %s: %w", base.ReplicaName(m.Shard, m.To), err))
		return
	}
	s.finish(in.op, s.publishInstalled(in, state))
}

// leaving tells reads that the data of the old replicas is being replaced.
func (in *install) leaving(yes bool) {
	if in.own != nil {
		in.own.leaving.Store(yes)
	}
	for _, r := range in.inside {
		r.leaving.Store(yes)
	}
}

// subsumed lists what goes with the ingest: shards that were merged away never come back.
func subsumed(inside []*replica) (out []engine.Removal) {
	for _, r := range inside {
		mark := engine.ReplicaMark{NextReplicaID: mergedAway}
		out = append(out, engine.Removal{Shard: r.shard, Mark: mark, Desc: r.desc.Load()})
	}
	return out
}

// mergedAway as NextReplicaID means that no replica of the shard may be created ever again.
const mergedAway = engine.MergedAway

// wouldIgnore tells whether raft would ignore the snapshot (restore and Step in raft.go of 3.5): of an older term, not
// above what is committed, of a term in which this replica leads, or a position that the log already has. The replica
// stands still.
func (r *replica) wouldIgnore(m *engine.SnapshotMeta) (bool, error) {
	st := r.worker.rn.BasicStatus()
	if m.RaftTerm < st.Term || m.Applied.Index <= st.Commit || st.RaftState == raft.StateLeader && m.RaftTerm == st.Term {
		return true, nil
	}
	if _, last := r.worker.log.Bounds(); m.Applied.Index > last {
		return false, nil
	}
	term, err := r.worker.log.Term(m.Applied.Index)
	return term == m.Applied.Term, err
}

// publishInstalled puts a replica over the installed state in the place of the old one. The disk has it already: if it
// cannot be opened, the old replica is faulted, since its state is gone.
func (s *Store) publishInstalled(in *install, state engine.ReplicaState) error {
	m := in.meta
	for _, old := range in.inside {
		s.unpublish(old, engine.ReplicaMark{NextReplicaID: mergedAway}, "merged into "+m.Shard.String())
	}
	r, err := s.newReplica(state)
	if err != nil {
		if in.own != nil {
			s.fault(in.own, "open the installed snapshot: "+err.Error(), nil)
		}
		return err
	}
	r.learnPeer(m.From, m.FromStore)
	r.worker.over = in.own
	r.pushFirst(m)
	s.publish(r, in.own, "a snapshot was installed")
	s.tellWatchers(r.shard) // it may bring a freeze
	took := s.clock.Boot() - in.started
	s.metrics.installed.Inc()
	s.metrics.installSeconds.Observe(took.Seconds())
	s.log.Info("snapshot installed", "replica", r.String(), "from", m.FromStore, "index", m.Applied.Index,
		"term", m.Applied.Term, "range", m.Desc.String(), "bytes", in.staging.Bytes(), "took", took)
	return nil
}

// pushFirst puts the MsgSnap of a snapshot before everything else that waits to be stepped. It comes only where raft
// finds its position reached and does nothing but answer.
func (r *replica) pushFirst(m *engine.SnapshotMeta) {
	msg := inMessage{store: m.FromStore, msg: raftpb.Message{
		Type: raftpb.MsgSnap, From: uint64(m.From), To: uint64(m.To), Term: m.RaftTerm,
		Snapshot: raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{
			Index: m.Applied.Index, Term: m.Applied.Term, ConfState: m.Applied.Conf,
		}},
	}}
	r.in.Lock()
	defer r.in.Unlock()
	if r.in.closed == wire.OK {
		r.in.msgs = slices.Insert(r.in.msgs, 0, msg)
	}
}
