package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/snapshotter"
)

func TestSnapshotShowsItsProgressAndObeysItsLimits(t *testing.T) {
	ps := growProcs(t, 2, 1)
	rng := rand.New(rand.NewPCG(uint64(startSeed(t)), 3))
	for i := range 48 {
		value := make([]byte, 64<<10)
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		eventually(t, "put", func(ctx context.Context) error {
			_, err := ps[0].kv().Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: value})
			return err
		})
	}
	limit := func(p *proc, n uint64) {
		t.Helper()
		resp, err := p.admin().SetSnapshotLimits(testContext(t), &pb.SetSnapshotLimitsRequest{SendBytesPerSecond: n})
		if err != nil || resp.SendBytesPerSecond != n || resp.ReceiveBytesPerSecond != snapshotter.DefaultBytesPerSecond {
			t.Fatalf("set limits: %v %v", resp, err)
		}
	}
	limit(ps[0], snapshotter.MinBytesPerSecond)
	_, err := ps[0].admin().SetSnapshotLimits(testContext(t), &pb.SetSnapshotLimitsRequest{ReceiveBytesPerSecond: 1})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a limit that nothing fits through: %v", err)
	}
	to := ps[1].store()
	ps[1].change(2, func(d *base.Descriptor) bool { return !gone(to)(d) }, shard.ReplicaChange{Op: shard.AddLearner, Store: to})

	eventually(t, "both ends tell of the snapshot", func(ctx context.Context) error {
		for i, p := range ps {
			list, err := p.admin().ListSnapshots(ctx, &pb.ListSnapshotsRequest{})
			if err != nil {
				return err
			}
			if len(list.Snapshots) != 1 {
				return fmt.Errorf("%s has %v", p.name, list.Snapshots)
			}
			s := list.Snapshots[0]
			if s.ShardId != 2 || s.FromNode != uint64(ps[0].store()) || s.ToNode != uint64(to) || s.Sending != (i == 0) ||
				s.BytesTotal == 0 || s.Priority != "rebalance" {
				return fmt.Errorf("%s has %v", p.name, s)
			}
		}
		now, err := ps[1].member().shardNow(ctx, 2)
		if err != nil {
			return err
		}
		if now.Snapshot == nil || now.Snapshot.Total == 0 {
			return fmt.Errorf("the shard is %+v", now)
		}
		return nil
	})
	d, err := ps[1].admin().DescribeShard(testContext(t), &pb.DescribeShardRequest{ShardId: 2})
	if err != nil || len(d.Replicas) != 2 || d.Replicas[1].Role != base.RoleLearner.String() {
		t.Errorf("the shard is described as %v %v", d, err)
	}
	limit(ps[0], snapshotter.DefaultBytesPerSecond)
	ps[1].add(2, to)
	if f := ps[1].verified(2, 0); len(f) > 0 {
		t.Errorf("verify: %q", f)
	}
}
