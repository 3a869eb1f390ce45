package shard

import (
	"fmt"

	"go.etcd.io/etcd/raft/v3/confchange"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
)

// Conf changes. Apply decides: the change is checked against the configuration in the AppliedState, which is the
// same on every replica (R8), and the resulting ConfState is committed with the applied index. Worker:
// ApplyConfChange for accepted ones, then the Ready that committed them is advanced (R2). A crash between the two
// starts from the ConfState on disk.

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

// applyConf decides one conf change and adds its outcome to the batch.
func (run *applyRun) applyConf(b *engine.Batch, e *raftpb.Entry) error {
	cc, err := decodeConf(e)
	if err != nil {
		return err
	}
	m := run.r.machine
	conf, refused := decideConf(m.Applied().Conf, e.Index, cc)
	run.conf = &confResult{cc: cc, accepted: refused == nil, conf: conf}
	if refused != nil {
		run.r.store.log.Warn("conf change refused", "replica", run.r.String(), "index", e.Index, "reason", refused)
		return m.ApplyConfState(b, e.Index, e.Term, nil, nil)
	}
	return m.ApplyConfState(b, e.Index, e.Term, &conf, nil)
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
	for i := range results {
		c := &results[i]
		rw.confs--
		if !c.accepted {
			continue // no call: an invalid one panics every replica, at every restart
		}
		got := rw.rn.ApplyConfChange(c.cc)
		if err := c.conf.Equivalent(*got); err != nil {
			panic(fmt.Sprintf("raft and apply disagree on the configuration: %v", err))
		}
	}
	if rw.confs == 0 {
		w.advance(r)
	}
}
