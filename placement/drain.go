package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// A drain. The mark on the node keeps leaderships, and in mode replicas also new replicas, off it; the node itself
// hands its leaderships over when it reads the mark in the answer to a report. Replicas are moved a few at a time, each
// by the steps of a move job of its own that is kept inside the drain's record: the target is chosen once and saved
// before anything is done, so that a new runner goes on with it.

// DrainAtOnce is how many replicas a drain moves at the same time.
const DrainAtOnce = 2

// DrainWorld is what a drain's next step is decided from.
type DrainWorld struct {
	Nodes map[base.StoreID]NodeNow
	// Shards are those of the index that list the node, in any order.
	Shards []*base.Descriptor
	// Resting shards are not tried for now; the text says why.
	Resting map[base.ShardID]string
	// Settling: not all nodes have been heard since this runner took over. Nothing is chosen from half a picture.
	Settling bool
	// Pick chooses the node for the replica that leaves; 0 if there is none, and why says what is wrong with each. Nil:
	// PickTarget.
	Pick   func(d *base.Descriptor, nodes map[base.StoreID]NodeNow) (to base.StoreID, why string)
	Watch  Watch
	Now    time.Duration
	Limits Limits
}

// DrainAction is what a drain does next.
type DrainAction struct {
	// Start are the moves to add to the job.
	Start []Move
	// End: the job ends as State, for Reason.
	End    bool
	State  JobState
	Reason string
	// Total is how many replicas there were to move, Done how many have gone.
	Done, Total uint64
	At          Progress
	Steps       []Step
}

// MoveJob is a drain's move as a job of its own, for Next.
func MoveJob(j *Job, m *Move) *Job {
	from := m.From
	if from == 0 {
		from = j.Spec.From
	}
	out := &Job{
		ID:    j.ID,
		Spec:  JobSpec{Kind: JobMove, Shard: m.Shard, From: from, To: m.To, Learner: m.Learner},
		State: m.State, Error: m.Error, Replica: m.Replica, Steps: m.Steps,
	}
	if len(out.Steps) == 0 {
		// An earlier runner may have begun: its changes may still be on their way.
		r := replicas{j: out, adds: true, drops: true, voter: !m.Learner}
		for _, p := range r.phases() {
			out.Steps = append(out.Steps, Step{Name: r.stepName(p), State: StepWaiting})
		}
		out.Steps[0].State = StepRunning
	}
	return out
}

// NextDrain decides the next step of a drain that has not ended. It is pure.
func NextDrain(j *Job, w DrainWorld) DrainAction {
	w.Limits = w.Limits.withDefaults()
	node := w.Nodes[j.Spec.From]
	left := uint64(len(w.Shards))
	a := DrainAction{Total: max(j.Total, left)}
	a.Done = a.Total - left
	var leaders uint64
	if node.Alive {
		leaders = uint64(node.Leaders)
	}
	blocked := blockedLeaders(j, w)
	moving := ""
	if j.Spec.Replicas {
		a.Start, blocked = choose(j, w, DrainAtOnce)
		moving = drainText(j, left, blocked)
	}
	a.At = Progress{Phase: 1, Amount: 1<<32 - min(1<<32, left*1000+leaders)}
	if !j.Spec.Replicas {
		a.At.Amount = 1<<32 - min(1<<32, leaders)
	}
	stuck := w.Now - w.Watch.See(a.At, w.Now).Since
	leaving := j.Spec.Kind == JobDecommission
	var over bool
	switch {
	case j.State == JobCancelling || node.Draining == DrainNone:
		a.Start = nil
		moving = "stops: lets the moves that have begun come to an end"
		if over = len(j.Moves) == 0; over {
			a.End, a.State = true, JobCancelled
			a.Reason = ""
			switch {
			case leaving && node.Draining != DrainNone:
				a.Reason = fmt.Sprintf("%s stays marked as decommissioning: shardctl nodes recommission %s", j.Spec.From, j.Spec.From)
			case node.Draining != DrainNone:
				a.Reason = fmt.Sprintf("%s stays marked as draining: shardctl nodes undrain %s", j.Spec.From, j.Spec.From)
			}
		}
	case w.Settling:
	case leaders == 0 && !j.Spec.Replicas,
		leaders == 0 && left == 0 && len(j.Moves) == 0 && (!node.Alive || node.Replicas == 0):
		a.End, a.State = true, JobDone
	case left == 0 && len(j.Moves) == 0 && j.Spec.Replicas:
		moving = fmt.Sprintf("%s still has %d replicas on its disk that no shard lists", j.Spec.From, node.Replicas)
		over = stuck >= w.Limits.Stall
	default:
		over = stuck >= w.Limits.Stall && len(j.Moves) == 0
	}
	// A decommission waits for what is in its way; it says what that is.
	if over && !a.End && !(leaving && j.State == JobRunning) {
		a.End, a.State = true, JobFailed
		why := strings.Join(append([]string{moving}, blocked...), "; ")
		a.Reason = fmt.Sprintf("nothing left %s for %s (%s): mend that and drain it again, or shardctl nodes undrain %s",
			j.Spec.From, stuck.Round(time.Second), strings.Trim(why, "; "), j.Spec.From)
	}
	a.Steps = drainSteps(j, &a, leaders, moving, blocked)
	return a
}

// choose picks the next moves, so that atOnce are under way, and says what cannot be moved and why.
func choose(j *Job, w DrainWorld, atOnce int) (start []Move, blocked []string) {
	nodes := maps.Clone(w.Nodes)
	for _, m := range j.Moves {
		addTo(nodes, m.To)
	}
	shards := slices.Clone(w.Shards)
	slices.SortFunc(shards, func(a, b *base.Descriptor) int {
		// The meta shard last: everything else asks it.
		if meta := base.MetaShard; (a.Shard == meta) != (b.Shard == meta) {
			return cmp.Compare(b.Shard, a.Shard)
		}
		return cmp.Compare(a.Shard, b.Shard)
	})
	for _, d := range shards {
		if slices.ContainsFunc(j.Moves, func(m Move) bool { return m.Shard == d.Shard }) {
			continue
		}
		r, ok := d.ReplicaOn(j.Spec.From)
		if !ok {
			continue
		}
		if why, resting := w.Resting[d.Shard]; resting {
			blocked = append(blocked, d.Shard.String()+": "+why)
			continue
		}
		pick := w.Pick
		if pick == nil {
			pick = PickTarget
		}
		to, why := pick(d, nodes)
		if to == 0 {
			blocked = append(blocked, fmt.Sprintf("no node left that could take %s (%s)", d.Shard, why))
			continue
		}
		if len(j.Moves)+len(start) < atOnce && !w.Settling {
			start = append(start, Move{
				Shard: d.Shard, Replica: r.Replica, To: to, Learner: r.Role == base.RoleLearner, State: JobRunning,
			})
			addTo(nodes, to)
		}
	}
	return start, blocked
}

// PlanDrain draws a whole drain as steps, for a dry run: which replica would go where. bytes tells the size of a shard;
// it is asked for the first of them only.
func PlanDrain(j *Job, w DrainWorld, bytes func(base.ShardID) uint64) []Step {
	const most = maxSteps - 4
	start, blocked := choose(j, w, len(w.Shards))
	steps := drainSteps(&Job{Spec: j.Spec}, &DrainAction{}, uint64(w.Nodes[j.Spec.From].Leaders), "", nil)[:2]
	for _, m := range start[:min(len(start), most)] {
		steps = append(steps, Step{Name: fmt.Sprintf("%s to %s", m.Shard, m.To), Bytes: bytes(m.Shard)})
	}
	if more := len(start) - most; more > 0 {
		steps = append(steps, Step{Name: fmt.Sprintf("and %d more", more)})
	}
	if len(blocked) > 0 {
		steps = append(steps, Step{Name: "blocked", Detail: some(blocked)})
	}
	for i := range steps {
		steps[i].State = StepWaiting
	}
	return steps
}

func addTo(nodes map[base.StoreID]NodeNow, id base.StoreID) {
	n := nodes[id]
	n.ID = id
	n.Replicas++
	nodes[id] = n
}

// PickTarget chooses the node for a replica: it lives, has room, is not drained and has no replica of the shard; of
// those the one with the fewest replicas, then the lowest id. 0: there is none, and why says what is wrong with each.
func PickTarget(d *base.Descriptor, nodes map[base.StoreID]NodeNow) (to base.StoreID, why string) {
	ids := make([]base.StoreID, 0, len(nodes))
	for id := range nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var wrong []string
	for _, id := range ids {
		n := nodes[id]
		if _, has := d.ReplicaOn(id); has {
			wrong = append(wrong, id.String()+" has one")
			continue
		}
		if reason, _ := n.unfit(0); reason != "" {
			wrong = append(wrong, id.String()+" "+reason)
			continue
		}
		if to == 0 || n.Replicas < nodes[to].Replicas {
			to = id
		}
	}
	if to != 0 {
		return to, ""
	}
	return 0, strings.Join(wrong, ", ")
}

// blockedLeaders names the shards whose leadership cannot go because the node has their only voter.
func blockedLeaders(j *Job, w DrainWorld) (out []string) {
	for _, d := range w.Shards {
		voters := 0
		for _, r := range d.Replicas {
			if r.Role != base.RoleLearner {
				voters++
			}
		}
		if r, ok := d.ReplicaOn(j.Spec.From); ok && r.Role != base.RoleLearner && voters == 1 {
			out = append(out, fmt.Sprintf("%s has its only voter on %s: add a replica, or drain with --replicas",
				d.Shard, j.Spec.From))
		}
	}
	slices.Sort(out)
	return out
}

func drainText(j *Job, left uint64, blocked []string) string {
	if len(blocked) == 0 || left == 0 {
		return ""
	}
	if len(j.Moves) == 0 && uint64(len(blocked)) >= left {
		return "blocked: " + some(blocked)
	}
	return fmt.Sprintf("%d cannot be moved now: %s", len(blocked), some(blocked))
}

// some is the first few of a list and how many more there are.
func some(list []string) string {
	const few = 3
	if len(list) <= few {
		return strings.Join(list, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(list[:few], "; "), len(list)-few)
}

// drainSteps draws the drain as lines for people.
func drainSteps(j *Job, a *DrainAction, leaders uint64, moving string, blocked []string) []Step {
	state := StepRunning
	if a.End {
		state = map[JobState]StepState{JobDone: StepDone, JobFailed: StepFailed, JobCancelled: StepSkipped}[a.State]
	}
	mark := Step{Name: "mark " + j.Spec.From.String(), State: StepDone, Detail: "no leaderships"}
	if j.Spec.Kind == JobDecommission {
		mark.Name += " as leaving"
	}
	lead := Step{Name: "hand leaderships over", State: state}
	most := leaders
	for _, s := range j.Steps {
		if s.Name == lead.Name {
			most = max(most, s.Total)
		}
	}
	lead.Done, lead.Total = most-leaders, most
	switch {
	case leaders == 0:
		lead.State = StepDone
	case !j.Spec.Replicas && len(blocked) > 0:
		lead.Detail = some(blocked)
	}
	out := []Step{mark, lead}
	if !j.Spec.Replicas {
		return out
	}
	out[0].Detail = "no leaderships, no new replicas"
	out = append(out, Step{Name: "move replicas", State: state, Detail: moving, Done: a.Done, Total: a.Total})
	for i := range j.Moves {
		out = append(out, moveStep(&j.Moves[i]))
	}
	for _, m := range a.Start {
		out = append(out, moveStep(&m))
	}
	return out
}

// moveStep draws one move of a drain as one line: what it is at now.
func moveStep(m *Move) Step {
	s := Step{Name: fmt.Sprintf("%s to %s", m.Shard, m.To), State: StepRunning}
	for _, sub := range m.Steps {
		if sub.Bytes > 0 {
			s.BytesDone, s.Bytes = sub.BytesDone, sub.Bytes
		}
		if sub.State == StepRunning {
			s.Detail, s.Rate, s.Lag = sub.Name, sub.Rate, sub.Lag
			if sub.Detail != "" {
				s.Detail += ": " + sub.Detail
			}
			break
		}
	}
	return s
}
