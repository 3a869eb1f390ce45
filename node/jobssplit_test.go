package node

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

func userKeys(keys ...string) (out [][]byte) {
	for _, k := range keys {
		out = append(out, base.UserKey([]byte(k)))
	}
	return out
}

// ranges lists the user shards of the index as start keys.
func (b *jobBench) ranges() string {
	b.t.Helper()
	list, err := b.dir.Lookup(testContext(b.t), base.UserStart(), 10_000, false)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for _, s := range list {
		if s.Desc.Shard != base.MetaShard {
			out = append(out, string(s.Desc.Start[1:]))
		}
	}
	return strings.Join(out, " ")
}

func TestShardsAreSplitAtKeysWhereverTheyLie(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	spec := &pb.JobSpec{Kind: "split", Keys: userKeys("c", "x", "g", "b", "k", "c")} // g is one already
	j := b.await(b.start(r, spec).ID, placement.JobDone)
	if got, want := b.ranges(), " b c g k p x"; got != want {
		t.Errorf("shards begin at %q, want %q", got, want)
	}
	if j.Done != 5 || j.Total != 5 || j.Steps[0].State != placement.StepDone {
		t.Errorf("%+v", j)
	}
}

func TestASplitWithoutKeysIsDoneOnceEvenIfItsAnswerIsLost(t *testing.T) {
	b := newJobBench(t)
	b.fakeCluster.mu.lost = status.Error(codes.Unknown, "the answer was lost")
	r, _ := b.runner(4)
	b.await(b.start(r, &pb.JobSpec{Kind: "split", ShardId: 2, Parts: 3}).ID, placement.JobDone)
	if got := strings.Count(b.ranges(), " "); got != 4 {
		t.Errorf("shards begin at %q, want 5 of them", b.ranges())
	}
}

func TestManyKeysAreSplitInSeveralCommandsAndAcrossMetaLeaders(t *testing.T) {
	b := newJobBench(t)
	var keys []string
	for i := range 200 {
		keys = append(keys, fmt.Sprintf("h%03d", i))
	}
	old, world := b.runner(4)
	j := b.start(old, &pb.JobSpec{Kind: "split", Keys: userKeys(keys...)})
	world.lead(0)
	b.runner(5)
	b.await(j.ID, placement.JobDone)
	if got := strings.Count(b.ranges(), " "); got != 202 {
		t.Errorf("%d shards, want 203", got+1)
	}
}

func TestASplitThatTheShardRefusesFailsWithTheReason(t *testing.T) {
	b := newJobBench(t)
	b.fakeCluster.mu.refuse["split s2"] = status.Error(codes.FailedPrecondition, "no key divides it")
	r, _ := b.runner(4)
	j := b.await(b.start(r, &pb.JobSpec{Kind: "split", ShardId: 2}).ID, placement.JobFailed)
	if !strings.Contains(j.Error, "no key divides it") {
		t.Errorf("error %q", j.Error)
	}
	for name, spec := range map[string]*pb.JobSpec{
		"outside":     {Kind: "split", ShardId: 2, Keys: userKeys("z")},
		"meta":        {Kind: "split", ShardId: 1},
		"system keys": {Kind: "split", Keys: [][]byte{{base.SpaceSystem, 'x'}}},
		"one part":    {Kind: "split", ShardId: 2, Parts: 1},
		"nothing":     {Kind: "split"},
		"by colour":   {Kind: "split", ShardId: 2, SplitBy: "colour"},
	} {
		if _, err := r.start(testContext(t), spec, false); err == nil {
			t.Errorf("%s: started", name)
		}
	}
}

func TestAJobOfAPersonTakesTheShardFromTheDriver(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	release := b.hold("s2 add-learner n4")
	defer release()
	ctx := testContext(t)
	f, err := b.dir.TakeFence(ctx, 4)
	if err != nil {
		t.Fatal(err)
	}
	theirs := &placement.Job{
		Spec: placement.JobSpec{Kind: placement.JobMove, Shard: 2, From: 1, To: 4, Reason: "n1 is full"}, State: placement.JobRunning,
		Replica: 1,
	}
	if err := b.dir.CreateDriverJob(ctx, f, theirs); err != nil {
		t.Fatal(err)
	}
	r.search()
	eventually(t, "it runs", func(ctx context.Context) error {
		if r.live(theirs.ID) == nil {
			return errPending
		}
		return nil
	})
	started := make(chan *placement.Job)
	go func() {
		j, err := r.start(ctx, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 2, ToNode: 5}, false)
		if err != nil {
			t.Error(err)
		}
		started <- j
	}()
	eventually(t, "the driver's is cancelled", func(ctx context.Context) error {
		j, err := b.dir.Job(ctx, theirs.ID)
		if err == nil && j.State == placement.JobRunning {
			err = errPending
		}
		return err
	})
	release()
	b.await(theirs.ID, placement.JobCancelled)
	if j := <-started; j != nil {
		b.await(j.ID, placement.JobDone)
	}
	if got := b.desc(2); !strings.HasPrefix(got, "(n1/1 n3/3 n5/") {
		t.Errorf("s2 is on %s", got)
	}
}

func TestADecommissionEndsByItselfAndWaitsForWhatIsInItsWay(t *testing.T) {
	b := newJobBench(t)
	b.fakeCluster.mu.nodes[4] = placement.NodeNow{}
	b.fakeCluster.mu.nodes[5] = placement.NodeNow{Alive: true, Level: "low"}
	r, _ := b.runner(4)
	dry, err := r.start(testContext(t), &pb.JobSpec{Kind: "decommission", FromNode: 3}, true)
	if err != nil || len(dry.Steps) == 0 {
		t.Fatalf("%+v %v", dry, err)
	}
	if last := dry.Steps[len(dry.Steps)-1]; last.Name != "blocked" || !strings.Contains(last.Detail, "n5 is low on disk") {
		t.Errorf("a dry run says %+v", last)
	}
	j := b.start(r, &pb.JobSpec{Kind: "decommission", FromNode: 3})
	eventually(t, "it says what is in its way", func(context.Context) error {
		if live := r.live(j.ID); live == nil || !strings.Contains(fmt.Sprint(live.Steps), "n4 does not report") {
			return errPending
		}
		return nil
	})
	commission := func() placement.Commission {
		all, err := b.dir.Commissions(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		return all[3]
	}
	if c := commission(); c != placement.Decommissioning {
		t.Errorf("commission %q", c)
	}
	b.fakeCluster.mu.Lock()
	b.fakeCluster.mu.nodes[4] = placement.NodeNow{Alive: true, Level: placement.LevelOK}
	b.fakeCluster.mu.Unlock()
	b.await(j.ID, placement.JobDone)
	if c := commission(); c != placement.Decommissioned {
		t.Errorf("commission %q", c)
	}
	for _, id := range []base.ShardID{1, 2, 3, 4} {
		if strings.Contains(b.desc(id), "n3") {
			t.Errorf("%s is on %s", id, b.desc(id))
		}
	}
}
