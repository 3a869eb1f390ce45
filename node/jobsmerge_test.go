package node

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/placement"
)

func TestAMergeAlignsTheReplicasFirst(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	for _, spec := range []*pb.JobSpec{
		{Kind: "move", ShardId: 3, FromNode: 1, ToNode: 4}, {Kind: "move", ShardId: 3, FromNode: 2, ToNode: 5},
	} {
		b.await(b.start(r, spec).ID, placement.JobDone)
	}
	j := b.await(b.start(r, &pb.JobSpec{Kind: "merge", ShardId: 2}).ID, placement.JobDone)
	if j.Spec.Right != 3 || j.Total != 2 || j.Done != 2 {
		t.Errorf("%+v", j)
	}
	if got, want := b.ranges(), " p"; got != want {
		t.Errorf("shards begin at %q, want %q", got, want)
	}
	for _, id := range []string{"s2", "s3"} {
		if err := b.dir.Busy(testContext(t), &placement.Job{
			State: placement.JobRunning, Spec: placement.JobSpec{Kind: placement.JobMerge, Shard: 2, Right: 3},
		}); err != nil {
			t.Errorf("%s stays locked: %v", id, err)
		}
	}
}

func TestAMergeWhoseAnswerIsLostIsDoneOnce(t *testing.T) {
	b := newJobBench(t)
	b.fakeCluster.mu.lost = status.Error(codes.Unknown, "the answer was lost")
	r, _ := b.runner(4)
	b.await(b.start(r, &pb.JobSpec{Kind: "merge", ShardId: 2, RightShardId: 3}).ID, placement.JobDone)
	if got, want := b.ranges(), " p"; got != want {
		t.Errorf("shards begin at %q, want %q", got, want)
	}
}

func TestAMergeThatCannotBeMadeSaysWhy(t *testing.T) {
	b := newJobBench(t)
	b.fakeCluster.mu.refuse["merge s2"] = status.Error(codes.FailedPrecondition, "a session is too large")
	r, _ := b.runner(4)
	j := b.await(b.start(r, &pb.JobSpec{Kind: "merge", ShardId: 2}).ID, placement.JobFailed)
	if !strings.Contains(j.Error, "a session is too large") {
		t.Errorf("error %q", j.Error)
	}
	for name, spec := range map[string]*pb.JobSpec{
		"the last shard":  {Kind: "merge", ShardId: 4},
		"the meta shard":  {Kind: "merge", ShardId: 1},
		"not a neighbour": {Kind: "merge", ShardId: 2, RightShardId: 4},
		"itself":          {Kind: "merge", ShardId: 2, RightShardId: 2},
	} {
		if _, err := r.start(testContext(t), spec, false); err == nil {
			t.Errorf("%s: started", name)
		}
	}
}

func TestACancelEndsAMergeInTheMiddleOfAnAttempt(t *testing.T) {
	b := newJobBench(t)
	release := b.hold("merge s2")
	defer release()
	r, _ := b.runner(4)
	j := b.start(r, &pb.JobSpec{Kind: "merge", ShardId: 2})
	b.awaitChange("merge s2")
	if _, err := r.cancel(testContext(t), j.ID); err != nil {
		t.Fatal(err)
	}
	b.await(j.ID, placement.JobCancelled)
	if err := b.dir.Busy(testContext(t), &placement.Job{
		State: placement.JobRunning, Spec: placement.JobSpec{Kind: placement.JobMerge, Shard: 2, Right: 3},
	}); err != nil {
		t.Errorf("a shard stays locked: %v", err)
	}
}
