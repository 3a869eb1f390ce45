package placement

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// A scatter. The shards of a range are spread by themselves, whatever other shards there are: first their replicas, as
// many as may be moved at once, then their leaders. It looks at what is at each step, so it may be stopped and taken over
// at any point; it ends when no step would make the spread better.

// ScatterAtOnce is how many replicas a scatter moves at the same time.
const ScatterAtOnce = 4

// ScatterShard is one of the shards, as far as known.
type ScatterShard struct {
	Desc   *base.Descriptor
	Leader base.StoreID // 0 if unknown
}

// ScatterWorld is what the next step of a scatter is decided from.
type ScatterWorld struct {
	Nodes  map[base.StoreID]NodeNow
	Shards []ScatterShard
	// Resting shards are not tried for now; the text says why.
	Resting map[base.ShardID]string
	// Fits reports whether the rules hold as well, or better, with a replica on another node.
	Fits func(d *base.Descriptor, from, to base.StoreID) bool
}

// ScatterStep is what comes next: moves to begin, or a leadership to transfer, or neither if the shards are spread.
type ScatterStep struct {
	Start []Move
	// Shard's leadership goes to To, if Shard is not 0.
	Shard base.ShardID
	To    base.StoreID
	// Spread is how far apart the nodes are: replicas, leaders.
	Replicas, Leaders int
}

// NextScatter decides the next step. It is pure.
func NextScatter(j *Job, w ScatterWorld) ScatterStep {
	replicas, leaders := make(map[base.StoreID]int), make(map[base.StoreID]int)
	for _, s := range w.Shards {
		leaders[s.Leader]++
		for _, r := range s.Desc.Replicas {
			replicas[r.Store]++
		}
	}
	moving := make(map[base.ShardID]bool)
	for _, m := range j.Moves {
		moving[m.Shard] = true
		if d := w.desc(m.Shard); d != nil {
			if _, there := d.ReplicaOn(m.To); !there {
				replicas[m.To]++
			}
		}
		replicas[MoveJob(j, &m).Spec.From]--
	}
	var ids []base.StoreID // of nodes that may get replicas
	for id := range w.Nodes {
		n := w.Nodes[id]
		if n.Unfit() == "" {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var step ScatterStep
	for len(j.Moves)+len(step.Start) < ScatterAtOnce {
		m, ok := w.move(ids, replicas, moving)
		if !ok {
			break
		}
		step.Start = append(step.Start, m)
		moving[m.Shard] = true
		replicas[m.From]--
		replicas[m.To]++
	}
	step.Replicas, step.Leaders = spreadOf(ids, replicas), spreadOf(ids, leaders)
	if len(step.Start) > 0 || len(j.Moves) > 0 {
		return step
	}
	step.Shard, step.To = w.transfer(ids, leaders)
	return step
}

func (w *ScatterWorld) desc(id base.ShardID) *base.Descriptor {
	for _, s := range w.Shards {
		if s.Desc.Shard == id {
			return s.Desc
		}
	}
	return nil
}

func spreadOf(ids []base.StoreID, n map[base.StoreID]int) int {
	if len(ids) == 0 {
		return 0
	}
	lo, hi := n[ids[0]], n[ids[0]]
	for _, id := range ids {
		lo, hi = min(lo, n[id]), max(hi, n[id])
	}
	return hi - lo
}

// move finds the move that takes most from the fullest and gives to the emptiest.
func (w *ScatterWorld) move(ids []base.StoreID, count map[base.StoreID]int, moving map[base.ShardID]bool) (Move, bool) {
	from := slices.Clone(ids)
	slices.SortStableFunc(from, func(a, b base.StoreID) int { return cmp.Compare(count[b], count[a]) })
	to := slices.Clone(ids)
	slices.SortStableFunc(to, func(a, b base.StoreID) int { return cmp.Compare(count[a], count[b]) })
	for _, f := range from {
		for _, t := range to {
			if count[f]-count[t] < 2 {
				break
			}
			for _, s := range w.Shards {
				d := s.Desc
				r, has := d.ReplicaOn(f)
				_, there := d.ReplicaOn(t)
				if !has || there || moving[d.Shard] || w.Resting[d.Shard] != "" || !w.Fits(d, f, t) {
					continue
				}
				return Move{
					Shard: d.Shard, From: f, Replica: r.Replica, To: t, Learner: r.Role == base.RoleLearner, State: JobRunning,
				}, true
			}
		}
	}
	return Move{}, false
}

// transfer finds a leadership that goes from a node with many to one with few.
func (w *ScatterWorld) transfer(ids []base.StoreID, count map[base.StoreID]int) (base.ShardID, base.StoreID) {
	for _, s := range w.Shards {
		if s.Leader == 0 || w.Resting[s.Desc.Shard] != "" {
			continue
		}
		var best base.StoreID
		for _, r := range s.Desc.Replicas {
			if r.Role == base.RoleVoter && slices.Contains(ids, r.Store) && count[s.Leader]-count[r.Store] >= 2 &&
				(best == 0 || count[r.Store] < count[best]) {
				best = r.Store
			}
		}
		if best != 0 {
			return s.Desc.Shard, best
		}
	}
	return 0, 0
}

// ScatterSteps draws a scatter as lines for people.
func ScatterSteps(j *Job, s *ScatterStep, detail string, ended JobState) []Step {
	state := StepRunning
	switch ended {
	case JobDone:
		state = StepDone
	case JobCancelled:
		state = StepSkipped
	case JobFailed:
		state = StepFailed
	}
	replicas := Step{Name: "spread replicas", State: state, Detail: detail}
	leaders := Step{Name: "spread leaders", State: StepWaiting}
	if s.Replicas > 0 {
		replicas.Detail = join(detail, fmt.Sprintf("%d apart", s.Replicas))
	}
	switch {
	case ended != 0:
		leaders.State = state
	case len(j.Moves) == 0 && len(s.Start) == 0:
		replicas.State, leaders.State = StepDone, StepRunning
	}
	if s.Leaders > 0 {
		leaders.Detail = fmt.Sprintf("%d apart", s.Leaders)
	}
	out := []Step{replicas}
	for i := range j.Moves {
		out = append(out, moveStep(&j.Moves[i]))
	}
	for i := range s.Start {
		out = append(out, moveStep(&s.Start[i]))
	}
	return append(out, leaders)
}
