package node

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/placement"
)

// Limits of single calls of a job. A call that takes longer is given up; what came of it is seen at the next look.
const (
	jobLook     = 5 * time.Second
	jobChange   = 15 * time.Second
	jobTransfer = 10 * time.Second
	// jobBackoff is the pause of a job after a refused or failed call.
	jobBackoff = time.Second
)

// jobTask is one running job on the meta leader. All but poked and shown is owned by its goroutine.
type jobTask struct {
	r     *jobRunner
	term  uint64
	job   *placement.Job
	poked chan struct{}                 // capacity 1
	shown atomic.Pointer[placement.Job] // for readers; never changed once stored

	mover    jobMover
	busy     func(*placement.BusyError) // a shard that a save was to lock is locked by another job
	saved    time.Duration              // Boot time of the last save
	looked   time.Duration              // Boot time of the last look at the record
	unsaved  bool
	stateful bool // the change that is not saved is more than figures
}

// jobMover is what a runner remembers of one replica change between two looks. A new runner starts without.
type jobMover struct {
	watch     placement.Watch
	refused   string        // why the last change was refused for good
	refusedAt uint64        // the ConfVer that it was made for
	trouble   string        // why the last try was not done
	phase     int           // that of trouble
	rest      time.Duration // Boot time before which nothing is done again
}

func (t *jobTask) poke() {
	poke(t.poked)
}

func (t *jobTask) show() { t.shown.Store(t.job.Clone()) }

// run steps the job until it has ended, ctx ends, or another node runs it.
func (t *jobTask) run(ctx context.Context) {
	t.job.Owner = t.term
	t.touch(true)
	t.logf("job taken over", "kind", t.job.Spec.Kind.String(), "state", t.job.State.String())
	step := t.stepReplicas
	switch t.job.Spec.Kind {
	case placement.JobDrain, placement.JobDecommission:
		step = (&drainTask{jobTask: t}).step
	case placement.JobSplit:
		step = (&splitTask{jobTask: t}).step
	case placement.JobMerge:
		m := &mergeTask{drainTask: drainTask{jobTask: t}}
		defer m.stop()
		step = m.step
	case placement.JobScatter:
		step = (&scatterTask{drainTask: drainTask{jobTask: t}}).step
	case placement.JobVerify:
		v := &verifyTask{jobTask: t}
		defer v.stop()
		step = v.step
	}
	for t.save(ctx) {
		if t.job.State.Ended() {
			t.ended(ctx)
			return
		}
		step(ctx)
		if !t.stateful {
			t.rest(ctx)
		}
	}
}

// rest waits until it is time to look again.
func (t *jobTask) rest(ctx context.Context) {
	timer := time.NewTimer(t.r.poll)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.poked:
		t.looked = -jobReload
	case <-ctx.Done():
	}
}

// touch notes that the job has changed; state: by more than figures.
func (t *jobTask) touch(state bool) {
	t.unsaved = true
	t.stateful = t.stateful || state
	t.show()
}

// save brings the record up to date if it is time to, and takes in what others did to it. It returns false if the job
// is not this task's any more.
func (t *jobTask) save(ctx context.Context) bool {
	for ctx.Err() == nil && t.r.leadsAt(t.term) {
		now := t.r.clock.Boot()
		due := t.stateful || t.unsaved && now-t.saved >= jobSave
		if !due && now-t.looked < jobReload {
			return true
		}
		var err error
		if due {
			err = t.put(ctx)
			if err == nil && t.job.State.Ended() {
				return true
			}
		}
		if err == nil && now-t.looked >= jobReload || errors.Is(err, placement.ErrStale) {
			err = t.reload(ctx)
		}
		var busy *placement.BusyError
		switch {
		case err == nil:
			if t.stateful {
				continue // what is to be saved was not: the record had changed
			}
			return true
		case errors.Is(err, errNotMine):
			t.logf("job goes on elsewhere")
			return false
		case errors.As(err, &busy) && t.busy != nil:
			t.busy(busy)
			continue
		}
		t.logf("cannot save job, trying again", "err", err)
		pause(ctx, t.r.poll)
	}
	return false
}

// put saves the job.
func (t *jobTask) put(ctx context.Context) error {
	next := t.job.Clone()
	next.Updated = uint64(t.r.clock.Wall().UnixMilli())
	if next.State.Ended() {
		next.Ended = next.Updated
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := t.r.dir.PutJob(ctx, next); err != nil {
		return err
	}
	t.job.Rev, t.job.Updated, t.job.Ended = next.Rev, next.Updated, next.Ended
	t.saved, t.unsaved, t.stateful = t.r.clock.Boot(), false, false
	t.show()
	return nil
}

// errNotMine says that another node runs the job, or that it has ended.
var errNotMine = errors.New("job is not run here any more")

// reload takes a cancel in that was recorded meanwhile.
func (t *jobTask) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stored, err := t.r.dir.Job(ctx, t.job.ID)
	switch {
	case errors.Is(err, placement.ErrNotFound):
		return errNotMine
	case err != nil:
		return err
	case stored.State.Ended() && t.job.State == stored.State && stored.Owner == t.term && stored.Rev == t.job.Rev+1:
		// Saved by the try before, whose answer was lost.
		t.job = stored
		t.unsaved, t.stateful = false, false
		t.show()
		return nil
	case stored.State.Ended(), stored.Owner > t.term, stored.Owner != t.term && t.saved > 0:
		return errNotMine
	}
	t.looked = t.r.clock.Boot()
	if stored.Rev == t.job.Rev {
		return nil
	}
	t.job.Rev = stored.Rev
	if stored.State == placement.JobCancelling && t.job.State == placement.JobRunning {
		t.logf("job is cancelled")
		t.job.State = placement.JobCancelling
		t.touch(true)
	}
	return nil
}

// finish ends the job; the next save puts it into the history.
func (t *jobTask) finish(state placement.JobState, reason string) {
	t.job.State, t.job.Error = state, reason
	t.touch(true)
}

// ended is called once the end is saved.
func (t *jobTask) ended(ctx context.Context) {
	kind := t.job.Spec.Kind.String()
	t.r.metrics.ended.WithLabelValues(kind, t.job.State.String()).Inc()
	if t.job.Ended > t.job.Started {
		t.r.metrics.seconds.WithLabelValues(kind).Observe(float64(t.job.Ended-t.job.Started) / 1000)
	}
	t.logf("job ended", "state", t.job.State.String(), "error", t.job.Error)
	if t.job.Spec.Kind == placement.JobDecommission {
		t.r.marks.forget()
	}
	if t.r.onEnd != nil {
		t.r.onEnd(t.job.Clone())
	}
	if t.r.ends.Add(1)%trimEvery != 1 {
		return // a trim reads the whole history
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := t.r.dir.TrimJobs(ctx, placement.EndedJobs); err != nil {
		t.logf("cannot trim the history of jobs", "err", err)
	}
}

// steps takes new steps over: one line of log and a save for each change of state.
func (t *jobTask) steps(steps []placement.Step) {
	old := make(map[string]placement.StepState, len(t.job.Steps))
	for _, s := range t.job.Steps {
		old[s.Name] = s.State
	}
	changed := len(steps) != len(t.job.Steps)
	for _, s := range steps {
		if old[s.Name] == s.State {
			continue
		}
		changed = true
		if s.State == placement.StepWaiting {
			continue
		}
		t.logf("job step", "step", s.Name, "state", s.State.String(), "detail", s.Detail)
		if s.State == placement.StepDone || s.State == placement.StepFailed {
			t.r.metrics.steps.WithLabelValues(s.State.String()).Inc()
		}
	}
	if changed || !slices.Equal(steps, t.job.Steps) {
		t.job.Steps = steps
		t.touch(changed)
	}
}

func (t *jobTask) logf(msg string, args ...any) {
	t.r.log.Info(msg, append([]any{"job", t.job.ID.String()}, args...)...)
}

// stepReplicas is one step of a job that changes replicas.
func (t *jobTask) stepReplicas(ctx context.Context) {
	a := t.look(ctx, t.job, &t.mover)
	t.steps(a.Steps)
	switch a.Do {
	case placement.ActUndo:
		t.job.State, t.job.Error = placement.JobCancelling, a.Reason
		t.touch(true)
	case placement.ActEnd:
		t.finish(a.State, a.Reason)
	default:
		if !t.stateful {
			t.act(ctx, t.job, &t.mover, a)
		}
	}
}

// look decides the next step of a replica change from the world as it is.
func (t *jobTask) look(ctx context.Context, j *placement.Job, mv *jobMover) placement.Action {
	look, cancel := context.WithTimeout(ctx, jobLook)
	defer cancel()
	w := placement.World{Watch: mv.watch, Trouble: mv.trouble, Limits: t.r.limits}
	w.Refused, w.RefusedAt = mv.refused, mv.refusedAt
	now, err := t.r.world.now(look, j.Spec.Shard)
	w.Shard = now
	if err != nil {
		w.Shard, w.Why = nil, status.Convert(err).Message()
	}
	if at, ask := placement.AskDisk(j, w); ask {
		w.Disk = t.r.world.disk(look, at, j.Spec.Shard)
	}
	w.Now = t.r.clock.Boot()
	a := placement.Next(j, w)
	mv.watch = mv.watch.See(a.At, w.Now)
	if w.Shard != nil {
		mv.refused = ""
	}
	if a.At.Phase != mv.phase {
		mv.phase, mv.trouble = a.At.Phase, ""
	}
	return a
}

// act does what a step asks for. Nothing is concluded from its outcome but a refusal for good: the next look sees what
// came of it.
func (t *jobTask) act(ctx context.Context, j *placement.Job, mv *jobMover, a placement.Action) {
	if a.Do == placement.ActWait || t.r.clock.Boot() < mv.rest || !t.r.leadsAt(t.term) {
		return
	}
	var err error
	switch a.Do {
	case placement.ActChange:
		call, cancel := context.WithTimeout(ctx, jobChange)
		err = t.r.world.change(call, j.Spec.Shard, a.ConfVer, a.Changes)
		cancel()
		if status.Code(err) == codes.FailedPrecondition {
			mv.refused, mv.refusedAt = status.Convert(err).Message(), a.ConfVer
		}
	case placement.ActTransfer:
		call, cancel := context.WithTimeout(ctx, jobTransfer)
		err = t.r.world.transfer(call, j.Spec.Shard, a.To)
		cancel()
	}
	mv.trouble = ""
	if err == nil || ctx.Err() != nil {
		return
	}
	mv.rest = t.r.clock.Boot() + jobBackoff
	mv.trouble = status.Convert(err).Message()
	t.logf("job step was not done", "shard", j.Spec.Shard.String(), "reason", mv.trouble)
}
