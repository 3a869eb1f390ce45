package main

import (
	"context"
	"fmt"
	"io"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// demoShard is the shard whose replica the demo takes away and gives back: the first of the user's.
const demoShard = 2

// move shows that shards move: the last node loses its replica of a shard and gets a new one by snapshot. All nodes of
// the demo hold all shards, so there is no other node that the replica could go to.
func (d *demoCluster) move(ctx context.Context, out io.Writer) error {
	if len(d.nodes) < 2 {
		return nil
	}
	a, err := admin.Open(d.addrs())
	if err != nil {
		return err
	}
	defer a.Close()
	nodes, err := a.ListNodes(ctx)
	if err != nil {
		return err
	}
	last := nodes[len(nodes)-1].GetNodeId()
	fmt.Fprintf(out, "\nMoving: n%d gives up its replica of s%d and gets a new one\n", last, demoShard)
	for _, spec := range []*sharddv1.JobSpec{
		{Kind: admin.KindRemoveReplica, ShardId: demoShard, FromNode: last},
		{Kind: admin.KindAddReplica, ShardId: demoShard, ToNode: last},
	} {
		if err := demoJob(ctx, out, a, spec); err != nil {
			return fmt.Errorf("%s of s%d: %w", spec.GetKind(), demoShard, err)
		}
	}
	return nil
}

// demoJob runs a job to its end and prints its steps as they are done.
func demoJob(ctx context.Context, out io.Writer, a *admin.Client, spec *sharddv1.JobSpec) error {
	j, err := a.StartJob(ctx, spec, false)
	if err != nil {
		return err
	}
	from, printed := time.Now(), map[string]bool{}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, s := range j.GetSteps() {
			if s.GetState() != "done" || printed[s.GetName()] {
				continue
			}
			printed[s.GetName()] = true
			line := s.GetName()
			if n := s.GetBytesDone(); n > 0 {
				line += ", " + cli.Bytes(n)
			}
			fmt.Fprintf(out, "  %4.1f s  %s\n", time.Since(from).Seconds(), line)
		}
		if admin.Ended(j) {
			if j.GetState() != admin.JobDone {
				return fmt.Errorf("job j%d %s: %s", j.GetJobId(), j.GetState(), j.GetError())
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if j, err = a.GetJob(ctx, j.GetJobId()); err != nil {
			return err
		}
	}
}
