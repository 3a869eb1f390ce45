package placement

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/shardd/shardd/internal/base"
)

// NodeNow is what is known of a node when replicas are to be moved.
type NodeNow struct {
	ID base.StoreID
	// Heard: it has reported to this meta leader. Alive: within AliveFor.
	Heard, Alive bool
	Draining     DrainMode
	Level        string // ok, low or critical
	FreeBytes    uint64 // 0 if it does not say
	Unhealthy    string
	// Replicas and Leaders are what it holds; Replicas includes those on their way to it.
	Replicas, Leaders uint32
}

// LevelOK is the level of a disk with room.
const LevelOK = "ok"

// unfit says why a node should get no replica of so many bytes, empty if it may have one.
func (n *NodeNow) unfit(bytes uint64) (reason, remedy string) {
	switch {
	case !n.Alive:
		return "does not report", "start it, or choose another node"
	case n.Draining != DrainNone:
		return "is being drained", fmt.Sprintf("shardctl nodes undrain %s, or choose another node", n.ID)
	case n.Level != "" && n.Level != LevelOK:
		return "is low on disk (" + n.Level + ")", "free space on it, or choose another node"
	case n.FreeBytes > 0 && bytes > n.FreeBytes:
		return fmt.Sprintf("has %d MiB free and the shard takes %d MiB", n.FreeBytes>>20, bytes>>20),
			"free space on it, or choose another node"
	case n.Unhealthy != "":
		return "is unhealthy (" + n.Unhealthy + ")", "mend it, or choose another node"
	}
	return "", ""
}

// Unfit says why the node should get no replica, empty if it may have one.
func (n *NodeNow) Unfit() string {
	why, _ := n.unfit(0)
	return why
}

// RefusedError says why a job is not started, and what to do.
type RefusedError struct{ Reason, Remedy string }

func (e *RefusedError) Error() string {
	if e.Remedy == "" {
		return e.Reason
	}
	return e.Reason + ": " + e.Remedy
}

// maxParts bounds the parts of one split.
const maxParts = 1024

// CheckSpec says what is wrong with a spec in itself; the error wraps ErrInvalid.
func CheckSpec(s JobSpec) error {
	need := func(what string, on bool) error {
		if !on {
			return fmt.Errorf("%s needs %s: %w", s.Kind, what, ErrInvalid)
		}
		return nil
	}
	var errs []error
	switch s.Kind {
	case JobMove:
		errs = append(errs, need("a shard", s.Shard != 0), need("a node to move from", s.From != 0),
			need("a node to move to", s.To != 0), need("two different nodes", s.From != s.To))
	case JobAddReplica, JobPromote:
		errs = append(errs, need("a shard", s.Shard != 0), need("a node that gets the replica", s.To != 0))
	case JobRemoveReplica:
		errs = append(errs, need("a shard", s.Shard != 0), need("a node that loses its replica", s.From != 0))
	case JobDrain, JobDecommission:
		errs = append(errs, need("a node", s.From != 0))
	case JobVerify:
	case JobSplit:
		errs = append(errs, need("a shard or keys", s.Shard != 0 || len(s.Keys) > 0),
			need("either keys or a number of parts", len(s.Keys) == 0 || s.Parts == 0),
			need("at most 1024 parts", s.Parts <= maxParts), need("2 parts at least", s.Parts != 1))
		if err := checkKeys(s.Keys); err != nil {
			errs = append(errs, fmt.Errorf("split: %w: %w", err, ErrInvalid))
		}
	case JobMerge:
		errs = append(errs, need("a shard", s.Shard != 0), need("two different shards", s.Shard != s.Right))
	case JobScatter:
		errs = append(errs, need("a shard or a range of keys", s.Shard != 0 || len(s.Start) > 0),
			need("a range that ends behind its start", s.Shard != 0 || bytes.Compare(s.Start, s.End) < 0))
	default:
		return fmt.Errorf("unknown kind of job %d: %w", s.Kind, ErrInvalid)
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Plan checks a job that changes the replicas of a shard against the shard and the nodes as they are, and returns it
// ready to start, with its steps. *RefusedError: it would do nothing, or must not be done.
func Plan(s JobSpec, now *ShardNow, nodes map[base.StoreID]NodeNow) (*Job, error) {
	if err := CheckSpec(s); err != nil {
		return nil, err
	}
	refuse := func(remedy, format string, args ...any) error {
		return &RefusedError{Reason: fmt.Sprintf(format, args...), Remedy: remedy}
	}
	shard := now.Desc.Shard
	members := "it has replicas on " + stores(now.Desc)
	j := &Job{Spec: s, State: JobRunning}
	for _, id := range []base.StoreID{s.From, s.To} {
		if _, ok := nodes[id]; id != 0 && !ok {
			return nil, refuse("shardctl nodes list shows the nodes", "there is no node %s", id)
		}
	}
	if now.Joint() {
		return nil, refuse("try again shortly; it leaves Joint by itself", "%s is in the middle of a change (Joint)", shard)
	}
	if s.Kind == JobMove || s.Kind == JobAddReplica {
		if _, ok := now.Desc.ReplicaOn(s.To); ok {
			return nil, refuse(members, "%s already has a replica of %s", s.To, shard)
		}
		n := nodes[s.To]
		if why, remedy := n.unfit(now.Bytes()); why != "" {
			return nil, refuse(remedy, "%s %s", s.To, why)
		}
	}
	var changes []Change
	switch s.Kind {
	case JobMove, JobRemoveReplica:
		r, ok := now.Desc.ReplicaOn(s.From)
		if !ok {
			return nil, refuse(members, "%s has no replica of %s", s.From, shard)
		}
		j.Replica, j.Spec.Learner = r.Replica, r.Role == base.RoleLearner
		if s.Kind == JobRemoveReplica && len(now.Desc.Replicas) == 1 {
			return nil, refuse("add one on another node first, or move it", "it is the only replica of %s", shard)
		}
		if r.Role == base.RoleVoter {
			changes = []Change{{ChangeDemote, s.From, r.Replica}}
		}
	case JobPromote:
		switch r, ok := now.Desc.ReplicaOn(s.To); {
		case !ok:
			return nil, refuse(members, "%s has no replica of %s", s.To, shard)
		case r.Role == base.RoleVoter:
			return nil, refuse("there is nothing to do", "the replica of %s on %s is a voter", shard, s.To)
		}
		j.Spec.Learner = false
	}
	alive := func(p ReplicaNow) bool { return p.Active || p.Store == now.Leader || nodes[p.Store].Alive }
	if why := unsafeVoters(withLearner(now, s.To), append(promoteTo(j), changes...), alive); why != "" {
		return nil, refuse("", "%s", why)
	}
	j.Steps = newReplicas(j, World{Shard: now}).steps(phaseAsk+1, "", 0)
	for i := range j.Steps {
		j.Steps[i].State = StepWaiting
		j.Steps[i].Detail = ""
		j.Steps[i].Lag = 0
		if j.Steps[i].Name == (&replicas{j: j}).stepName(phaseSnapshot) {
			j.Steps[i].Bytes = now.Bytes()
		}
	}
	return j, nil
}

// promoteTo is the promotion that a job ends with, if it does.
func promoteTo(j *Job) []Change {
	if j.Spec.To == 0 || j.Spec.Learner {
		return nil
	}
	return []Change{{Op: ChangePromote, Store: j.Spec.To}}
}

// withLearner is the shard with a learner added on a store.
func withLearner(now *ShardNow, to base.StoreID) *ShardNow {
	if to == 0 {
		return now
	}
	if _, ok := now.Desc.ReplicaOn(to); ok {
		return now
	}
	c := *now
	c.Desc = now.Desc.Clone()
	c.Desc.Replicas = append(c.Desc.Replicas, base.ReplicaDesc{
		Replica: c.Desc.NextReplicaID, Store: to, Role: base.RoleLearner,
	})
	return &c
}

func stores(d *base.Descriptor) string {
	var out []string
	for _, r := range d.Replicas {
		s := r.Store.String()
		if r.Role != base.RoleVoter {
			s += " (" + r.Role.String() + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
