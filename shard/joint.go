package shard

import (
	"go.etcd.io/etcd/raft/v3"

	"github.com/shardd/shardd/internal/base"
)

// Leaving a joint configuration. Raft's own automatism is not used: it proposes once, at the leader that entered, and
// is lost with it (R6). Here every leader, the one that entered and each later one, looks at the applied descriptor on
// its ticks. Step: if it is on its way out, the leadership goes to a voter that stays, first. Leave: an empty conf
// change, one at a time, proposed again every few ticks until it is applied. A crash or a lost leadership at any point
// leaves the rest to the next leader.

// leaveTicks lie between two attempts to leave.
const leaveTicks = 5

// jointState is a leader's way out of the joint configuration at hand.
type jointState struct {
	confVer uint64 // of the descriptor that is joint, with term the identity of what follows
	term    uint64
	ticks   int // since this leader has seen it
	wait    int // until the next attempt
}

// tickJoint moves a leader's group out of its joint configuration.
func (w *worker) tickJoint(r *replica, ticks int) {
	rw := &r.worker
	d := r.desc.Load()
	st := rw.rn.BasicStatus()
	if !isJoint(d) || st.RaftState != raft.StateLeader {
		rw.joint = nil
		return
	}
	j := rw.joint
	if j == nil || j.term != st.Term || j.confVer != d.Epoch.ConfVer {
		j = &jointState{term: st.Term, confVer: d.Epoch.ConfVer}
		rw.joint = j
	}
	j.ticks += ticks
	j.wait -= ticks
	if self, _ := d.Replica(r.id); self.Role == base.RoleOutgoing && j.ticks <= 2*w.store.cfg.ElectionTick {
		// The others hear with the next heartbeat that they may lead in the joint configuration.
		if rw.transfer == nil && j.ticks > w.store.cfg.HeartbeatTick {
			w.startTransfer(r, transferRequest{done: func(uint64, error) {}})
		}
		return
	}
	if j.wait > 0 || w.confBusy(r, &st) != "" {
		return
	}
	j.wait = leaveTicks
	c := confContext{confVer: d.Epoch.ConfVer}
	if err := w.proposeConf(r, &c, func(*base.Descriptor, error) {}); err != nil {
		w.store.log.Debug("leaving the joint configuration has to wait", "replica", r.String(), "reason", err)
	}
}

// tickNonvoter lets go of a leadership that outlives the membership: the group goes on to be replicated until a voter
// has everything, which then takes over. Without one, raft's check of the quorum ends the leadership.
func (w *worker) tickNonvoter(r *replica, ticks int) {
	rw := &r.worker
	if rw.shedWait -= ticks; rw.transfer == nil && rw.shedWait <= 0 && rw.rn.BasicStatus().RaftState == raft.StateLeader {
		rw.shedWait = w.store.cfg.HeartbeatTick
		w.startTransfer(r, transferRequest{done: func(uint64, error) {}})
	}
}
