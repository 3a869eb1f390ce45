package ycsb

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// plan is a loop of operations over a number of workers.
type plan struct {
	threads    int
	target     float64       // operations per second of an open loop, 0: closed
	warmup     time.Duration // before the measured part
	limit      time.Duration // of the measured part, 0: none
	operations int64         // of the measured part, 0: no bound
	grace      time.Duration // for operations under way when the limit is reached
	// step does operation n, which counts from 0 within the measured part; n is -1 for an operation of the warm-up.
	// An error ends the whole loop.
	step func(ctx context.Context, k *worker, n int64, s sample) error
}

// driver runs a plan.
//
//	schedule (open loop)        taken (measured operations)
//	0 1 2 3 ...  -> worker ->   0 1 2 ... operations-1
//
// Workers take the next number of the schedule, wait for its time, and then the next number of the measured part. One
// schedule for all of them: an operation that hangs holds up one worker and not every n-th operation.
type driver struct {
	plan
	base     time.Time
	workers  []*worker
	schedule atomic.Int64
	taken    atomic.Int64
	stopped  atomic.Bool
	stop     context.Context // ends when no further operation may start
	cancel   context.CancelCauseFunc
}

func newDriver(p plan, w *workload) *driver {
	d := &driver{plan: p, workers: make([]*worker, p.threads)}
	for i := range d.workers {
		d.workers[i] = newWorker(w, i, d.now)
	}
	return d
}

// now is the time since the start.
func (d *driver) now() time.Duration { return time.Since(d.base) }

// run starts all workers and joins them. It returns why the loop ended early, or nil. observe, if any, runs beside
// the workers until done is closed.
func (d *driver) run(ctx context.Context, observe func(done <-chan struct{})) error {
	// Operations outlive the limit by the grace; the caller's ctx ends them at once.
	opCtx, cancelOps := context.WithCancel(ctx)
	defer cancelOps()
	d.stop, d.cancel = context.WithCancelCause(ctx)
	defer d.cancel(nil)
	context.AfterFunc(d.stop, func() { d.stopped.Store(true) })

	d.base = time.Now()
	if d.limit > 0 {
		end := time.AfterFunc(d.warmup+d.limit, func() { d.cancel(errLimit) })
		defer end.Stop()
		hard := time.AfterFunc(d.warmup+d.limit+d.grace, cancelOps)
		defer hard.Stop()
	}
	var workers, observer sync.WaitGroup
	for _, k := range d.workers {
		k.caller = ctx
		workers.Go(func() { d.work(opCtx, k) })
	}
	done := make(chan struct{})
	if observe != nil {
		observer.Go(func() { observe(done) })
	}
	workers.Wait()
	close(done)
	observer.Wait()
	if err := context.Cause(d.stop); err != errLimit {
		return err
	}
	return nil
}

// errLimit is the cause of a stop that is no error.
const errLimit = errorText("time limit reached")

type errorText string

func (e errorText) Error() string { return string(e) }

func (d *driver) work(ctx context.Context, k *worker) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for !d.stopped.Load() {
		var s sample
		if d.target > 0 {
			s.intended = d.intended(d.schedule.Add(1) - 1)
			if !d.waitUntil(s.intended, timer) {
				return
			}
		}
		s.start = d.now()
		if d.target == 0 {
			s.intended = s.start
		}
		if d.limit > 0 && s.start >= d.warmup+d.limit {
			return
		}
		n := int64(-1)
		if s.intended >= d.warmup {
			n = d.taken.Add(1) - 1
			if d.operations > 0 && n >= d.operations {
				return
			}
		}
		if err := d.step(ctx, k, n, s); err != nil {
			d.cancel(err)
			return
		}
	}
}

// intended is when operation n of an open loop should start.
func (d *driver) intended(n int64) time.Duration {
	return time.Duration(float64(n) / d.target * float64(time.Second))
}

// waitUntil reports false if the loop ends before.
func (d *driver) waitUntil(at time.Duration, timer *time.Timer) bool {
	wait := at - d.now()
	if wait <= 0 {
		return true
	}
	timer.Reset(wait)
	select {
	case <-timer.C:
		return true
	case <-d.stop.Done():
		timer.Stop()
		return false
	}
}

// missed is how many operations an open loop should have started in its measured time and did not, for want of a free
// worker. They have no latency, so that a report must mention them.
func (d *driver) missed() int64 {
	if d.target == 0 || d.limit == 0 {
		return 0
	}
	ended := min(d.now(), d.warmup+d.limit)
	due := int64(max(0, ended-d.warmup).Seconds() * d.target)
	if d.operations > 0 {
		due = min(due, d.operations)
	}
	return max(0, due-d.taken.Load())
}
