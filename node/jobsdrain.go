package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// Pauses of a drain.
const (
	drainLook = time.Second     // between two looks at the whole
	drainWalk = 2 * time.Minute // for one walk of the index, which takes as long as the index is large
	// A walk is made at most a twentieth of the time.
	drainWalkShare = 20
	drainRest      = 10 * time.Second // before a shard whose move was refused or undone is tried again
)

// drainTask is a running drain.
type drainTask struct {
	*jobTask
	movers  map[base.ShardID]*jobMover
	resting map[base.ShardID]restingMove
	planned time.Duration // Boot time of the last look at the whole
	watch   placement.Watch

	walked time.Duration // Boot time of the last walk of the index
	took   time.Duration // by it
	// extra are the shards of the last walk that the reports did not show.
	extra map[base.ShardID]*base.Descriptor
}

type restingMove struct {
	why   string
	until time.Duration // Boot time
}

// step steps each move and, now and then, looks at the whole.
func (d *drainTask) step(ctx context.Context) {
	if d.movers == nil {
		d.movers = make(map[base.ShardID]*jobMover)
		d.resting = make(map[base.ShardID]restingMove)
		d.planned, d.walked = -drainLook, -drainWalk
		d.busy = d.yield
	}
	if d.stepMoves(ctx) {
		d.planned = -drainLook
	}
	if now := d.r.clock.Boot(); now-d.planned >= drainLook {
		d.planned = now
		d.plan(ctx)
	}
}

// yield gives up the new move of a shard that another job has locked meanwhile.
func (d *drainTask) yield(busy *placement.BusyError) {
	d.job.Moves = slices.DeleteFunc(d.job.Moves, func(m placement.Move) bool {
		if m.Shard.String() != busy.What {
			return false
		}
		d.rest(m.Shard, busy.Error())
		return true
	})
}

func (d *drainTask) rest(id base.ShardID, why string) {
	if why == "" {
		why = "was cancelled"
	}
	d.resting[id] = restingMove{why, d.r.clock.Boot() + drainRest}
}

// stepMove is one step of one move.
func (d *drainTask) stepMove(ctx context.Context, m *placement.Move) {
	mv := d.movers[m.Shard]
	if mv == nil {
		mv = &jobMover{}
		d.movers[m.Shard] = mv
	}
	if d.job.State == placement.JobCancelling && m.State == placement.JobRunning {
		m.State = placement.JobCancelling
		d.touch(true)
	}
	j := placement.MoveJob(d.job, m)
	a := d.look(ctx, j, mv)
	if !slices.Equal(m.Steps, a.Steps) {
		m.Steps = a.Steps
		d.touch(false)
	}
	switch a.Do {
	case placement.ActUndo:
		m.State, m.Error = placement.JobCancelling, a.Reason
		d.touch(true)
	case placement.ActEnd:
		m.State, m.Error = a.State, a.Reason
		d.logf("job move ended", "shard", m.Shard.String(), "to", m.To.String(), "state", m.State.String(),
			"error", m.Error)
	default:
		if !d.stateful { // a move that the record does not have yet is not begun
			d.act(ctx, j, mv, a)
		}
	}
}

// plan looks at the whole: what is left, what may begin, what blocks it.
func (d *drainTask) plan(ctx context.Context) {
	look, cancel := context.WithTimeout(ctx, jobLook)
	nodes, err := d.r.world.nodes(look)
	cancel()
	var shards []*base.Descriptor
	if err == nil {
		shards, err = d.left(ctx)
	}
	if err != nil {
		d.logf("drain cannot look at the cluster", "err", err)
		return
	}
	w := placement.DrainWorld{
		Nodes: nodes, Shards: shards, Resting: make(map[base.ShardID]string), Settling: d.r.settling(nodes),
		Pick:  d.r.world.picker(d.job.Spec.From),
		Watch: d.watch, Now: d.r.clock.Boot(), Limits: d.r.limits,
	}
	for id, rest := range d.resting {
		if w.Now >= rest.until {
			delete(d.resting, id)
			continue
		}
		w.Resting[id] = rest.why
	}
	a := placement.NextDrain(d.job, w)
	d.watch = d.watch.See(a.At, w.Now)
	if d.job.Done != a.Done || d.job.Total != a.Total {
		d.job.Done, d.job.Total = a.Done, a.Total
		d.touch(false)
	}
	look, cancel = context.WithTimeout(ctx, jobLook)
	defer cancel()
	for _, m := range a.Start {
		d.begin(look, m, nodes)
	}
	d.steps(a.Steps)
	if a.End {
		d.finish(a.State, a.Reason)
	}
}

// left returns the shards that list the node: those that the reports show, and those that only the index has, as of its
// last walk. The index is walked once in a while, and before it is said that none is left.
func (d *drainTask) left(ctx context.Context) ([]*base.Descriptor, error) {
	now := d.r.clock.Boot()
	shown := d.r.world.listing(d.job.Spec.From)
	if len(shown)+len(d.extra) > 0 && now-d.walked < max(drainLook, drainWalkShare*d.took) {
		have := make(map[base.ShardID]bool, len(shown))
		for _, s := range shown {
			have[s.Shard] = true
		}
		for id, s := range d.extra {
			if !have[id] {
				shown = append(shown, s)
			}
		}
		return shown, nil
	}
	ctx, cancel := context.WithTimeout(ctx, drainWalk)
	defer cancel()
	all, err := d.r.holding(ctx, d.job.Spec.From)
	d.walked = d.r.clock.Boot()
	d.took = d.walked - now
	if err != nil {
		return nil, err
	}
	d.extra = make(map[base.ShardID]*base.Descriptor)
	for _, s := range all {
		d.extra[s.Shard] = s
	}
	for _, s := range shown {
		delete(d.extra, s.Shard)
	}
	return all, nil
}

// begin adds a move after a look at the shard itself, since the index may be behind.
func (d *drainTask) begin(ctx context.Context, m placement.Move, nodes map[base.StoreID]placement.NodeNow) {
	now, err := d.r.world.now(ctx, m.Shard)
	if err != nil {
		d.rest(m.Shard, status.Convert(err).Message())
		return
	}
	from := placement.MoveJob(d.job, &m).Spec.From
	spec := placement.JobSpec{Kind: placement.JobMove, Shard: m.Shard, From: from, To: m.To}
	planned, err := placement.Plan(spec, now, nodes)
	if err != nil {
		var refused *placement.RefusedError
		if _, there := now.Desc.ReplicaOn(from); !there && errors.As(err, &refused) {
			delete(d.extra, m.Shard)
			return // it has gone already
		}
		d.rest(m.Shard, err.Error())
		return
	}
	m.Replica, m.Learner, m.Steps = planned.Replica, planned.Spec.Learner, planned.Steps
	d.job.Moves = append(d.job.Moves, m)
	d.touch(true)
}

// holding returns the shards that list a node.
func (r *jobRunner) holding(ctx context.Context, id base.StoreID) (out []*base.Descriptor, err error) {
	for after := []byte(nil); ; {
		page, next, err := r.dir.ListShards(ctx, after, listPage)
		if err != nil {
			return nil, err
		}
		for _, s := range page {
			if _, ok := s.Desc.ReplicaOn(id); ok {
				out = append(out, s.Desc)
			}
		}
		if after = next; next == nil {
			break
		}
	}
	// What the reports show and the index does not yet, such as the right-hand side of a split.
	have := make(map[base.ShardID]bool, len(out))
	for _, d := range out {
		have[d.Shard] = true
	}
	for _, d := range r.world.listing(id) {
		if !have[d.Shard] {
			out = append(out, d)
		}
	}
	return out, nil
}
