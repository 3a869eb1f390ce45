package placement

import (
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// What a job does next. Next looks only at what was asked for and at what the shard is now, so that any step may be
// lost, repeated, or done by another node: the next call sees what came of it. The order is
//
//	add learner -> snapshot -> catch up -> joint {promote new, demote old} -> leave joint -> remove old -> gone from disk
//
// of which each kind has its part. Until the joint change is in, a job can be undone: the new learner is removed again.
// After it, the job goes on to its end even if it is cancelled; the shard itself leaves Joint, the job only helps.

// phases of a replica change, in order.
const (
	phaseAsk = iota
	phaseAdd
	phaseSnapshot
	phaseCatchUp
	phaseJoint
	phaseLeave
	phaseRemove
	phaseGone
	phaseDone
)

// undone raises the phases of a job that goes back above those of one that goes forward.
const undone = 100

// replicas is a job's replica change against the shard as it is.
type replicas struct {
	j   *Job
	w   World
	now *ShardNow
	// stuck is how long the job came no closer to its end.
	stuck time.Duration

	adds, drops bool // the kind has a To, a From
	voter       bool // the replica on To becomes a voter; the one on From was one

	to, from       ReplicaNow
	hasTo, hasFrom bool
}

// Next decides the next step of a job that changes replicas (move, add-replica, remove-replica, promote) and has not
// ended. It is pure.
func Next(j *Job, w World) Action {
	w.Limits = w.Limits.withDefaults()
	if w.Shard != nil && w.Shard.Desc.Epoch.ConfVer != w.RefusedAt {
		w.Refused = ""
	}
	r := newReplicas(j, w)
	if w.Shard == nil {
		return r.blind()
	}
	if j.State == JobCancelling && !r.passed() && !r.now.Joint() {
		return r.back()
	}
	return r.forward()
}

func newReplicas(j *Job, w World) *replicas {
	r := &replicas{j: j, w: w, now: w.Shard, voter: !j.Spec.Learner}
	r.adds = j.Spec.Kind != JobRemoveReplica
	r.drops = j.Spec.Kind == JobMove || j.Spec.Kind == JobRemoveReplica
	if r.now == nil {
		return r
	}
	if r.adds {
		r.to, r.hasTo = r.now.On(j.Spec.To)
	}
	if r.drops {
		r.from, r.hasFrom = r.now.On(j.Spec.From)
		// A later replica on the same node is not the one that was to go.
		r.hasFrom = r.hasFrom && (j.Replica == 0 || r.from.Replica == j.Replica)
	}
	return r
}

// AskDisk returns the node that has to be asked whether the replica has gone from its disk before Next can say more,
// and false if it need not be.
func AskDisk(j *Job, w World) (base.StoreID, bool) {
	if w.Shard == nil || w.Shard.Joint() {
		return 0, false
	}
	w.Limits = w.Limits.withDefaults()
	r := newReplicas(j, w)
	if j.State == JobCancelling && !r.passed() {
		return j.Spec.To, r.undoable() && !r.hasTo
	}
	_, listed := w.Shard.Desc.ReplicaOn(j.Spec.From)
	return j.Spec.From, r.drops && !listed && r.phase() >= phaseGone
}

// passed reports whether the job has changed voters, after which it only goes forward.
func (r *replicas) passed() bool {
	switch r.j.Spec.Kind {
	case JobMove, JobRemoveReplica:
		return !r.hasFrom || r.voter && r.from.Role == base.RoleLearner
	}
	return r.hasTo && r.voter && r.to.Role == base.RoleVoter
}

// undoable reports whether the job makes a replica that has to go if it is undone.
func (r *replicas) undoable() bool { return r.j.Spec.Kind == JobMove || r.j.Spec.Kind == JobAddReplica }

// phase says where the shard stands on the way forward.
func (r *replicas) phase() int {
	switch {
	case r.now.Joint():
		return phaseLeave
	case r.adds && !r.hasTo:
		return phaseAdd
	case r.adds && r.to.Role == base.RoleLearner && !r.caughtUp() && (r.voter || !r.drops || r.hasFrom):
		if r.onSnapshot() {
			return phaseSnapshot
		}
		return phaseCatchUp
	case len(r.joint()) > 0:
		return phaseJoint
	case r.drops && r.hasFrom:
		return phaseRemove
	case r.drops && r.w.Disk != DiskGone:
		return phaseGone
	}
	return phaseDone
}

// joint returns the changes of voters that are still to be made.
func (r *replicas) joint() (out []Change) {
	if r.adds && r.voter && r.hasTo && r.to.Role == base.RoleLearner {
		out = append(out, Change{ChangePromote, r.to.Store, r.to.Replica})
	}
	if r.drops && r.hasFrom && r.from.Role == base.RoleVoter {
		out = append(out, Change{ChangeDemote, r.from.Store, r.from.Replica})
	}
	return out
}

func (r *replicas) onSnapshot() bool {
	return r.to.Match == 0 || r.to.PendingSnapshot != 0 || r.stream() != nil
}

// stream returns the snapshot on its way to the new replica.
func (r *replicas) stream() *SnapshotNow {
	if s := r.now.Snapshot; s != nil && r.hasTo && s.To == r.to.Replica {
		return s
	}
	return nil
}

func (r *replicas) lag() uint64 {
	if r.to.Last > r.to.Match {
		return r.to.Last - r.to.Match
	}
	return 0
}

func (r *replicas) caughtUp() bool {
	return r.to.Active && r.to.Match > 0 && r.to.PendingSnapshot == 0 && r.lag() <= r.w.Limits.Lag
}

// forward is the way to what was asked for.
func (r *replicas) forward() Action {
	at := Progress{Phase: r.phase()}
	switch at.Phase {
	case phaseSnapshot:
		if s := r.stream(); s != nil {
			at.Amount = s.Done
		}
	case phaseCatchUp:
		at.Amount = r.to.Match
	}
	r.stuck = r.w.stuck(at)
	switch {
	case r.w.Refused != "":
		return r.fail(at, r.refused(at.Phase))
	case r.stuck >= r.w.stall() && at.Phase < phaseDone && !(at.Phase == phaseLeave && r.quorums()):
		return r.fail(at, r.stalled(at.Phase))
	}
	switch at.Phase {
	case phaseAdd:
		switch {
		case r.j.Spec.Kind == JobPromote:
			return r.end(at, JobFailed, fmt.Sprintf("%s has no replica of %s any more: add one first",
				r.j.Spec.To, r.now.Desc.Shard))
		case r.drops && !r.hasFrom:
			return r.end(at, JobFailed, fmt.Sprintf("the replica of %s on %s has gone by other means: "+
				"add one on %s if it is still wanted", r.now.Desc.Shard, r.j.Spec.From, r.j.Spec.To))
		}
		return r.change(at, "asks the shard's leader", Change{Op: ChangeAddLearner, Store: r.j.Spec.To})
	case phaseSnapshot:
		return r.wait(at, "")
	case phaseCatchUp:
		if !r.to.Active {
			return r.wait(at, r.j.Spec.To.String()+" does not answer the leader")
		}
		return r.wait(at, "")
	case phaseJoint:
		changes := r.joint()
		if why := r.unsafe(changes); why != "" {
			return r.wait(at, why)
		}
		return r.change(at, "asks the shard's leader", changes...)
	case phaseLeave:
		return r.leave(at)
	case phaseRemove:
		if r.now.Leader == r.from.Store {
			return r.moveLeader(at, "the replica that goes still leads")
		}
		return r.change(at, "asks the shard's leader", Change{ChangeRemove, r.from.Store, r.from.Replica})
	case phaseGone:
		if _, again := r.now.Desc.ReplicaOn(r.j.Spec.From); again {
			return r.end(at, JobDone, "")
		}
		switch r.w.Disk {
		case DiskDown:
			return r.end(at, JobDone, r.j.Spec.From.String()+" is down: it drops its replica when it is back")
		case DiskSilent:
			if r.stuck >= r.w.Limits.Disk {
				return r.end(at, JobDone, r.j.Spec.From.String()+" does not answer: it drops its replica when it is back")
			}
			return r.wait(at, r.j.Spec.From.String()+" does not answer")
		}
		return r.wait(at, "")
	}
	return r.end(at, JobDone, "")
}

// leave waits until the shard has left Joint, which it does by itself, and helps if that lasts.
func (r *replicas) leave(at Progress) Action {
	if lead, ok := r.now.Desc.ReplicaOn(r.now.Leader); ok && lead.Role == base.RoleOutgoing {
		return r.moveLeader(at, "the leader is a voter that leaves")
	}
	if !r.quorums() {
		return r.wait(at, "too few voters answer to leave Joint")
	}
	// A leader that cannot finish: another may.
	if r.stuck >= 12*r.w.Limits.Joint {
		return r.moveLeader(at, "the leader does not leave Joint")
	}
	return r.wait(at, "")
}

// moveLeader moves the leadership to a voter that stays, once the shard has had time to do so itself.
func (r *replicas) moveLeader(at Progress, why string) Action {
	if r.stuck < r.w.Limits.Joint {
		return r.wait(at, why)
	}
	var best ReplicaNow
	for _, d := range r.now.Desc.Replicas {
		p, _ := r.now.On(d.Store)
		if p.Store != r.now.Leader && p.Active && (p.Role == base.RoleVoter || p.Role == base.RoleIncoming) &&
			(best.Store == 0 || p.Match > best.Match) {
			best = p
		}
	}
	if best.Store == 0 {
		return r.wait(at, why+", and no other voter answers")
	}
	detail := why + ": moves the leadership to " + best.Store.String()
	if r.w.Trouble != "" {
		detail = r.w.Trouble
	}
	a := r.act(ActTransfer, at, detail)
	a.To = best.Store
	return a
}

// back undoes a job that has not changed voters yet. Before it ends with nothing left to undo it waits for a change
// that may be on its way; once a replica that it made was seen and has gone, ConfVer keeps such a change out.
func (r *replicas) back() Action {
	state := JobCancelled
	if r.j.Error != "" {
		state = JobFailed
	}
	at := Progress{Phase: undone + phaseAdd}
	switch {
	case r.undoable() && r.hasTo && r.to.Role == base.RoleLearner:
		at.Phase = undone
	case r.undoable() && !r.hasTo && !r.begun():
		at.Phase = undone + phaseGone
	}
	r.stuck = r.w.stuck(at)
	over := r.w.Refused != "" || r.stuck >= r.w.stall()
	switch at.Phase {
	case undone:
		if !over {
			return r.change(at, "removes the learner again", Change{ChangeRemove, r.to.Store, r.to.Replica})
		}
		why := r.w.Refused
		if why == "" {
			why = "no progress for " + r.stuck.Round(time.Second).String()
		}
		return r.end(at, JobFailed, join(r.j.Error, fmt.Sprintf("the learner on %s could not be removed again (%s): "+
			"shardctl shards remove-replica %s --from %s", r.to.Store, why, r.now.Desc.Shard, r.to.Store)))
	case undone + phaseAdd:
		if r.begun() && r.stuck < r.w.Limits.Settle {
			return r.wait(at, "waits for a change that may have begun")
		}
	case undone + phaseGone:
		if r.w.Disk == DiskHolds && !over || r.w.Disk != DiskGone && r.w.Disk != DiskHolds && r.stuck < r.w.Limits.Disk {
			return r.wait(at, "waits until it has gone from "+r.j.Spec.To.String())
		}
	}
	return r.end(at, state, r.j.Error)
}

// begun reports whether the last step was to change the shard, so that a change may still be on its way.
func (r *replicas) begun() bool {
	for _, s := range r.j.Steps {
		if s.State == StepRunning {
			return s.Name == r.stepName(phaseAdd) || s.Name == r.stepName(phaseJoint) || s.Name == r.stepName(phaseRemove)
		}
	}
	return false
}

// blind is the answer while the shard's leader cannot be asked.
func (r *replicas) blind() Action {
	at := Progress{Phase: phaseAsk}
	r.stuck = r.w.Now - r.w.Watch.Since
	if !r.w.Watch.Seen {
		r.stuck = 0
	}
	if r.stuck < r.w.stall() {
		return r.act(ActWait, at, "waits for the shard's leader: "+r.w.Why)
	}
	return r.end(at, JobFailed, join(r.j.Error, fmt.Sprintf("no leader of %s could be asked for %s (%s): start the nodes "+
		"of its voters; shardctl shards describe %s shows which", r.j.Spec.Shard, r.stuck.Round(time.Second), r.w.Why,
		r.j.Spec.Shard)))
}

// fail ends the job, after undoing it if that is possible.
func (r *replicas) fail(at Progress, reason string) Action {
	if r.j.State == JobRunning && !r.passed() && !r.now.Joint() {
		a := r.act(ActUndo, at, reason)
		a.Reason = reason
		return a
	}
	return r.end(at, JobFailed, join(r.j.Error, reason))
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// stalled says why a phase took too long and what to do.
func (r *replicas) stalled(phase int) string {
	shard, to, from, long := r.now.Desc.Shard, r.j.Spec.To, r.j.Spec.From, r.stuck.Round(time.Second)
	switch phase {
	case phaseSnapshot:
		return fmt.Sprintf("the snapshot of %s made no progress for %s: see the log of %s and its free space, then try again",
			shard, long, to)
	case phaseCatchUp:
		return fmt.Sprintf("the learner on %s came no closer to the leader of %s for %s: see that %s runs and can be reached",
			to, shard, long, to)
	case phaseLeave:
		return fmt.Sprintf("%s is Joint and has had no quorum to leave it for %s: start the nodes of its voters; "+
			"it then leaves Joint by itself", shard, long)
	case phaseRemove:
		return fmt.Sprintf("the demoted replica on %s could not be removed for %s: "+
			"shardctl shards remove-replica %s --from %s", from, long, shard, from)
	case phaseGone:
		return fmt.Sprintf("%s left the shard %s, but its data was still on disk after %s: see the log of %s",
			from, shard, long, from)
	}
	return fmt.Sprintf("step %q made no progress for %s: %s", r.stepName(phase), long, r.lastDetail())
}

// refused says that the shard did not take a change, and what to do if something is left to be done.
func (r *replicas) refused(phase int) string {
	if phase != phaseRemove {
		return r.w.Refused
	}
	return fmt.Sprintf("the demoted replica on %s could not be removed (%s): "+
		"shardctl shards remove-replica %s --from %s",
		r.j.Spec.From, r.w.Refused, r.now.Desc.Shard, r.j.Spec.From)
}

func (r *replicas) lastDetail() string {
	for _, s := range r.j.Steps {
		if s.State == StepRunning && s.Detail != "" {
			return s.Detail
		}
	}
	return "see the log of the shard's leader " + r.now.Leader.String()
}
