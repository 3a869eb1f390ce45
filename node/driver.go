package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

// The placement driver runs on the node that leads the meta shard. Each second, and when a report brings a new
// descriptor, it has the planner look at the view and starts what that proposes.
//
//	take over   the term is recorded as the fence; the planner waits for the reports of all nodes, or a grace period
//	round       settings, rules and nodes are read; the planner proposes; operators begin
//	operator    a job in the meta shard, created only while the fence is held, with the shard's lock; run by jobs.go.
//	            A leadership transfer lives in memory: its loss harms nobody
//	end         of a job or transfer: the planner is told, so that a failure is not repeated at once
//
// Crash or change of leader at any point: the next leader's jobs go on from what the shards are; what the old one still
// sends finds another fence, another owner of the job, or a lock. Nothing on the data path waits for any of it.

// Pauses and bounds of the driver.
const (
	driverPoll  = time.Second            // at most, between two looks at who leads
	driverPause = 100 * time.Millisecond // at least, between two rounds
	driverRead  = 5 * time.Second        // for what a round reads from the meta shard
	// driverStart bounds the look at a shard before its operator begins, and what is recorded then.
	driverStart = 20 * time.Second
	// driverTransfer bounds one transfer.
	driverTransfer = 15 * time.Second
	// driverLost is the age of an operator from which its job should run.
	driverLost = 10 * time.Second
	// driverDeaf is the time between two rounds from which it does not count as silence of the nodes: this one was
	// suspended, and so were their reports.
	driverDeaf = 30 * time.Second
)

// driver is the loop of one node.
type driver struct {
	m       *member
	wake    chan struct{} // capacity 1: plan now
	turned  chan struct{} // capacity 1: the meta shard has another leader
	metrics *driverMetrics
	// before, if set, is called before each round; for tests.
	before func()
}

func newDriver(m *member, metrics *driverMetrics) *driver {
	return &driver{m: m, wake: make(chan struct{}, 1), turned: make(chan struct{}, 1), metrics: metrics}
}

// poke has the next round planned soon.
func (d *driver) poke() { poke(d.wake) }

// run drives whenever this node leads the meta shard, until ctx ends.
func (d *driver) run(ctx context.Context) {
	for ctx.Err() == nil {
		if term, ok := d.m.leadsMeta(); ok {
			d.m.reports.enterTerm(term)
			d.lead(ctx, term)
			d.metrics.idle()
			continue // it may lead again by now, and the word of that is taken
		}
		pauseUnless(ctx, clock.UntilAligned(driverPoll), d.turned)
	}
}

// lead drives until this node no longer leads at the term, and returns when what it began in memory has ended.
func (d *driver) lead(ctx context.Context, term uint64) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{driver: d, term: term, ctx: ctx}
	defer w.wg.Wait()
	defer cancel()
	d.m.plan.mu.Lock()
	d.m.plan.enterLocked(term)
	d.m.plan.mu.Unlock()
	w.fence()
	interval := d.m.n.cfg.Settings.PlanInterval
	poll := min(interval, driverPoll)
	t := time.NewTimer(clock.UntilAligned(poll))
	defer t.Stop()
	var last time.Duration
	for {
		if !w.leads() {
			return
		}
		// Ticks are as far apart as rounds, give or take what a round takes.
		if now := d.m.clock.Boot(); last == 0 || now-last >= interval-poll/2 {
			w.round()
			last = max(now, d.m.clock.Boot()-poll/4) // never one round behind the other without a pause
		}
		select {
		case <-t.C:
			t.Reset(clock.UntilAligned(poll))
		case <-d.turned:
		case <-d.wake:
			pause(ctx, driverPause)
			last = 0
		case <-ctx.Done():
			return
		}
	}
}

// round plans once and begins what comes of it.
func (w *watch) round() {
	if w.d().before != nil {
		w.d().before()
	}
	m := w.m
	read, cancel := context.WithTimeout(w.ctx, driverRead)
	policy, err := m.rules.refresh(read, m.dir, m.clock.Boot(), false)
	if err == nil {
		err = m.updateMembers(read, w.term)
	}
	cancel()
	if err == nil && !w.founded {
		f, ferr := m.localFounding()
		w.founded = ferr == nil && f == nil
		if err = ferr; err == nil && f != nil {
			err = errors.New("the cluster is still being made")
		}
	}
	if err == nil {
		err = w.fence()
	}
	if w.ctx.Err() != nil {
		return
	}
	ops := w.plan(&policy, err)
	for _, f := range ops {
		w.begin(f)
	}
	w.expire()
	w.writeLives()
}

// plan runs one round of the planner and returns the operators to begin.
func (w *watch) plan(p *policy, trouble error) []*flight {
	m, c := w.m, &w.m.plan
	jobs := m.jobs.all()
	cfg := m.planConfig(p)
	began := time.Now()
	now := m.clock.Boot()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != w.term {
		return nil
	}
	st := c.driverState
	if deaf := now - st.looked; st.looked != 0 && deaf > driverDeaf {
		c.view.Forgive(deaf, now)
	}
	st.looked = now
	if st.trouble = ""; trouble != nil {
		st.trouble = trouble.Error()
		return nil
	}
	if st.planner == nil {
		st.planner = plan.NewPlanner(now)
		st.active = now
	}
	st.heat.Observe(c.view, now)
	st.adopt(jobs, &cfg, now, m.clock.Wall())
	running := st.operators(jobs, now)
	st.settleRest(c.view, running, now)
	running = st.unsettled(running)
	r := st.planner.Round(c.view, cfg, now, running)
	st.rounds++
	st.took = time.Since(began)
	w.d().metrics.round(c.view, st, r)
	if c.view.Events == nil && r.Waiting == "" {
		// What the first reports tell is how things are, not what happened.
		c.view.Events = func(e plan.Event) { st.event(e, m.clock.Wall(), m.clock.Boot()) }
	}
	var out []*flight
	for i := range r.Ops {
		if m.n.cfg.Settings.NoBalance {
			break
		}
		f := &flight{Operator: r.Ops[i], step: "starts"}
		if !f.Kind.Job() {
			st.nextID++
			f.ID = st.nextID
			st.running[f.ID] = f
			st.planner.Started(&f.Operator)
		} else {
			st.starting[f] = true
		}
		out = append(out, f)
	}
	r.Ops = nil
	st.last = *r
	switch {
	case len(out) == 0 && len(running) == 0:
		st.quiet++
	default:
		st.quiet, st.active = 0, now
	}
	return out
}

// begin starts an operator on a goroutine of its own: a shard's leader has to be asked first, which takes what it takes.
func (w *watch) begin(f *flight) {
	w.wg.Go(func() {
		state, failed := "", ""
		if f.Kind.Job() {
			if failed = w.create(f); failed == "" {
				return // the job's end is that of the operator
			}
			state = "failed"
		} else if failed = w.transfer(f); failed != "" {
			state = "failed"
		} else {
			state = "done"
		}
		if w.ctx.Err() == nil {
			w.ended(f, state, failed)
		}
	})
}

// create records the job of an operator; it returns why it could not.
func (w *watch) create(f *flight) (failed string) {
	ctx, cancel := context.WithTimeout(w.ctx, driverStart)
	defer cancel()
	m := w.m
	spec, err := specOf(&f.Operator)
	if err == nil {
		err = placement.CheckSpec(spec)
	}
	if err != nil {
		return err.Error()
	}
	j, err := m.jobs.plan(ctx, spec, false)
	if err != nil {
		return text(err)
	}
	fence, ok := w.held()
	if !ok || !w.leads() {
		return "the leadership of the meta shard was lost"
	}
	j.Started = uint64(m.clock.Wall().UnixMilli())
	j.Updated = j.Started
	if err := m.dir.CreateDriverJob(ctx, fence, j); err != nil {
		// Recorded or not: the runner finds the job, and the planner counts it as one of an earlier driver.
		return text(err)
	}
	c := &m.plan
	c.mu.Lock()
	st := c.driverState
	if c.term == w.term {
		f.ID, f.step = uint64(j.ID), ""
		delete(st.starting, f)
		st.running[f.ID] = f
		st.planner.Started(&f.Operator)
	}
	early := st.early[f.ID]
	delete(st.early, f.ID)
	c.mu.Unlock()
	if early != nil {
		w.jobEnded(early)
	}
	w.d().metrics.started.WithLabelValues(f.Kind.String()).Inc()
	m.log.Info("operator started", "operator", f.ID, "what", f.Operator.String())
	m.jobs.search()
	return ""
}

// transfer moves a leadership.
func (w *watch) transfer(f *flight) (failed string) {
	ctx, cancel := context.WithTimeout(w.ctx, driverTransfer)
	defer cancel()
	if _, ok := w.held(); !ok || !w.leads() {
		return "the leadership of the meta shard was lost"
	}
	w.d().metrics.started.WithLabelValues(f.Kind.String()).Inc()
	if f.Shard == base.MetaShard {
		w.m.log.Info("the placement driver hands the meta shard over", "to", f.To.String(), "reason", f.Reason)
	}
	_, _, err := w.m.moveLeader(ctx, f.Shard, f.To)
	if err != nil {
		return text(err)
	}
	return ""
}

// ended takes note that an operator has come to its end.
func (w *watch) ended(f *flight, state, failed string) {
	p := w.m.rules.get()
	c := &w.m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != w.term {
		return
	}
	c.end(f, failed, state, w.m.clock.Boot(), w.m.planConfig(&p))
	w.d().metrics.ended.WithLabelValues(f.Kind.String(), state).Inc()
	if failed != "" {
		w.m.log.Info("operator failed", "operator", f.ID, "what", f.Operator.String(), "reason", failed)
	}
}

// jobEnded is told by the runner of jobs of every job that has ended here.
func (d *driver) jobEnded(j *placement.Job) {
	if j.Spec.Origin != placement.OriginDriver {
		return
	}
	p := d.m.rules.get()
	c := &d.m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.driverState == nil {
		return
	}
	now := d.m.clock.Boot()
	f := c.running[uint64(j.ID)]
	if f == nil && len(c.starting) > 0 {
		c.early[uint64(j.ID)] = j // it may be one of those
		return
	}
	if f == nil { // one of an earlier driver
		ops := operatorsOf(j, now)
		if len(ops) == 0 {
			return
		}
		f = &flight{Operator: ops[0]}
	}
	failed := ""
	if j.State != placement.JobDone {
		if failed = j.Error; failed == "" {
			failed = "it was cancelled"
		}
	}
	c.end(f, failed, j.State.String(), now, d.m.planConfig(&p))
	d.metrics.ended.WithLabelValues(f.Kind.String(), j.State.String()).Inc()
	d.poke()
}

// expire cancels operators that take too long; a job is left in a whole configuration. It also finds the end of jobs that
// ended without a word, as one does whose record was lost to another runner for a moment.
func (w *watch) expire() {
	now := w.m.clock.Boot()
	w.findEnds(now)
	var late []placement.JobID
	c := &w.m.plan
	c.mu.Lock()
	if c.term == w.term {
		for _, f := range c.running {
			if f.Kind.Job() && !f.late && f.Deadline > 0 && now > f.Deadline {
				f.late = true
				late = append(late, placement.JobID(f.ID))
			}
		}
	}
	c.mu.Unlock()
	for _, id := range late {
		ctx, cancel := context.WithTimeout(w.ctx, driverRead)
		if _, err := w.m.jobs.cancel(ctx, id); err != nil && !errors.Is(err, placement.ErrEnded) {
			w.m.log.Warn("cannot cancel an operator that takes too long", "job", id.String(), "err", err)
			c.mu.Lock()
			if f := c.driverState.running[uint64(id)]; c.term == w.term && f != nil {
				f.late = false // again in the next round
			}
			c.mu.Unlock()
		}
		cancel()
	}
}

// findEnds looks for the end of operators whose job does not run.
func (w *watch) findEnds(now time.Duration) {
	live := make(map[placement.JobID]bool)
	for _, j := range w.m.jobs.all() {
		live[j.ID] = true
	}
	var lost []placement.JobID
	c := &w.m.plan
	c.mu.Lock()
	if c.term == w.term {
		for id, f := range c.running {
			if f.Kind.Job() && !live[placement.JobID(id)] && now-f.Created > driverLost {
				lost = append(lost, placement.JobID(id))
			}
		}
	}
	c.mu.Unlock()
	for _, id := range lost {
		ctx, cancel := context.WithTimeout(w.ctx, driverRead)
		j, err := w.m.dir.Job(ctx, id)
		cancel()
		switch {
		case errors.Is(err, placement.ErrNotFound):
			j = &placement.Job{ID: id, Spec: placement.JobSpec{Origin: placement.OriginDriver}, State: placement.JobFailed,
				Error: "its record has gone"}
		case err != nil || !j.State.Ended():
			continue
		}
		w.jobEnded(j)
	}
}

// all returns the jobs that run here, as they stand.
func (r *jobRunner) all() []*placement.Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*placement.Job, 0, len(r.mu.tasks))
	for _, t := range r.mu.tasks {
		out = append(out, t.shown.Load())
	}
	slices.SortFunc(out, func(a, b *placement.Job) int { return int(a.ID) - int(b.ID) })
	return out
}

// text is an error without its gRPC code.
func text(err error) string { return status.Convert(err).Message() }
