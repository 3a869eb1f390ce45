package node

import (
	"bytes"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// scatterTask is a running scatter: the moves are those of a drain, one shard's replica at a time.
type scatterTask struct {
	drainTask
	tried map[base.ShardID]time.Duration // Boot time of the last transfer
}

// scatterSteps is how many moves and transfers a scatter makes for each of its shards at most.
const scatterSteps = 8

// planScatter checks a scatter.
func (r *jobRunner) planScatter(ctx context.Context, s placement.JobSpec) (*placement.Job, error) {
	shards, err := r.scattered(ctx, &s)
	if err != nil {
		return nil, err
	}
	if len(shards) == 0 {
		return nil, refusal("shardctl shards list shows the shards", "no shard lies in the range")
	}
	j := &placement.Job{Spec: s, State: placement.JobRunning}
	w, err := r.scatterWorld(ctx, shards, nil)
	if err != nil {
		return nil, err
	}
	step := placement.NextScatter(j, w)
	j.Steps = placement.ScatterSteps(j, &step, "", 0)
	for i := range j.Steps {
		j.Steps[i].State = placement.StepWaiting
	}
	return j, nil
}

// scattered returns the shards of a scatter in the order of their keys.
func (r *jobRunner) scattered(ctx context.Context, s *placement.JobSpec) (out []placement.ScatterShard, err error) {
	if s.Shard != 0 {
		now, err := r.world.now(ctx, s.Shard)
		if err != nil {
			return nil, err
		}
		return []placement.ScatterShard{{Desc: now.Desc, Leader: now.Leader}}, nil
	}
	for from := s.Start; ; {
		page, err := r.dir.Lookup(ctx, from, listPage, false)
		if err != nil {
			return nil, directoryStatus(err)
		}
		for _, rec := range page {
			if bytes.Compare(rec.Desc.Start, s.End) >= 0 {
				return out, nil
			}
			out = append(out, placement.ScatterShard{Desc: rec.Desc, Leader: r.world.leader(rec.Desc)})
		}
		if len(page) < listPage {
			return out, nil
		}
		from = page[len(page)-1].Desc.End
	}
}

func (r *jobRunner) scatterWorld(ctx context.Context, shards []placement.ScatterShard, resting map[base.ShardID]string) (
	placement.ScatterWorld, error) {
	nodes, err := r.world.nodes(ctx)
	if err != nil {
		return placement.ScatterWorld{}, err
	}
	return placement.ScatterWorld{Nodes: nodes, Shards: shards, Resting: resting, Fits: r.world.fits()}, nil
}

// step steps each move and, now and then, looks at the whole.
func (s *scatterTask) step(ctx context.Context) {
	if s.movers == nil {
		s.movers = make(map[base.ShardID]*jobMover)
		s.resting = make(map[base.ShardID]restingMove)
		s.tried = make(map[base.ShardID]time.Duration)
		s.planned = -drainLook
		s.busy = s.yield
	}
	if s.stepMoves(ctx) {
		s.planned = -drainLook
	}
	if now := s.r.clock.Boot(); now-s.planned >= drainLook {
		s.planned = now
		s.plan(ctx)
	}
}

// plan looks at the whole: begins moves, transfers a leadership, or ends the job.
func (s *scatterTask) plan(ctx context.Context) {
	look, cancel := context.WithTimeout(ctx, jobLook)
	defer cancel()
	if s.job.State == placement.JobCancelling {
		if len(s.job.Moves) == 0 {
			s.steps(placement.ScatterSteps(s.job, &placement.ScatterStep{}, "", placement.JobCancelled))
			s.finish(placement.JobCancelled, "")
		}
		return
	}
	shards, err := s.r.scattered(look, &s.job.Spec)
	resting := make(map[base.ShardID]string)
	now := s.r.clock.Boot()
	for id, rest := range s.resting {
		if now >= rest.until {
			delete(s.resting, id)
			continue
		}
		resting[id] = rest.why
	}
	var w placement.ScatterWorld
	if err == nil {
		w, err = s.r.scatterWorld(look, shards, resting)
	}
	if err != nil {
		s.logf("scatter cannot look at the cluster", "err", err)
		return
	}
	a := placement.NextScatter(s.job, w)
	// The driver looks at all shards and may move back what this moves for the sake of some: one of the two has to give in.
	if s.job.Done >= scatterSteps*uint64(len(shards)) {
		a.Start, a.Shard = nil, 0
	}
	for _, m := range a.Start {
		s.begin(look, m, w.Nodes)
	}
	s.job.Done += uint64(len(a.Start))
	if a.Shard != 0 {
		s.job.Done++
		s.touch(false)
	}
	a.Start = nil
	switch {
	case a.Shard != 0:
		s.steps(placement.ScatterSteps(s.job, &a, "", 0))
		if s.r.leadsAt(s.term) {
			s.lead(ctx, a.Shard, a.To)
		}
		s.planned = -drainLook
	case len(s.job.Moves) == 0:
		s.steps(placement.ScatterSteps(s.job, &a, "", placement.JobDone))
		s.finish(placement.JobDone, "")
	default:
		s.steps(placement.ScatterSteps(s.job, &a, "", 0))
	}
}

// lead transfers a leadership; a shard that does not take it is left alone.
func (s *scatterTask) lead(ctx context.Context, id base.ShardID, to base.StoreID) {
	call, cancel := context.WithTimeout(ctx, jobTransfer)
	defer cancel()
	if at, again := s.tried[id]; again && s.r.clock.Boot()-at < drainRest {
		// Its leader is not where the last transfer brought it, or that has not been reported yet.
		s.rest(id, "its leadership was moved just now")
		return
	}
	if err := s.r.world.transfer(call, id, to); err != nil {
		s.rest(id, status.Convert(err).Message())
		return
	}
	s.tried[id] = s.r.clock.Boot()
}

// stepMoves steps all moves and takes out those that have ended; it reports whether any has.
func (d *drainTask) stepMoves(ctx context.Context) bool {
	before := len(d.job.Moves)
	for i := range d.job.Moves {
		d.stepMove(ctx, &d.job.Moves[i])
	}
	d.job.Moves = slices.DeleteFunc(d.job.Moves, func(m placement.Move) bool {
		if !m.State.Ended() {
			return false
		}
		delete(d.movers, m.Shard)
		if m.State != placement.JobDone {
			d.rest(m.Shard, m.Error)
		} else {
			delete(d.extra, m.Shard)
		}
		return true
	})
	if len(d.job.Moves) == before {
		return false
	}
	d.touch(true)
	return true
}
