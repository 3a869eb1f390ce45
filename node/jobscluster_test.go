package node

import (
	"context"
	"fmt"
	"strings"
	"testing"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/placement"
)

// startJob starts a job through p.
func (p *proc) startJob(spec *pb.JobSpec) uint64 {
	p.t.Helper()
	var id uint64
	eventually(p.t, spec.Kind, func(ctx context.Context) error {
		resp, err := p.admin().StartJob(ctx, &pb.StartJobRequest{Spec: spec})
		if err == nil {
			id = resp.Job.JobId
		}
		return err
	})
	return id
}

// awaitJob waits until a job has ended, and returns it; it fails the test unless it ended in the state.
func (p *proc) awaitJob(id uint64, want placement.JobState) *pb.Job {
	p.t.Helper()
	var out *pb.Job
	eventually(p.t, fmt.Sprintf("job j%d", id), func(ctx context.Context) error {
		resp, err := p.admin().GetJob(ctx, &pb.GetJobRequest{JobId: id})
		if err != nil {
			return err
		}
		if out = resp.Job; out.EndedUnixMs == 0 {
			return fmt.Errorf("it is %s: %v", out.State, out.Steps)
		}
		return nil
	})
	if out.State != want.String() {
		p.t.Fatalf("job j%d is %s, want %s: %s\n%v", id, out.State, want, out.Error, out.Steps)
	}
	return out
}

func (p *proc) job(spec *pb.JobSpec) *pb.Job {
	p.t.Helper()
	return p.awaitJob(p.startJob(spec), placement.JobDone)
}

// TestAClusterIsGrownDrainedAndVerifiedByJobs does by jobs what an operator does: three replicas of all shards, the
// meta shard included, a move under writes, a drain of the node that leads the meta shard, a verify.
func TestAClusterIsGrownDrainedAndVerifiedByJobs(t *testing.T) {
	const shards = 3
	ps := growProcs(t, 4, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 100, shards)
	id := func(i int) uint64 { return uint64(ps[i].store()) }
	for s := uint64(1); s <= shards+1; s++ {
		for i := 1; i <= 2; i++ {
			ps[i].job(&pb.JobSpec{Kind: "add-replica", ShardId: s, ToNode: id(i)})
		}
	}
	l.put(t, ps[1], 50, shards)
	ps[3].job(&pb.JobSpec{Kind: "move", ShardId: 2, FromNode: id(0), ToNode: id(3)})
	l.check(t, ps[2])

	// The first node leads the meta shard; draining it moves that leadership, and the drain with it.
	drain := ps[2].startJob(&pb.JobSpec{Kind: "drain", FromNode: id(0), Replicas: true})
	l.put(t, ps[3], 50, shards)
	ps[3].awaitJob(drain, placement.JobDone)
	for s := uint64(1); s <= shards+1; s++ {
		d, err := ps[1].admin().DescribeShard(testContext(t), &pb.DescribeShardRequest{ShardId: s})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range d.Shard.Replicas {
			if r.NodeId == id(0) || r.Role != "voter" {
				t.Errorf("s%d: %v", s, d.Shard.Replicas)
			}
		}
	}
	if n := len(ps[0].member().store.Summaries()); n > 0 {
		t.Errorf("the drained node still has %d replicas", n)
	}
	j := ps[1].job(&pb.JobSpec{Kind: "verify"})
	if len(j.Findings) > 0 {
		t.Errorf("findings %v", j.Findings)
	}
	l.check(t, ps[1])

	// The drained node takes nothing until it is undrained.
	back := &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: id(1), ToNode: id(0)}
	_, err := ps[2].admin().StartJob(testContext(t), &pb.StartJobRequest{Spec: back})
	if err == nil || !strings.Contains(err.Error(), "is being drained") {
		t.Errorf("move to a drained node: %v", err)
	}
	if _, err := ps[2].admin().Undrain(testContext(t), &pb.UndrainRequest{NodeId: id(0)}); err != nil {
		t.Fatal(err)
	}
	ps[2].job(back)
	list, err := ps[3].admin().ListJobs(testContext(t), &pb.ListJobsRequest{Limit: 3})
	if err != nil || len(list.Jobs) != 3 || list.Jobs[0].Spec.Kind != "move" || list.Jobs[1].Spec.Kind != "verify" {
		t.Errorf("%v, %v", list, err)
	}
	l.check(t, ps[0])
}

// TestAMoveGoesOnWhenTheMetaLeaderDies kills the runner of a job in its middle, with its target not up yet.
func TestAMoveGoesOnWhenTheMetaLeaderDies(t *testing.T) {
	const shards = 1
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 50, shards)
	target := joinProc(t, "target", ps...)
	to := uint64(target.store())
	var lead *proc
	eventually(t, "meta leader", func(context.Context) error {
		for _, p := range ps {
			if _, ok := p.member().leadsMeta(); ok {
				lead = p
				return nil
			}
		}
		return errPending
	})
	var others []*proc
	for _, p := range ps {
		if p != lead {
			others = append(others, p)
		}
	}
	target.kill(50, 1) // its learner cannot catch up
	move := lead.startJob(&pb.JobSpec{Kind: "move", ShardId: 2, FromNode: uint64(others[0].store()), ToNode: to})
	eventually(t, "learner is added", func(ctx context.Context) error {
		resp, err := lead.admin().GetJob(ctx, &pb.GetJobRequest{JobId: move})
		if err == nil && resp.Job.Steps[0].State != "done" {
			err = fmt.Errorf("steps %v", resp.Job.Steps)
		}
		return err
	})
	lead.kill(50, 2)
	target.start()
	lead.start()
	others[1].awaitJob(move, placement.JobDone)
	d, err := others[1].admin().DescribeShard(testContext(t), &pb.DescribeShardRequest{ShardId: 2})
	if err != nil || len(d.Shard.Replicas) != 3 {
		t.Fatalf("%v, %v", d, err)
	}
	for _, r := range d.Shard.Replicas {
		if r.NodeId == uint64(others[0].store()) || r.Role != "voter" {
			t.Errorf("%v", d.Shard.Replicas)
		}
	}
	l.check(t, others[1])
}
