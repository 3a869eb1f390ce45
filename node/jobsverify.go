package node

import (
	"context"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// verifyTask is a running verify: shard after shard in key order. The record keeps where it is, so that a new runner
// goes on with the shard at which the old one was.
type verifyTask struct {
	*jobTask
	queue   []*base.Descriptor
	current *verifying
}

// verifying is the comparison of one shard, on a goroutine of its own.
type verifying struct {
	desc        *base.Descriptor
	cancel      context.CancelFunc
	done, total atomic.Uint64 // bytes
	result      chan verified // capacity 1
}

type verified struct {
	findings []string
	err      error
}

const stepVerify = "compare replicas"

// step begins the next shard, or looks at the one that is compared.
func (v *verifyTask) step(ctx context.Context) {
	if v.job.State == placement.JobCancelling {
		v.stop()
		v.draw(placement.StepSkipped, "")
		v.finish(placement.JobCancelled, "")
		return
	}
	if v.current == nil {
		v.next(ctx)
		return
	}
	c := v.current
	select {
	case r := <-c.result:
		v.stop()
		for _, f := range r.findings {
			v.job.AddFinding(f)
		}
		if r.err != nil && status.Code(r.err) != codes.NotFound {
			v.job.AddFinding(fmt.Sprintf("%s could not be compared: %s", c.desc.Shard, status.Convert(r.err).Message()))
		}
		v.job.Done++
		v.job.Cursor = c.desc.End
		v.draw(placement.StepRunning, "")
		v.touch(len(r.findings) > 0 || r.err != nil)
		v.next(ctx)
	default:
		v.draw(placement.StepRunning, c.desc.Shard.String())
	}
}

// stop ends the comparison that runs and waits for it.
func (v *verifyTask) stop() {
	if v.current == nil {
		return
	}
	v.current.cancel()
	<-v.current.result
	v.current = nil
}

// next begins with the next shard, or ends the job.
func (v *verifyTask) next(ctx context.Context) {
	desc, err := v.pick(ctx)
	switch {
	case err != nil:
		v.draw(placement.StepRunning, "reads the index: "+err.Error())
		return
	case desc == nil:
		v.job.Total = v.job.Done
		v.draw(placement.StepDone, fmt.Sprintf("%d findings", len(v.job.Findings)))
		v.finish(placement.JobDone, "")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &verifying{desc: desc, cancel: cancel, result: make(chan verified, 1)}
	v.current = c
	rate := v.job.Spec.Rate
	go func() {
		findings, err := v.r.world.verify(ctx, desc.Shard, rate, func(done, total uint64) {
			c.done.Store(done)
			c.total.Store(total)
		})
		c.result <- verified{findings, err}
		close(c.result)
	}()
}

// pick returns the next shard, nil if there is none left.
func (v *verifyTask) pick(ctx context.Context) (*base.Descriptor, error) {
	ctx, cancel := context.WithTimeout(ctx, jobLook)
	defer cancel()
	if v.job.Spec.Shard != 0 {
		v.job.Total = 1
		if v.job.Done > 0 {
			return nil, nil
		}
		now, err := v.r.world.now(ctx, v.job.Spec.Shard)
		if err != nil {
			return nil, err
		}
		return now.Desc, nil
	}
	if v.job.Total == 0 {
		epochs, err := v.r.dir.Epochs(ctx)
		if err != nil {
			return nil, err
		}
		v.job.Total = uint64(len(epochs))
	}
	if len(v.queue) == 0 {
		// The meta shard lies above the user shards: first all of them, then it.
		from := v.job.Cursor
		if len(from) == 0 {
			from = base.UserStart()
		}
		shards, err := v.r.dir.Lookup(ctx, from, listPage, false)
		if err != nil {
			return nil, err
		}
		for _, s := range shards {
			v.queue = append(v.queue, s.Desc)
		}
	}
	if len(v.queue) == 0 {
		return nil, nil
	}
	d := v.queue[0]
	v.queue = v.queue[1:]
	return d, nil
}

// draw writes the one step of a verify.
func (v *verifyTask) draw(state placement.StepState, detail string) {
	s := placement.Step{
		Name: stepVerify, State: state, Detail: detail, Done: v.job.Done, Total: max(v.job.Total, v.job.Done),
	}
	if v.current != nil {
		s.BytesDone, s.Bytes = v.current.done.Load(), v.current.total.Load()
	}
	v.steps([]placement.Step{s})
}
