package node

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// Merges as jobs. Align: if a person asked, the replicas of the right shard are moved to the nodes of the left one; the
// driver aligns before it merges. Attempt: one merge after the other, each under an id of its own (mergerun.go), until one
// is committed or it is certain that none will be. Whether it is done is read off the left shard: its range has taken the
// right one's start in.
//
// Crash or change of leader: an attempt that was under way is decided by the left shard's log without us; the next runner
// looks at the shards and begins where they are.

const (
	// mergeAttempts is how many attempts a job makes that the shards turn down.
	mergeAttempts = 5
	mergePatience = 2 * time.Minute
)

// mergeTask is a running merge.
type mergeTask struct {
	drainTask // for the moves that align the replicas
	attempt   *merging
	tries     int
	since     time.Duration // Boot time of the first look
	pause     time.Duration // Boot time before which no attempt is made
	trouble   string
}

// merging is one attempt, on a goroutine of its own.
type merging struct {
	cancel context.CancelFunc
	phase  atomic.Pointer[string]
	result chan error // capacity 1
}

// planMerge checks a merge, and finds the right neighbour if it is not named.
func (r *jobRunner) planMerge(ctx context.Context, s placement.JobSpec) (*placement.Job, error) {
	left, err := r.world.now(ctx, s.Shard)
	if err != nil {
		return nil, err
	}
	if s.Shard == base.MetaShard || bytes.Equal(left.Desc.End, base.UserEnd()) {
		return nil, refusal("shardctl shards list shows the shards in order", "%s has no right neighbour to merge with",
			s.Shard)
	}
	if s.Right == 0 {
		d, err := r.world.find(ctx, left.Desc.End)
		if err != nil {
			return nil, err
		}
		s.Right = d.Shard
	}
	right, err := r.world.now(ctx, s.Right)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(left.Desc.End, right.Desc.Start) {
		return nil, refusal("shardctl shards list shows the shards in order", "%s does not begin where %s ends", s.Right,
			s.Shard)
	}
	j := &placement.Job{Spec: s, State: placement.JobRunning, Version: left.Desc.Epoch.Version, Cursor: right.Desc.Start}
	_, _, apart := misaligned(left.Desc, right.Desc)
	switch {
	case len(left.Desc.Replicas) != len(right.Desc.Replicas):
		return nil, refusal("add or remove replicas, so that both have as many", "%s has %d replicas and %s has %d", s.Shard,
			len(left.Desc.Replicas), s.Right, len(right.Desc.Replicas))
	case apart > 0 && s.Origin == placement.OriginDriver:
		return nil, refusal("", "the replicas of %s and %s are not on the same nodes", s.Shard, s.Right)
	}
	j.Total = uint64(apart)
	j.Steps = mergeSteps(j, "", "", placement.StepWaiting)
	return j, nil
}

// misaligned returns a node that the right shard's replica should leave, one that it should go to, and how many such
// there are.
func misaligned(left, right *base.Descriptor) (from, to base.StoreID, n int) {
	for _, r := range right.Replicas {
		if _, ok := left.ReplicaOn(r.Store); !ok {
			from, n = r.Store, n+1
		}
	}
	for _, l := range left.Replicas {
		if _, ok := right.ReplicaOn(l.Store); !ok {
			to = l.Store
		}
	}
	return from, to, n
}

// stop ends an attempt that is under way and waits for it.
func (t *mergeTask) stop() {
	if t.attempt != nil {
		t.attempt.cancel()
		<-t.attempt.result
		t.attempt = nil
	}
}

// step looks at the attempt, else at the shards.
func (t *mergeTask) step(ctx context.Context) {
	now := t.r.clock.Boot()
	if t.movers == nil {
		t.movers = make(map[base.ShardID]*jobMover)
		t.resting = make(map[base.ShardID]restingMove)
		t.since = now
	}
	if len(t.job.Moves) > 0 {
		t.align(ctx)
		return
	}
	if a := t.attempt; a != nil {
		select {
		case err := <-a.result:
			a.cancel()
			t.attempt = nil
			t.judge(err)
		default:
			if t.job.State == placement.JobCancelling {
				a.cancel() // it has the left shard's log decide against the merge, and says what came of it
			}
			t.steps(mergeSteps(t.job, *a.phase.Load(), "", placement.StepRunning))
		}
		return
	}
	look, cancel := context.WithTimeout(ctx, jobLook)
	left, err := t.r.world.now(look, t.job.Spec.Shard)
	cancel()
	switch {
	case err == nil && left.Desc.Epoch.Version > t.job.Version && left.Desc.Contains(t.job.Cursor):
		t.steps(mergeSteps(t.job, "", "", placement.StepDone))
		t.finish(placement.JobDone, "")
	case t.job.State == placement.JobCancelling:
		t.steps(mergeSteps(t.job, "", "", placement.StepSkipped))
		t.finish(placement.JobCancelled, t.job.Error)
	case err != nil:
		t.stuck(err)
	case now >= t.pause && t.r.leadsAt(t.term):
		t.begin(ctx, left.Desc)
	}
}

// begin starts the next attempt, or the next move that aligns the shards.
func (t *mergeTask) begin(ctx context.Context, left *base.Descriptor) {
	look, cancel := context.WithTimeout(ctx, jobLook)
	defer cancel()
	right, err := t.r.world.now(look, t.job.Spec.Right)
	if err != nil {
		t.stuck(err)
		return
	}
	if from, to, apart := misaligned(left, right.Desc); apart > 0 {
		nodes, err := t.r.world.nodes(look)
		if err != nil {
			t.stuck(err)
			return
		}
		t.job.Done = t.job.Total - min(uint64(apart), t.job.Total)
		t.drainTask.begin(look, placement.Move{
			Shard: t.job.Spec.Right, From: from, To: to, State: placement.JobRunning,
		}, nodes)
		if why, resting := t.resting[t.job.Spec.Right]; resting {
			t.fail("the replicas cannot be brought to the same nodes: " + why.why)
		}
		return
	}
	t.job.Done = t.job.Total
	call, stop := context.WithCancel(ctx)
	a := &merging{cancel: stop, result: make(chan error, 1)}
	first := ""
	a.phase.Store(&first)
	t.attempt = a
	t.tries++
	spec := t.job.Spec
	go func() {
		a.result <- t.r.world.merge(call, spec.Shard, spec.Right, func(phase string) { a.phase.Store(&phase) })
	}()
}

// align steps the move that brings the shards together.
func (t *mergeTask) align(ctx context.Context) {
	right := t.job.Spec.Right
	if t.stepMoves(ctx) {
		if why, resting := t.resting[right]; resting && t.job.State == placement.JobRunning {
			t.fail("the replicas could not be brought to the same nodes: " + why.why)
			return
		}
		t.since = t.r.clock.Boot()
	}
	detail := ""
	for i := range t.job.Moves {
		detail = moveText(&t.job.Moves[i])
	}
	t.steps(mergeSteps(t.job, mergeAlign, detail, placement.StepRunning))
}

// mergeAlign is the phase before an attempt.
const mergeAlign = "align"

func moveText(m *placement.Move) string {
	for _, s := range m.Steps {
		if s.State == placement.StepRunning {
			return fmt.Sprintf("%s to %s: %s", m.Shard, m.To, s.Name)
		}
	}
	return fmt.Sprintf("%s to %s", m.Shard, m.To)
}

// judge takes what came of an attempt: the next look says whether it was made.
func (t *mergeTask) judge(err error) {
	if err == nil {
		return
	}
	t.trouble = status.Convert(err).Message()
	t.pause = t.r.clock.Boot() + jobBackoff<<min(t.tries-1, 3)
	t.logf("merge was not made", "reason", t.trouble)
	switch c := status.Code(err); {
	case c == codes.FailedPrecondition, c == codes.Aborted && t.tries >= mergeAttempts:
		t.fail(t.trouble)
	default:
		t.stuck(err)
	}
}

// stuck fails the job if it has come no further for long.
func (t *mergeTask) stuck(err error) {
	t.trouble = status.Convert(err).Message()
	if stuck := t.r.clock.Boot() - t.since; stuck >= mergePatience {
		t.fail(fmt.Sprintf("no progress for %s: %s", stuck.Round(time.Second), t.trouble))
		return
	}
	t.steps(mergeSteps(t.job, "", t.trouble, placement.StepRunning))
}

func (t *mergeTask) fail(why string) {
	t.steps(mergeSteps(t.job, "", "", placement.StepFailed))
	t.finish(placement.JobFailed, why)
}

// mergeSteps draws a merge as lines.
func mergeSteps(j *placement.Job, phase, detail string, state placement.StepState) []placement.Step {
	var out []placement.Step
	if j.Total > 0 {
		s := placement.Step{Name: "align replicas", State: state, Detail: detail, Done: j.Done, Total: j.Total}
		if j.Done == j.Total && state != placement.StepWaiting {
			s.State, s.Detail = placement.StepDone, ""
		}
		out = append(out, s)
	}
	s := placement.Step{Name: fmt.Sprintf("merge %s into %s", j.Spec.Right, j.Spec.Shard), State: state, Detail: detail}
	switch {
	case phase == mergeAlign:
		s.State, s.Detail = placement.StepWaiting, ""
	case phase != "":
		s.Detail = phase
	}
	return append(out, s)
}
