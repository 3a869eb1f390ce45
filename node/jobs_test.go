package node

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

func TestJobsRunToTheirEnd(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	for _, c := range []struct {
		spec *pb.JobSpec
		want string
	}{
		{&pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4}, "(n2/2 n3/3 n4/4)"},
		{&pb.JobSpec{Kind: "add-replica", ShardId: 2, ToNode: 5, Learner: true}, "(n2/2 n3/3 n4/4 n5/5:learner)"},
		{&pb.JobSpec{Kind: "promote", ShardId: 2, ToNode: 5}, "(n2/2 n3/3 n4/4 n5/5)"},
		{&pb.JobSpec{Kind: "remove-replica", ShardId: 2, FromNode: 3}, "(n2/2 n4/4 n5/5)"},
		{&pb.JobSpec{Kind: "add-replica", ShardId: 2, ToNode: 1}, "(n2/2 n4/4 n5/5 n1/6)"},
	} {
		j := b.await(b.start(r, c.spec).ID, placement.JobDone)
		if got := b.desc(2); got != c.want {
			t.Errorf("%s: %s, want %s", c.spec.Kind, got, c.want)
		}
		for _, s := range j.Steps {
			if s.State != placement.StepDone {
				t.Errorf("%s: step %s is %s", c.spec.Kind, s.Name, s.State)
			}
		}
		if j.Started == 0 || j.Ended < j.Started || j.Owner != 4 {
			t.Errorf("%s: %+v", c.spec.Kind, j)
		}
	}
}

func TestADryRunRecordsNothing(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	ctx := testContext(t)
	for _, spec := range []*pb.JobSpec{
		{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4},
		{Kind: "drain", FromNode: 1, Replicas: true},
		{Kind: "verify"},
	} {
		j, err := r.start(ctx, spec, true)
		if err != nil || j.ID != 0 || len(j.Steps) == 0 {
			t.Fatalf("%s: %+v, %v", spec.Kind, j, err)
		}
		for _, s := range j.Steps {
			if s.State != placement.StepWaiting {
				t.Errorf("%s: step %s is %s", spec.Kind, s.Name, s.State)
			}
		}
	}
	if jobs, err := b.dir.Jobs(ctx, false, 10); err != nil || len(jobs) > 0 {
		t.Errorf("%v, %v", jobs, err)
	}
	if marks, err := b.dir.Draining(ctx); err != nil || len(marks) > 0 {
		t.Errorf("%v, %v", marks, err)
	}
}

func TestRefusalsOfJobsHaveTheirCodes(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	release := b.hold("s2 add-learner n4")
	defer release()
	first := b.start(r, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4})
	for _, c := range []struct {
		spec *pb.JobSpec
		code codes.Code
		text string
	}{
		{&pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 2, ToNode: 5}, codes.FailedPrecondition, first.ID.String()},
		{&pb.JobSpec{Kind: "fly"}, codes.InvalidArgument, "unknown kind"},
		{&pb.JobSpec{Kind: "move", ShardId: 2}, codes.InvalidArgument, "needs a node"},
		{&pb.JobSpec{Kind: "move", ShardId: 99, FromNode: 1, ToNode: 4}, codes.NotFound, "no shard s99"},
		{&pb.JobSpec{Kind: "verify", ShardId: 99}, codes.NotFound, "no shard s99"},
		{&pb.JobSpec{Kind: "move", ShardId: 3, FromNode: 1, ToNode: 2}, codes.FailedPrecondition, "already has a replica"},
		{&pb.JobSpec{Kind: "drain", FromNode: 9}, codes.FailedPrecondition, "no node n9"},
	} {
		_, err := r.start(testContext(t), c.spec, false)
		if err = jobStatus(err); status.Code(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: %v", c.spec, err)
		}
	}
	if _, err := r.cancel(testContext(t), 77); status.Code(jobStatus(err)) != codes.NotFound {
		t.Errorf("cancel of no job: %v", err)
	}
}

func TestANewMetaLeaderGoesOnWithTheJobs(t *testing.T) {
	b := newJobBench(t)
	old, oldWorld := b.runner(4)
	release := b.hold("s2 promote n4 demote n1")
	defer release()
	j := b.start(old, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4})
	b.awaitChange("s2 add-learner n4")
	next, _ := b.runner(5)
	// For a while both believe to lead; the later one owns the record.
	eventually(t, "takeover", func(ctx context.Context) error {
		got, err := b.dir.Job(ctx, j.ID)
		if err == nil && got.Owner != 5 {
			return errPending
		}
		return err
	})
	if next.live(j.ID) == nil {
		t.Error("the new leader does not show the job")
	}
	release()
	if got := b.await(j.ID, placement.JobDone); got.Owner != 5 {
		t.Errorf("ended under term %d", got.Owner)
	}
	oldWorld.lead(0)
	if got := b.desc(2); got != "(n2/2 n3/3 n4/4)" {
		t.Error(got)
	}
	seen := map[string]int{}
	b.fakeCluster.mu.Lock()
	for _, c := range b.fakeCluster.mu.changes {
		seen[c]++
		if seen[c] > 1 {
			t.Errorf("%s was done %d times", c, seen[c])
		}
	}
	b.fakeCluster.mu.Unlock()
}

func TestACancelledMoveTakesItsLearnerBack(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	release := b.hold("s2 promote n4 demote n1")
	defer release()
	j := b.start(r, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4})
	b.awaitChange("s2 add-learner n4")
	got, err := r.cancel(testContext(t), j.ID)
	if err != nil || got.State != placement.JobCancelling {
		t.Fatalf("%+v, %v", got, err)
	}
	b.fakeCluster.mu.Lock()
	b.fakeCluster.mu.refuse["s2 promote n4 demote n1"] = status.Error(codes.Aborted, "overtaken")
	b.fakeCluster.mu.Unlock()
	release()
	b.await(j.ID, placement.JobCancelled)
	if got := b.desc(2); got != "(n1/1 n2/2 n3/3)" {
		t.Error(got)
	}
	if _, err := r.cancel(testContext(t), j.ID); err != nil {
		t.Errorf("cancel again: %v", err)
	}
}

func TestARefusalForGoodFailsTheJobWithItsReason(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	b.fakeCluster.mu.Lock()
	b.fakeCluster.mu.refuse["s2 promote n4 demote n1"] = status.Error(codes.FailedPrecondition, "n4 is too old")
	b.fakeCluster.mu.Unlock()
	j := b.await(b.start(r, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4}).ID, placement.JobFailed)
	if !strings.Contains(j.Error, "n4 is too old") || b.desc(2) != "(n1/1 n2/2 n3/3)" {
		t.Errorf("%s %s", j.Error, b.desc(2))
	}
	b.start(r, &pb.JobSpec{Kind: "remove-replica", ShardId: 2, FromNode: 3}) // the lock is free again
}

func TestADrainEmptiesItsNodeAndUndrainTakesTheMarkOff(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	j := b.await(b.start(r, &pb.JobSpec{Kind: "drain", FromNode: 1, Replicas: true}).ID, placement.JobDone)
	for id := base.ShardID(1); id <= 4; id++ {
		if d := b.desc(id); strings.Contains(d, "n1/") || strings.Contains(d, ":") || strings.Count(d, "/") != 3 {
			t.Errorf("%s: %s", id, d)
		}
	}
	if j.Done != 4 || j.Total != 4 {
		t.Errorf("%d of %d", j.Done, j.Total)
	}
	ctx := testContext(t)
	if marks, err := b.dir.Draining(ctx); err != nil || marks[1] != placement.DrainReplicas {
		t.Fatalf("%v, %v", marks, err)
	}
	if _, err := r.start(ctx, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 2, ToNode: 1}, false); err == nil {
		t.Error("a replica was moved to a drained node")
	}
	if err := r.undrain(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if marks, err := b.dir.Draining(ctx); err != nil || len(marks) > 0 {
		t.Errorf("%v, %v", marks, err)
	}
}

func TestUndrainCancelsTheRunningDrain(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	var release []func()
	for _, name := range []string{"s2 add-learner n4", "s2 add-learner n5", "s3 add-learner n4", "s3 add-learner n5"} {
		release = append(release, b.hold(name))
	}
	j := b.start(r, &pb.JobSpec{Kind: "drain", FromNode: 1, Replicas: true})
	var busy *placement.BusyError
	eventually(t, "the drain locks a shard", func(ctx context.Context) error {
		_, err := r.start(ctx, &pb.JobSpec{Kind: "remove-replica", ShardId: 2, FromNode: 3}, true)
		if err != nil {
			return err
		}
		probe := &placement.Job{
			Spec: placement.JobSpec{Kind: placement.JobPromote, Shard: 2, To: 3}, State: placement.JobRunning,
		}
		if err := b.dir.CreateJob(ctx, probe); errors.As(err, &busy) {
			return nil
		}
		probe.State = placement.JobCancelled
		if err := b.dir.PutJob(ctx, probe); err != nil && !errors.Is(err, placement.ErrStale) {
			return err
		}
		return errPending
	})
	if busy.Job != j.ID {
		t.Errorf("s2 is locked by %s", busy.Job)
	}
	if err := r.undrain(testContext(t), 1); err != nil {
		t.Fatal(err)
	}
	for _, f := range release {
		f()
	}
	b.await(j.ID, placement.JobCancelled)
	for id := base.ShardID(1); id <= 4; id++ {
		if d := b.desc(id); strings.Contains(d, ":") || strings.Count(d, "/") != 3 {
			t.Errorf("%s: %s", id, d)
		}
	}
}

func TestAVerifyGoesThroughAllShardsAndListsWhatDiffers(t *testing.T) {
	b := newJobBench(t)
	var mu sync.Mutex
	var asked []base.ShardID
	b.fakeCluster.mu.verify = func(_ context.Context, id base.ShardID, report func(done, total uint64)) ([]string, error) {
		report(1, 2)
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, id)
		switch id {
		case 3:
			return []string{"s3: n1 and n2 differ from key g"}, nil
		case 4:
			return nil, status.Error(codes.Unavailable, "no leader")
		}
		return nil, nil
	}
	r, _ := b.runner(4)
	j := b.await(b.start(r, &pb.JobSpec{Kind: "verify", BytesPerSecond: 5}).ID, placement.JobDone)
	want := "s3: n1 and n2 differ from key g; s4 could not be compared: no leader"
	if got := strings.Join(j.Findings, "; "); got != want {
		t.Errorf("findings %q", got)
	}
	if len(asked) != 4 || asked[0] != 2 || asked[3] != 1 || j.Done != 4 || j.Total != 4 {
		t.Errorf("asked %v, %d of %d", asked, j.Done, j.Total)
	}
	j = b.await(b.start(r, &pb.JobSpec{Kind: "verify", ShardId: 2}).ID, placement.JobDone)
	if len(j.Findings) > 0 || j.Done != 1 || len(asked) != 5 || asked[4] != 2 {
		t.Errorf("%+v, asked %v", j, asked)
	}
}

func TestACancelEndsAVerifyInTheMiddleOfAShard(t *testing.T) {
	b := newJobBench(t)
	begun := make(chan struct{}, 10)
	b.fakeCluster.mu.verify = func(ctx context.Context, _ base.ShardID, _ func(done, total uint64)) ([]string, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r, _ := b.runner(4)
	j := b.start(r, &pb.JobSpec{Kind: "verify"})
	<-begun
	if _, err := r.cancel(testContext(t), j.ID); err != nil {
		t.Fatal(err)
	}
	if j := b.await(j.ID, placement.JobCancelled); len(j.Findings) > 0 {
		t.Errorf("findings %v", j.Findings)
	}
}

// holdVerify makes verifications report 7 of 9 and stand still until the channel is closed.
func (b *jobBench) holdVerify() (release chan struct{}) {
	release = make(chan struct{})
	b.fakeCluster.mu.verify = func(ctx context.Context, _ base.ShardID, report func(done, total uint64)) (
		[]string, error) {
		report(7, 9)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	return release
}

func TestProgressIsShownBeforeItIsSaved(t *testing.T) {
	b := newJobBench(t)
	release := b.holdVerify()
	r, _ := b.runner(4)
	j := b.start(r, &pb.JobSpec{Kind: "verify", ShardId: 2})
	eventually(t, "live progress", func(ctx context.Context) error {
		stored, err := b.dir.Job(ctx, j.ID)
		if err != nil {
			return err
		}
		live := jobProto(r.fresh(stored))
		if len(live.Steps) != 1 || live.Steps[0].BytesDone != 7 || live.Steps[0].BytesTotal != 9 {
			return errPending
		}
		return nil
	})
	close(release)
	b.await(j.ID, placement.JobDone)
}

// The mark of a node that is empty, above all, is saved with the end of the job that emptied it: whoever sees the one sees the
// other.
func TestAJobHasEndedWhenThatIsSaved(t *testing.T) {
	b := newJobBench(t)
	release := b.holdVerify()
	r, _ := b.runner(4)
	j := b.start(r, &pb.JobSpec{Kind: "verify", ShardId: 2})
	eventually(t, "the job runs", func(context.Context) error {
		if live := r.live(j.ID); live == nil || live.State != placement.JobRunning {
			return errPending
		}
		return nil
	})
	stored, err := b.dir.Job(testContext(t), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	ended := r.live(j.ID).Clone()
	ended.State, ended.Ended = placement.JobDone, 1
	r.mu.Lock()
	r.mu.tasks[j.ID].shown.Store(ended) // as it stands before it is saved
	r.mu.Unlock()
	if got := r.fresh(stored); got.State != placement.JobRunning || got.Ended != 0 {
		t.Fatalf("shown as %s, ended at %d", got.State, got.Ended)
	}
	close(release)
	b.await(j.ID, placement.JobDone)
}

func TestEveryJobThatEndsIsToldOfOnce(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	told := make(chan placement.JobID, 10)
	r.mu.Lock()
	r.onEnd = func(j *placement.Job) { told <- j.ID }
	r.mu.Unlock()
	// Long enough to have looked at its record in between.
	release := b.hold("s2 add-learner n4")
	j := b.start(r, &pb.JobSpec{Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4})
	pause(testContext(t), jobReload+jobPoll)
	release()
	b.await(j.ID, placement.JobDone)
	select {
	case id := <-told:
		if id != j.ID {
			t.Errorf("told of %s, want %s", id, j.ID)
		}
	case <-testContext(t).Done():
		t.Fatal("nobody was told")
	}
	if len(told) > 0 {
		t.Error("told twice")
	}
}

func TestADrainWalksALargeIndexRarelyAndAtItsEnd(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(0)
	d := &drainTask{jobTask: &jobTask{r: r, job: &placement.Job{Spec: placement.JobSpec{Kind: placement.JobDrain, From: 3}}}}
	d.walked = -drainWalk
	left := func(want int) {
		t.Helper()
		if got, err := d.left(testContext(t)); err != nil || len(got) != want {
			t.Fatalf("%d shards are left, %v; want %d", len(got), err, want)
		}
	}
	left(4)
	walked := d.walked
	d.took = time.Hour // the index is large
	left(4)
	if d.walked != walked {
		t.Fatal("the index was walked again at once")
	}
	for id := range d.extra { // as moves end
		delete(d.extra, id)
	}
	left(4) // the index has them still: the end is only seen there
	if d.walked == walked {
		t.Error("the end was not looked up in the index")
	}
}
