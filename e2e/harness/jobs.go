package harness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// Begin starts a job. A start whose answer was lost is looked up among the running jobs, so that it is not made twice.
func (c *Cluster) Begin(ctx context.Context, spec *sharddv1.JobSpec) (uint64, error) {
	var id uint64
	var refused error
	err := Until(ctx, Patience, func(ctx context.Context) error {
		j, err := c.Admin.StartJob(ctx, spec, false)
		if err == nil {
			id = j.GetJobId()
			return nil
		}
		jobs, lerr := c.Admin.ListJobs(ctx, true, 0)
		for _, j := range jobs {
			if proto.Equal(j.GetSpec(), spec) {
				id = j.GetJobId()
				return nil
			}
		}
		if lerr == nil && (errors.Is(err, admin.ErrConflict) || errors.Is(err, admin.ErrInvalid) ||
			errors.Is(err, admin.ErrNotFound)) {
			refused = err // asking again does not change it
			return nil
		}
		return err
	})
	return id, errors.Join(refused, err)
}

// Await waits until a job has ended, through changes of the meta leader and nodes that are down, and returns it. It
// fails only when ctx ends or the job has not ended within the time given.
func (c *Cluster) Await(ctx context.Context, id uint64, limit time.Duration) (*sharddv1.Job, error) {
	var last *sharddv1.Job
	err := Until(ctx, limit, func(ctx context.Context) error {
		j, err := c.Admin.GetJob(ctx, id)
		if err != nil {
			return err
		}
		if last = j; !admin.Ended(j) {
			return fmt.Errorf("job j%d is %s", id, Steps(j))
		}
		return nil
	})
	return last, err
}

// Steps shows a job and its steps on one line.
func Steps(j *sharddv1.Job) string {
	var b strings.Builder
	s := j.GetSpec()
	fmt.Fprintf(&b, "%s s%d n%d -> n%d: %s %s", s.GetKind(), s.GetShardId(), s.GetFromNode(), s.GetToNode(), j.GetState(),
		j.GetError())
	for _, p := range j.GetSteps() {
		fmt.Fprintf(&b, "; %s %s %s %d/%d lag %d", p.GetName(), p.GetState(), p.GetDetail(), p.GetBytesDone(),
			p.GetBytesTotal(), p.GetLag())
	}
	return b.String()
}

// Do runs jobs, at most six at a time, and fails the test unless all are done.
func (c *Cluster) Do(specs ...*sharddv1.JobSpec) {
	c.t.Helper()
	const atOnce = 6
	for len(specs) > 0 {
		n := min(atOnce, len(specs))
		var ids []uint64
		for _, spec := range specs[:n] {
			id, err := c.Begin(c.t.Context(), spec)
			if err != nil {
				c.t.Fatalf("begin %s of s%d: %v", spec.GetKind(), spec.GetShardId(), err)
			}
			ids = append(ids, id)
		}
		for _, id := range ids {
			j, err := c.Await(c.t.Context(), id, 2*Patience)
			if err != nil {
				c.t.Fatalf("job j%d: %v", id, err)
			}
			if j.GetState() != admin.JobDone {
				c.t.Fatalf("job j%d is not done: %s", id, Steps(j))
			}
		}
		specs = specs[n:]
	}
}

// Move is a job that moves a replica from one node to another.
func Move(shard, from, to uint64) *sharddv1.JobSpec {
	return &sharddv1.JobSpec{Kind: admin.KindMove, ShardId: shard, FromNode: from, ToNode: to}
}

// Add is a job that gives a shard a voter on a node.
func Add(shard, to uint64) *sharddv1.JobSpec {
	return &sharddv1.JobSpec{Kind: admin.KindAddReplica, ShardId: shard, ToNode: to}
}

// Remove is a job that takes a replica away.
func Remove(shard, from uint64) *sharddv1.JobSpec {
	return &sharddv1.JobSpec{Kind: admin.KindRemoveReplica, ShardId: shard, FromNode: from}
}

// Shards lists every shard, the system's own first.
func (c *Cluster) Shards() []*sharddv1.ShardInfo {
	c.t.Helper()
	var out []*sharddv1.ShardInfo
	c.Until("list shards", func(ctx context.Context) error {
		out = nil
		for s, err := range c.Admin.ListShards(ctx) {
			if err != nil {
				return err
			}
			out = append(out, s)
		}
		return nil
	})
	return out
}

// Verify compares all replicas of all shards; the test fails on a difference.
func (c *Cluster) Verify() {
	c.t.Helper()
	id, err := c.Begin(c.t.Context(), &sharddv1.JobSpec{Kind: admin.KindVerify, BytesPerSecond: 1 << 30})
	if err != nil {
		c.t.Fatalf("begin verify: %v", err)
	}
	j, err := c.Await(c.t.Context(), id, 2*Patience)
	if err != nil || j.GetState() != admin.JobDone || len(j.GetFindings()) > 0 {
		c.t.Fatalf("verify: %v, %s, findings %q", err, Steps(j), j.GetFindings())
	}
}
