package node

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/placement"
)

// Jobs run on the node that leads the meta shard: moves, drains, verifies. What a job is to do next is decided by the
// pure functions of placement; here it is looked at, done and saved. One goroutine follows the leadership of the meta
// shard; under it each running job has one of its own, since a change may wait for a shard without a quorum.
//
// Crash or change of leader: the next leader loads the records and goes on from what the shards are. The old one may
// have a change on its way: the shard takes only one of two that were made for the same ConfVer. It cannot save
// any more, because the new one has saved the record under its own term first.

// Pauses of the runner.
const (
	jobPoll   = 200 * time.Millisecond // between two looks of a job at the world
	jobWatch  = time.Second            // at most, between two looks at who leads
	jobSave   = time.Second            // between two saves of mere progress
	jobReload = 2 * time.Second        // between two looks at the record, for a cancel that came another way
	jobRescan = 2 * time.Second        // between two searches for jobs that were recorded another way
	trimEvery = 64                     // jobs that end between two trims of the history
)

// jobRunner runs the jobs of the cluster while this node leads the meta shard.
type jobRunner struct {
	world   jobWorld
	dir     *placement.Directory
	clock   clock.Clock
	log     *slog.Logger
	metrics *jobMetrics
	limits  placement.Limits
	poll    time.Duration
	watch   time.Duration
	marks   drainMarks
	paused  atomic.Bool          // this node is told to lead nothing
	onEnd   func(*placement.Job) // told of every job that has ended here; may be nil
	wake    chan struct{}        // capacity 1: search for new jobs now
	turned  chan struct{}        // capacity 1: the meta shard has another leader
	ends    atomic.Uint64        // jobs that have ended here

	mu struct {
		sync.Mutex
		since time.Duration // Boot time at which this node began to lead
		tasks map[placement.JobID]*jobTask
	}
}

func newJobRunner(world jobWorld, dir *placement.Directory, c clock.Clock, log *slog.Logger, m *jobMetrics) *jobRunner {
	r := &jobRunner{
		world: world, dir: dir, clock: c, log: log, metrics: m, poll: jobPoll, watch: jobWatch,
		wake: make(chan struct{}, 1), turned: make(chan struct{}, 1),
	}
	r.mu.tasks = make(map[placement.JobID]*jobTask)
	return r
}

// jobLoop runs jobs whenever this node leads the meta shard, until ctx ends.
func (m *member) jobLoop(ctx context.Context) { m.jobs.run(ctx) }

func (r *jobRunner) run(ctx context.Context) {
	for ctx.Err() == nil {
		if term, ok := r.world.leads(); ok {
			r.lead(ctx, term)
			continue // it may lead again by now, and the word of that is taken
		}
		pauseUnless(ctx, clock.UntilAligned(r.watch), r.turned)
	}
}

// lead runs jobs until this node no longer leads at the term, and returns when all its goroutines have ended.
func (r *jobRunner) lead(ctx context.Context, term uint64) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	r.marks.forget()
	r.mu.Lock()
	r.mu.since = r.clock.Boot()
	r.mu.Unlock()
	t := time.NewTimer(clock.UntilAligned(r.watch))
	defer t.Stop()
	var scanned time.Duration
	scan := true
	for {
		if !r.leadsAt(term) {
			return
		}
		if now := r.clock.Boot(); scan || now-scanned >= jobRescan-r.watch/2 {
			jobs, err := r.dir.RunningJobs(ctx)
			if err != nil && ctx.Err() == nil {
				r.log.Warn("cannot load jobs", "err", err)
			}
			scan, scanned = err != nil, now
			for _, j := range jobs {
				r.adopt(ctx, &wg, term, j)
			}
		}
		select {
		case <-t.C:
			t.Reset(clock.UntilAligned(r.watch))
		case <-r.turned:
		case <-r.wake:
			scan = true
		case <-ctx.Done():
			return
		}
	}
}

func (r *jobRunner) leadsAt(term uint64) bool {
	t, ok := r.world.leads()
	return ok && t == term
}

// adopt starts the goroutine of a job that has none.
func (r *jobRunner) adopt(ctx context.Context, wg *sync.WaitGroup, term uint64, j *placement.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.mu.tasks[j.ID]; ok {
		return
	}
	t := &jobTask{r: r, term: term, job: j, poked: make(chan struct{}, 1)}
	t.show()
	r.mu.tasks[j.ID] = t
	wg.Go(func() {
		kind := j.Spec.Kind.String()
		r.metrics.running.WithLabelValues(kind).Inc()
		t.run(ctx)
		r.metrics.running.WithLabelValues(kind).Dec()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.mu.tasks, j.ID)
	})
}

// search makes the runner look for new jobs now.
func (r *jobRunner) search() { poke(r.wake) }

// poke makes a job look at its record now.
func (r *jobRunner) poke(id placement.JobID) {
	r.mu.Lock()
	t := r.mu.tasks[id]
	r.mu.Unlock()
	if t != nil {
		t.poke()
	}
}

// live returns a running job as it stands, progress that is not saved yet included; nil if it does not run here.
func (r *jobRunner) live(id placement.JobID) *placement.Job {
	r.mu.Lock()
	t := r.mu.tasks[id]
	r.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.shown.Load()
}

// leadsFor is how long this node has led the meta shard.
func (r *jobRunner) leadsFor() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock.Boot() - r.mu.since
}

// settling reports whether nodes may be missing from the picture only because this node leads the meta shard too
// shortly to have heard from them.
func (r *jobRunner) settling(nodes map[base.StoreID]placement.NodeNow) bool {
	if r.leadsFor() >= placement.AliveFor {
		return false
	}
	for _, n := range nodes {
		if !n.Heard {
			return true
		}
	}
	return false
}
