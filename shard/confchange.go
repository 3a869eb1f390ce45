package shard

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/confchange"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Conf changes. Apply decides: the change is checked against the descriptor and the configuration in the AppliedState,
// which are the same on every replica (R8), and the next descriptor and ConfState are committed with the applied
// index. Worker: ApplyConfChange for accepted ones, then the Ready that committed them is advanced (R2). A crash
// between the two starts from what is on disk. A change that removes this very replica is committed as its removal
// instead, in one synced step with the mark.

// confResult is apply's decision on one conf change, on its way back to the worker.
type confResult struct {
	index, term uint64
	cc          raftpb.ConfChangeV2
	refused     error            // nil: accepted
	removed     bool             // accepted, and this replica is no member after it
	conf        raftpb.ConfState // after it
	desc        *base.Descriptor // after it
}

// decideConf returns the configuration that a change leads to, or why it is refused. It is a pure function.
func decideConf(conf raftpb.ConfState, index uint64, cc raftpb.ConfChangeV2) (raftpb.ConfState, error) {
	ch := confchange.Changer{Tracker: tracker.MakeProgressTracker(1), LastIndex: index}
	cfg, prs, err := confchange.Restore(ch, conf)
	if err != nil {
		return raftpb.ConfState{}, fmt.Errorf("restore configuration %v: %w", conf, err)
	}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, prs
	switch auto, joint := cc.EnterJoint(); {
	case cc.LeaveJoint():
		cfg, prs, err = ch.LeaveJoint()
	case joint:
		cfg, prs, err = ch.EnterJoint(auto, cc.Changes...)
	default:
		cfg, prs, err = ch.Simple(cc.Changes...)
	}
	if err != nil {
		return raftpb.ConfState{}, err
	}
	ch.Tracker.Config, ch.Tracker.Progress = cfg, prs
	return ch.Tracker.ConfState(), nil
}

func decodeConf(e *raftpb.Entry) (raftpb.ConfChangeV2, error) {
	var cc raftpb.ConfChangeI
	switch e.Type {
	case raftpb.EntryConfChange:
		var v1 raftpb.ConfChange
		if err := v1.Unmarshal(e.Data); err != nil {
			return raftpb.ConfChangeV2{}, fmt.Errorf("conf change at %d: %w", e.Index, err)
		}
		cc = v1
	case raftpb.EntryConfChangeV2:
		var v2 raftpb.ConfChangeV2
		if err := v2.Unmarshal(e.Data); err != nil {
			return raftpb.ConfChangeV2{}, fmt.Errorf("conf change at %d: %w", e.Index, err)
		}
		cc = v2
	default:
		return raftpb.ConfChangeV2{}, fmt.Errorf("entry %d has the unknown type %s", e.Index, e.Type)
	}
	return cc.AsV2(), nil
}

// decideChange returns the descriptor and the configuration that the conf change at index leads to, or why it is
// refused. It is a pure function. unknown is an error that must fault the replica: a newer binary may apply what this
// one does not know.
func decideChange(
	d *base.Descriptor, conf raftpb.ConfState, index uint64, cc raftpb.ConfChangeV2,
) (next *base.Descriptor, nextConf raftpb.ConfState, refused, unknown error) {
	fail := func(err error) (*base.Descriptor, raftpb.ConfState, error, error) {
		return nil, raftpb.ConfState{}, err, nil
	}
	c, err := decodeConfContext(cc.Context)
	switch {
	case errors.Is(err, errConfLayout):
		return nil, raftpb.ConfState{}, nil, err
	case err != nil:
		return fail(err)
	}
	if want := c.change(); want.Transition != cc.Transition || !slices.Equal(want.Changes, cc.Changes) {
		return fail(errors.New("the context speaks of another change than the entry"))
	}
	if next, err = c.next(d); err != nil {
		return fail(err)
	}
	if nextConf, err = decideConf(conf, index, cc); err != nil {
		return fail(err)
	}
	if err := nextConf.Equivalent(engine.ConfStateOf(next)); err != nil {
		return fail(fmt.Errorf("descriptor %s does not describe the configuration: %w", next, err))
	}
	return next, nextConf, nil, nil
}

// applyConf decides one conf change and adds its outcome to the batch.
func (run *applyRun) applyConf(b *engine.Batch, e *raftpb.Entry) error {
	cc, err := decodeConf(e)
	if err != nil {
		return err
	}
	m := run.r.machine
	next, conf, refused, err := decideChange(m.Descriptor(), m.Applied().Conf, e.Index, cc)
	if err != nil {
		return fmt.Errorf("conf change at %d: %w", e.Index, err)
	}
	if f := m.Applied().Freeze; f != nil && refused == nil {
		refused = fmt.Errorf("the shard is frozen, to be merged into %s", f.Into)
	}
	run.conf = &confResult{index: e.Index, term: e.Term, cc: cc, refused: refused, conf: conf, desc: next}
	if refused != nil {
		run.r.store.log.Warn("conf change refused", "replica", run.r.String(), "index", e.Index, "reason", refused)
		return m.ApplyConfState(b, e.Index, e.Term, nil, nil)
	}
	if _, listed := next.Replica(run.r.id); !listed {
		run.removed, run.conf.removed = true, true
		return nil // nothing of this replica stays, so there is nothing to write into b
	}
	return m.ApplyConfState(b, e.Index, e.Term, &conf, next)
}

// proposeConf gives a conf change to raft. done is called once it is decided, with the descriptor after it, unless an
// error is returned.
func (w *worker) proposeConf(r *replica, c *confContext, done func(*base.Descriptor, error)) error {
	c.id = w.store.proposals.Add(1)
	if err := r.worker.rn.ProposeConfChange(c.change()); err != nil {
		return &ChangeError{Shard: r.shard, Reason: "raft takes no proposals: " + err.Error(), Retry: true}
	}
	r.track(&tracked{id: c.id, conf: true, decided: true, done: func(d *base.Descriptor, _ uint64, err error) { done(d, err) }})
	return nil
}

// takeConfResults goes on with a Ready whose conf changes apply has decided.
func (w *worker) takeConfResults(r *replica) {
	rw := &r.worker
	if !rw.synced || rw.confs == 0 {
		return
	}
	r.in.Lock()
	results := r.in.confs
	r.in.confs = nil
	r.in.Unlock()
	var gone []peer
	ruled := r.ruled.Load()
	for i := range results {
		c := &results[i]
		if c.removed {
			w.removeApplied(r, engine.ReplicaMark{NextReplicaID: c.desc.NextReplicaID})
			return // the Ready stays in flight: this replica has nothing more to say
		}
		rw.confs--
		if c.refused == nil { // else no call: an invalid one panics every replica, at every restart
			w.sayFarewell(r, c)
			ruled = c.desc
			gone = append(gone, r.removedBy(c.desc)...)
			r.adoptConf(c.index, &c.conf, c.desc) // before raft sends anything to a new replica
			got := rw.rn.ApplyConfChange(c.cc)
			if err := c.conf.Equivalent(*got); err != nil {
				panic(fmt.Sprintf("raft and apply disagree on the configuration: %v", err))
			}
			w.store.log.Info("replicas changed", "replica", r.String(), "index", c.index, "to", c.desc.String())
		}
		w.settleTracked(r, c.index, c.term, c.desc, c.refused)
	}
	if len(results) > 0 {
		w.publishRole(r)
		r.ruled.Store(ruled)
		w.releaseRemoved(r, gone) // the lease does not count them any more
	}
	if rw.confs == 0 {
		w.advance(r)
	}
}

// adoptConf takes over what a configuration changes for the worker: where the replicas live, whether this one votes,
// and what a truncation from index on has to remember.
func (r *replica) adoptConf(index uint64, conf *raftpb.ConfState, d *base.Descriptor) {
	rw := &r.worker
	peers := make([]peer, 0, len(d.Replicas))
	for _, rep := range d.Replicas {
		peers = append(peers, peer{rep.Replica, rep.Store})
	}
	for _, p := range rw.peers {
		if p.replica >= d.NextReplicaID { // learned from a message: newer than the descriptor
			peers = append(peers, p)
		}
	}
	rw.peers = peers
	kept := *conf // not all of what apply has sent
	rw.conf = &kept
	rw.nonvoter = !votes(rw.conf, uint64(r.id))
	rw.history.changed(index, rw.conf)
}

// votes reports whether a replica is a voter of a configuration, of either half if it is joint.
func votes(conf *raftpb.ConfState, id uint64) bool {
	return slices.Contains(conf.Voters, id) || slices.Contains(conf.VotersOutgoing, id)
}

// sayFarewell tells a replica that a change removes of the commit index that removes it. Raft forgets it in applying
// the change; it would have to ask around later.
func (w *worker) sayFarewell(r *replica, c *confResult) {
	rw := &r.worker
	st := rw.rn.BasicStatus()
	if st.RaftState != raft.StateLeader {
		return
	}
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if _, stays := c.desc.Replica(base.ReplicaID(id)); stays || pr.State != tracker.StateReplicate {
			return
		}
		m := raftpb.Message{
			Type: raftpb.MsgApp, From: uint64(r.id), To: id, Term: st.Term, Index: pr.Match, Commit: c.index,
		}
		var err error
		if m.LogTerm, err = rw.log.Term(pr.Match); err != nil {
			return
		}
		if pr.Match < c.index {
			if m.Entries, err = rw.log.Entries(pr.Match+1, c.index+1, w.store.cfg.MaxSizePerMsg); err != nil {
				return
			}
		}
		w.send(r, &m)
	})
}
