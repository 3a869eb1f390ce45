package shard

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/internal/base"
)

// Change of replicas. Ask: the request goes to the leader's worker. Check: against the applied descriptor and what the
// leader knows of the others; where a heartbeat may mend it, it is checked again for a few ticks. Propose: one conf
// change entry whose context says what it does. Apply: confchange.go decides, alike on every replica. Answer: once it
// is applied here. A change of voters leaves the shard joint; joint.go leaves that by itself, at every leader.
// A crash in between loses the waiter with the process: whether the change happened is for the next descriptor to say.

// ReplicaOp is one step of a change of replicas. The numbers are part of the log's format.
type ReplicaOp uint8

// Operations. A voter is never removed directly: demote it, let the shard leave the joint configuration, remove it.
const (
	AddLearner ReplicaOp = 1 // a new replica, under the next replica id
	Promote    ReplicaOp = 2 // learner to voter
	Demote     ReplicaOp = 3 // voter to learner
	Remove     ReplicaOp = 4 // a learner
)

// String returns the words used in errors.
func (o ReplicaOp) String() string {
	names := [...]string{AddLearner: "add learner", Promote: "promote", Demote: "demote", Remove: "remove"}
	if o >= AddLearner && int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("operation(%d)", uint8(o))
}

// ReplicaChange asks for one operation on the replica of a store. Replica 0 means whichever is there; AddLearner takes
// no other.
type ReplicaChange struct {
	Op      ReplicaOp
	Store   base.StoreID
	Replica base.ReplicaID
}

// ChangeError refuses a change of replicas: it has not happened and will not. Retry says that the same request may pass
// later, unchanged.
type ChangeError struct {
	Shard  base.ShardID
	Reason string
	Retry  bool
}

func (e *ChangeError) Error() string {
	return fmt.Sprintf("change replicas of %s: %s", e.Shard, e.Reason)
}

// ErrAmbiguousChange says that nobody here learned what became of a proposed change: look at the shard's descriptor.
var ErrAmbiguousChange = errors.New("it is not known whether the replicas were changed")

const (
	// maxPromoteLag is how many entries a learner may lack when it is promoted, and a voter to count as caught up:
	// what a busy group has in flight, and far less than what stops commits while it is fetched.
	maxPromoteLag = 1024
	// changeHeartbeats is for how many heartbeats a change waits for the others to be heard of before it is refused.
	changeHeartbeats = 3
)

// changeRequest is a change on its way into the log.
type changeRequest struct {
	confVer uint64
	changes []ReplicaChange
	ticks   int                           // left to wait
	done    func(*base.Descriptor, error) // called once, must not block
}

// ChangeReplicas changes the membership of a shard that this store leads, and returns the descriptor once it is applied
// here. changes holds one AddLearner, or one Remove (of a learner), or any number of Promote and Demote, which become
// one joint change; the joint configuration is left without further asking, after ChangeReplicas has returned. confVer
// is the Epoch.ConfVer that the changes were made for; 0 takes any. Errors: *NotFoundError, *NotLeaderError,
// *FaultedError, *ChangeError (refused, definitely), ErrAmbiguousChange (proposed, leadership lost or ctx ended),
// ErrStopping.
func (s *Store) ChangeReplicas(
	ctx context.Context, shard base.ShardID, confVer uint64, changes []ReplicaChange,
) (*base.Descriptor, error) {
	r, err := s.find(shard)
	if err != nil {
		return nil, err
	}
	type result struct {
		d   *base.Descriptor
		err error
	}
	ch := make(chan result, 1)
	req := &changeRequest{
		confVer: confVer, changes: changes, ticks: changeHeartbeats * s.cfg.HeartbeatTick,
		done: func(d *base.Descriptor, err error) { ch <- result{d, err} },
	}
	if !s.call(r, func(r *replica) { s.workerOf(shard).startChange(r, req) }) {
		return nil, ErrStopping
	}
	select {
	case res := <-ch:
		return res.d, res.err
	case <-ctx.Done():
		return nil, fmt.Errorf("change replicas of %s: %w: %w", shard, ErrAmbiguousChange, ctx.Err())
	}
}

// startChange takes a request on the worker.
func (w *worker) startChange(r *replica, req *changeRequest) {
	switch {
	case r.worker.disposed || r.worker.rn == nil:
		req.done(nil, r.endError())
	case r.worker.change != nil:
		req.done(nil, &ChangeError{Shard: r.shard, Reason: "another change is being checked", Retry: true})
	default:
		w.tryChange(r, req)
	}
}

// tryChange checks a request and proposes it, refuses it, or keeps it for the next tick.
func (w *worker) tryChange(r *replica, req *changeRequest) {
	rw := &r.worker
	rw.change = nil
	c, next, err := w.checkChange(r, req)
	if err == nil {
		if why := w.unfit(r, r.desc.Load(), next); why != "" && req.ticks > 0 {
			rw.change = req // a heartbeat may mend that
			return
		} else if why != "" {
			err = &ChangeError{Shard: r.shard, Reason: why, Retry: true}
		}
	}
	if err == nil {
		err = w.proposeConf(r, &c, req.done)
	}
	if err != nil {
		req.done(nil, err)
	}
}

// tickMembership does a group's slow work at each tick: what has to do with members, leaderships and the log's length.
func (w *worker) tickMembership(r *replica, ticks int) {
	rw := &r.worker
	w.tickChange(r, ticks)
	if rw.leads {
		if rw.nonvoter {
			w.tickNonvoter(r, ticks)
		} else {
			w.tickLeaseless(r, ticks)
			w.tickJoint(r, ticks)
			w.tickShed(r, ticks)
			w.tickFrozen(r, ticks)
		}
	}
	if !r.uninitialised() {
		w.compact(r, ticks)
	}
}

// tickChange tries a waiting change again.
func (w *worker) tickChange(r *replica, ticks int) {
	if req := r.worker.change; req != nil {
		req.ticks -= ticks
		w.tryChange(r, req)
	}
}

// checkChange resolves a request against the applied descriptor and returns the one that it leads to.
func (w *worker) checkChange(r *replica, req *changeRequest) (c confContext, next *base.Descriptor, err error) {
	refuse := func(retry bool, format string, args ...any) (confContext, *base.Descriptor, error) {
		return c, nil, &ChangeError{Shard: r.shard, Reason: fmt.Sprintf(format, args...), Retry: retry}
	}
	st := r.worker.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || r.worker.nonvoter {
		return c, nil, r.notLeaderError(st.Lead)
	}
	d := r.desc.Load()
	if req.confVer != 0 && req.confVer != d.Epoch.ConfVer {
		return refuse(false, "made for ConfVer %d, the shard is at %d", req.confVer, d.Epoch.ConfVer)
	}
	if c, err = resolveChanges(d, req.changes); err != nil {
		return refuse(false, "%s", err)
	}
	switch why := w.confBusy(r, &st); {
	case r.frozen.Load() != nil || r.worker.freezing:
		return refuse(true, "the shard is frozen for a merge")
	case isJoint(d):
		return refuse(true, "the shard is in a joint configuration, which its leader is about to leave")
	case why != "":
		return refuse(true, "%s", why)
	}
	if next, err = c.next(d); err != nil {
		return refuse(false, "%s", err)
	}
	if _, err := decideConf(r.appliedState().Conf, st.Applied, c.change()); err != nil {
		return refuse(false, "%s", err)
	}
	return c, next, nil
}

// resolveChanges names the replicas of a request. The errors say what to mend.
func resolveChanges(d *base.Descriptor, changes []ReplicaChange) (confContext, error) {
	c := confContext{confVer: d.Epoch.ConfVer}
	if len(changes) == 0 {
		return c, errors.New("no change asked for")
	}
	for _, ch := range changes {
		o := confOp{op: ch.Op, replica: ch.Replica, store: ch.Store}
		switch old, ok := d.ReplicaOn(ch.Store); {
		case ch.Op < AddLearner || ch.Op > Remove:
			return c, fmt.Errorf("unknown %s", ch.Op)
		case ch.Store == 0:
			return c, fmt.Errorf("%s: no store given", ch.Op)
		case ch.Op == AddLearner && ok:
			return c, fmt.Errorf("%s holds replica %s already", ch.Store, old.Replica)
		case ch.Op == AddLearner && ch.Replica != 0 && ch.Replica != d.NextReplicaID:
			return c, fmt.Errorf("a new replica gets the next id, %s, not %s", d.NextReplicaID, ch.Replica)
		case ch.Op == AddLearner:
			o.replica = d.NextReplicaID
		case !ok:
			return c, fmt.Errorf("%s: the shard has no replica on %s", ch.Op, ch.Store)
		case ch.Replica != 0 && ch.Replica != old.Replica:
			return c, fmt.Errorf("%s: the replica on %s is %s, not %s", ch.Op, ch.Store, old.Replica, ch.Replica)
		default:
			o.replica = old.Replica
		}
		c.ops = append(c.ops, o)
	}
	return c, c.checkShape()
}

// confBusy says why raft would refuse any conf change now; empty if it would not. Raft answers with an empty entry and
// no reason, so its conditions are mirrored: while it has a conf change that is not applied, or might have one from
// before this term, there is no other.
func (w *worker) confBusy(r *replica, st *raft.BasicStatus) string {
	switch applied := r.appliedState(); {
	case st.LeadTransferee != 0:
		return "a transfer of the leadership is under way"
	case applied.Term != st.Term:
		return "the leader has not applied an entry of its term yet"
	case r.worker.confIndex > applied.Index:
		return "another change of replicas is under way"
	}
	return ""
}

// unfit says why the group cannot bear the change; empty if it can: as many voters as a quorum needs, of the present
// configuration and of the next one, must be alive and caught up, and every learner that becomes a voter.
func (w *worker) unfit(r *replica, d, next *base.Descriptor) string {
	first, _ := r.worker.log.FirstIndex()
	commit := r.commit.Load()
	type state struct {
		voter, learner string // why it does not count as a caught-up voter, may not be promoted
	}
	known := map[base.ReplicaID]state{}
	last := r.lastIndex()
	r.worker.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		rid := base.ReplicaID(id)
		if rid == r.id {
			known[rid] = state{}
			return
		}
		pr.RecentActive = w.isActive(r, id, &pr)
		known[rid] = state{voter: lags(&pr, first, last, commit), learner: lags(&pr, first, last, last)}
	})
	for _, rep := range next.Replicas {
		if old, _ := d.Replica(rep.Replica); old.Role == base.RoleLearner && rep.Role == base.RoleIncoming {
			if why := known[rep.Replica].learner; why != "" {
				return fmt.Sprintf("the learner on %s %s", rep.Store, why)
			}
		}
	}
	check := func(what string, d *base.Descriptor, votes func(base.Role) bool) string {
		voters, fit, why := 0, 0, ""
		for _, rep := range d.Replicas {
			if !votes(rep.Role) {
				continue
			}
			voters++
			if w := known[rep.Replica].voter; w == "" {
				fit++
			} else if why == "" {
				why = fmt.Sprintf("that on %s %s", rep.Store, w)
			}
		}
		if fit >= voters/2+1 {
			return ""
		}
		return fmt.Sprintf("%d of the %d voters of the %s configuration are alive and caught up, %d are needed: %s",
			fit, voters, what, voters/2+1, why)
	}
	if why := check("present", d, func(role base.Role) bool { return role == base.RoleVoter }); why != "" {
		return why
	}
	return check("next", next, func(role base.Role) bool { return role == base.RoleVoter || role == base.RoleIncoming })
}

// lags says what is wrong with a follower, measured against an index; empty if nothing is.
func lags(pr *tracker.Progress, first, last, index uint64) string {
	switch {
	case needsSnapshot(pr, first):
		return "needs a snapshot first"
	case !pr.RecentActive:
		return "has not been heard of recently"
	case !follows(pr, last):
		return fmt.Sprintf("is in state %s, not replicating", pr.State)
	case pr.Match+maxPromoteLag < index:
		return fmt.Sprintf("lacks %d entries, more than %d", index-pr.Match, maxPromoteLag)
	}
	return ""
}

// needsSnapshot reports whether a follower cannot be fed from a log that starts at first.
func needsSnapshot(pr *tracker.Progress, first uint64) bool {
	return pr.State == tracker.StateSnapshot || pr.Next < first
}

// lastIndex returns where the log ends for raft, entries included that are not on disk yet.
func (r *replica) lastIndex() (last uint64) {
	r.worker.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if base.ReplicaID(id) == r.id {
			last = pr.Match
		}
	})
	return last
}

func (r *replica) notLeaderError(lead uint64) error {
	e := &NotLeaderError{Shard: r.shard}
	if lead != 0 && base.ReplicaID(lead) != r.id {
		e.Leader = r.storeOf(base.ReplicaID(lead))
	}
	return e
}

// endError says why a replica that is disposed takes no more requests.
func (r *replica) endError() error {
	if why, bad := r.faultReason(); bad {
		return &FaultedError{Shard: r.shard, Replica: r.id, Reason: why}
	}
	return ErrStopping
}
