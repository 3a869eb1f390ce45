package node

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// Splits as jobs. At keys: each key is looked up, one at which a shard begins already is done, and those that lie in one
// shard go to its leader as one command. Chosen by the leader: the command goes out for the epoch that the job began
// with, so that of all repeats one can be done, and a higher version of the range says that it was.
//
// Crash or a lost answer: the next look sees the shards as they are.

const (
	// splitAtOnce is how many keys one command has.
	splitAtOnce = 64
	// splitPatience is how long a split may make no progress.
	splitPatience = 2 * time.Minute
	jobSplitCall  = 30 * time.Second
)

// splitTask is a running split.
type splitTask struct {
	*jobTask
	since   time.Duration // Boot time of the last progress, or of the first look
	rest    time.Duration // Boot time before which nothing is tried again
	trouble string
}

// planSplit checks a split against the shard as it is.
func (r *jobRunner) planSplit(ctx context.Context, s placement.JobSpec) (*placement.Job, error) {
	j := &placement.Job{Spec: s, State: placement.JobRunning, Total: uint64(len(s.Keys))}
	if s.Shard == 0 {
		for _, k := range s.Keys {
			if bytes.Compare(k, base.UserStart()) <= 0 || bytes.Compare(k, base.UserEnd()) >= 0 {
				return nil, refusal("give user keys", "key %x lies outside the user's key space", k)
			}
		}
		j.Steps = splitSteps(j, placement.StepWaiting, "")
		return j, nil
	}
	now, err := r.world.now(ctx, s.Shard)
	if err != nil {
		return nil, err
	}
	if s.Shard == base.MetaShard {
		return nil, refusal("", "%s holds the system's own data and is never split", s.Shard)
	}
	for _, k := range s.Keys {
		if !now.Desc.Contains(k) || bytes.Equal(k, now.Desc.Start) {
			return nil, refusal("shardctl shards find KEY shows the shard of a key", "key %x does not lie inside %s", k,
				now.Desc)
		}
	}
	j.Version = now.Desc.Epoch.Version
	if len(s.Keys) == 0 {
		j.Total = 1
	}
	j.Steps = splitSteps(j, placement.StepWaiting, "")
	return j, nil
}

func refusal(remedy, format string, args ...any) error {
	return &placement.RefusedError{Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

// step does the next piece of the split.
func (s *splitTask) step(ctx context.Context) {
	now := s.r.clock.Boot()
	if s.since == 0 {
		s.since = now
	}
	switch {
	case s.job.State == placement.JobCancelling:
		s.steps(splitSteps(s.job, placement.StepSkipped, ""))
		s.finish(placement.JobCancelled, s.job.Error)
		return
	case now < s.rest || !s.r.leadsAt(s.term):
		return
	}
	before := s.job.Done
	refused, err := s.advance(ctx)
	switch {
	case s.job.Done >= s.job.Total:
		s.steps(splitSteps(s.job, placement.StepDone, ""))
		s.finish(placement.JobDone, "")
	case s.job.Done > before:
		s.since, s.trouble = s.r.clock.Boot(), ""
		s.steps(splitSteps(s.job, placement.StepRunning, ""))
		s.touch(true)
	case refused:
		s.steps(splitSteps(s.job, placement.StepFailed, ""))
		s.finish(placement.JobFailed, status.Convert(err).Message())
	case err != nil && ctx.Err() == nil:
		s.rest = s.r.clock.Boot() + jobBackoff
		if text := status.Convert(err).Message(); text != s.trouble {
			s.trouble = text
			s.logf("split was not done", "reason", text)
		}
		if stuck := s.r.clock.Boot() - s.since; stuck >= splitPatience {
			s.steps(splitSteps(s.job, placement.StepFailed, ""))
			s.finish(placement.JobFailed, fmt.Sprintf("no progress for %s: %s: mend that and split again",
				stuck.Round(time.Second), s.trouble))
			return
		}
		s.steps(splitSteps(s.job, placement.StepRunning, s.trouble))
	}
}

// advance makes one command, or finds out that it is done. refused: the shard did not take it and never will.
func (s *splitTask) advance(ctx context.Context) (refused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, jobSplitCall)
	defer cancel()
	spec := &s.job.Spec
	if len(spec.Keys) == 0 {
		now, err := s.r.world.now(ctx, spec.Shard)
		if err != nil {
			return status.Code(err) == codes.NotFound, err
		}
		if now.Desc.Epoch.Version != s.job.Version {
			s.job.Done = s.job.Total
			return false, nil
		}
		err = s.r.world.split(ctx, splitAsk{desc: now.Desc, by: spec.By, parts: spec.Parts, bytes: now.Bytes()})
		if err == nil {
			s.job.Done = s.job.Total
		}
		return s.final(ctx, now.Desc, err), err
	}
	keys := spec.Keys[min(s.job.Done, uint64(len(spec.Keys))):]
	if len(keys) == 0 {
		return false, nil
	}
	d, err := s.r.world.find(ctx, keys[0])
	if err != nil {
		return false, err
	}
	now, err := s.r.world.now(ctx, d.Shard)
	if err != nil {
		return false, err
	}
	if bytes.Equal(now.Desc.Start, keys[0]) {
		s.job.Done++
		return false, nil
	}
	n := 0
	for n < min(len(keys), splitAtOnce) && now.Desc.Contains(keys[n]) {
		n++
	}
	if n == 0 {
		return false, status.Errorf(codes.Unavailable, "the index has %s for %x, which holds it no more", d, keys[0])
	}
	err = s.r.world.split(ctx, splitAsk{desc: now.Desc, keys: keys[:n]})
	if err == nil {
		s.job.Done += uint64(n)
	}
	return s.final(ctx, now.Desc, err), err
}

// final reports whether a refusal stands: the shard is still the one that was asked.
func (s *splitTask) final(ctx context.Context, asked *base.Descriptor, err error) bool {
	if c := status.Code(err); c != codes.FailedPrecondition && c != codes.InvalidArgument {
		return false
	}
	now, nerr := s.r.world.now(ctx, asked.Shard)
	return nerr == nil && now.Desc.Epoch == asked.Epoch
}

// splitSteps draws a split as one line.
func splitSteps(j *placement.Job, state placement.StepState, detail string) []placement.Step {
	name := "split"
	switch s := &j.Spec; {
	case len(s.Keys) == 1:
		name = "split at 1 key"
	case len(s.Keys) > 1:
		name = fmt.Sprintf("split at %d keys", len(s.Keys))
	case s.Parts > 0:
		name = fmt.Sprintf("split into %d parts of the same %s", s.Parts, s.By)
	default:
		name = "split by " + s.By.String()
	}
	return []placement.Step{{Name: name, State: state, Detail: detail, Done: j.Done, Total: j.Total}}
}
