package placement

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// seeded returns a source of randomness whose seed is printed if the test fails.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("SHARDD_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with SHARDD_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 3))
}

func jobDirectory(t *testing.T) (*Directory, *memKV) {
	t.Helper()
	kv := newMemKV(sampleFounding(t).Contents()...)
	return NewDirectory(kv), kv
}

func moveJob(shard base.ShardID) *Job {
	return &Job{Spec: JobSpec{Kind: JobMove, Shard: shard, From: 1, To: 4}, State: JobRunning, Replica: 1}
}

func create(t *testing.T, d *Directory, j *Job) *Job {
	t.Helper()
	if err := d.CreateJob(context.Background(), j); err != nil {
		t.Fatal(err)
	}
	return j
}

func end(t *testing.T, d *Directory, j *Job, state JobState) {
	t.Helper()
	j.State = state
	if err := d.PutJob(context.Background(), j); err != nil {
		t.Fatal(err)
	}
}

func TestJobIDsCountFromOneAndNeverRepeat(t *testing.T) {
	d, kv := jobDirectory(t)
	a := create(t, d, moveJob(2))
	end(t, d, a, JobDone)
	if err := d.TrimJobs(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	b := create(t, NewDirectory(kv), moveJob(2))
	if a.ID != 1 || b.ID != 2 {
		t.Errorf("ids %s and %s", a.ID, b.ID)
	}
}

func TestASecondJobOnAShardOrNodeIsRefusedWithTheFirst(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	first := create(t, d, moveJob(2))
	for _, kind := range []JobKind{JobMove, JobAddReplica, JobRemoveReplica, JobPromote} {
		j := moveJob(2)
		j.Spec.Kind = kind
		var busy *BusyError
		if err := d.CreateJob(ctx, j); !errors.As(err, &busy) || busy.Job != first.ID || busy.What != "s2" {
			t.Errorf("%s: %v", kind, err)
		}
	}
	drain := func() *Job { return &Job{Spec: JobSpec{Kind: JobDrain, From: 3}, State: JobRunning} }
	second := create(t, d, drain())
	var busy *BusyError
	if err := d.CreateJob(ctx, drain()); !errors.As(err, &busy) || busy.Job != second.ID || busy.What != "n3" {
		t.Errorf("second drain: %v", err)
	}
	// What only reads may run beside.
	create(t, d, &Job{Spec: JobSpec{Kind: JobVerify, Shard: 2}, State: JobRunning})
	create(t, d, moveJob(3))
	end(t, d, first, JobFailed)
	create(t, d, moveJob(2))
}

func TestADrainLocksTheShardsThatItMoves(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	other := create(t, d, moveJob(2))
	drain := create(t, d, &Job{Spec: JobSpec{Kind: JobDrain, From: 3, Replicas: true}, State: JobRunning})
	move := func(s base.ShardID) Move { return Move{Shard: s, Replica: 1, To: 4, State: JobRunning} }
	drain.Moves = []Move{move(2)}
	var busy *BusyError
	if err := d.PutJob(ctx, drain); !errors.As(err, &busy) || busy.Job != other.ID {
		t.Fatalf("move of a locked shard: %v", err)
	}
	drain.Moves = []Move{move(3)}
	if err := d.PutJob(ctx, drain); err != nil {
		t.Fatal(err)
	}
	if err := d.CreateJob(ctx, moveJob(3)); !errors.As(err, &busy) || busy.Job != drain.ID {
		t.Errorf("job on a shard that a drain moves: %v", err)
	}
	drain.Moves = nil
	if err := d.PutJob(ctx, drain); err != nil {
		t.Fatal(err)
	}
	create(t, d, moveJob(3))
}

func TestOnlyTheLatestCopyOfAJobCanBeSaved(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	j := create(t, d, moveJob(2))
	old := j.Clone()
	j.Owner = 5
	if err := d.PutJob(ctx, j); err != nil {
		t.Fatal(err)
	}
	old.Owner = 4
	if err := d.PutJob(ctx, old); !errors.Is(err, ErrStale) {
		t.Errorf("an older copy was saved: %v", err)
	}
	stored, err := d.Job(ctx, j.ID)
	if err != nil || stored.Owner != 5 || stored.Rev != j.Rev {
		t.Errorf("stored %+v, %v", stored, err)
	}
	end(t, d, j, JobDone)
	j.State = JobRunning
	if err := d.PutJob(ctx, j); !errors.Is(err, ErrStale) {
		t.Errorf("an ended job came back: %v", err)
	}
}

func TestASaveWhoseAnswerWasLostIsRepeatedWithoutHarm(t *testing.T) {
	ctx := context.Background()
	d, kv := jobDirectory(t)
	rng := seeded(t)
	for range 50 {
		kv.chaos = nil
		j := create(t, d, moveJob(2))
		kv.chaos = rng
		until := func(f func() error) {
			t.Helper()
			for range 1000 {
				err := f()
				if err == nil {
					return
				}
				if !errors.Is(err, errUnknown) {
					t.Fatal(err)
				}
			}
			t.Fatal("never saved")
		}
		for i := range uint64(4) {
			j.Done = i + 1
			until(func() error { return d.PutJob(ctx, j) })
		}
		j.State = JobDone
		until(func() error { return d.PutJob(ctx, j) })
		kv.chaos = nil
		got, err := d.Job(ctx, j.ID)
		if err != nil || got.State != JobDone || got.Done != 4 || got.Rev != j.Rev {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

func TestJobsAreListedNewestFirst(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	for s := range base.ShardID(6) {
		j := create(t, d, moveJob(s+2))
		if s%2 == 0 {
			end(t, d, j, JobDone)
		}
	}
	ids := func(running bool, limit int) string {
		jobs, err := d.Jobs(ctx, running, limit)
		if err != nil {
			t.Fatal(err)
		}
		var out []JobID
		for _, j := range jobs {
			out = append(out, j.ID)
		}
		return fmt.Sprint(out)
	}
	if got := ids(false, 100); got != "[j6 j5 j4 j3 j2 j1]" {
		t.Errorf("all: %s", got)
	}
	if got := ids(true, 100); got != "[j6 j4 j2]" {
		t.Errorf("running: %s", got)
	}
	if got := ids(false, 4); got != "[j6 j5 j4 j3]" {
		t.Errorf("four: %s", got)
	}
	if err := d.TrimJobs(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if got := ids(false, 100); got != "[j6 j5 j4 j3 j2]" {
		t.Errorf("after trimming the history to two: %s", got)
	}
	if _, err := d.Job(ctx, 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("a job that was trimmed: %v", err)
	}
	running, err := d.RunningJobs(ctx)
	if err != nil || len(running) != 3 || running[0].ID != 2 {
		t.Errorf("running: %v, %v", running, err)
	}
}

func TestTheHistoryIsBounded(t *testing.T) {
	ctx := context.Background()
	d, kv := jobDirectory(t)
	for id := range JobID(EndedJobs + 700) {
		j := moveJob(2)
		j.ID, j.State = id+1, JobDone
		kv.rows[string(endedKey(j.ID))] = Row{Key: endedKey(j.ID), Value: j.Append(nil), Version: 1}
	}
	if err := d.TrimJobs(ctx, EndedJobs); err != nil {
		t.Fatal(err)
	}
	jobs, err := d.Jobs(ctx, false, 2*EndedJobs)
	if err != nil || len(jobs) != EndedJobs || jobs[0].ID != EndedJobs+700 || jobs[EndedJobs-1].ID != 701 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
}

func TestCancelMarksARunningJobOnce(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	j := create(t, d, moveJob(2))
	for range 2 {
		got, err := d.CancelJob(ctx, j.ID)
		if err != nil || got.State != JobCancelling || got.Rev != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if err := d.PutJob(ctx, j); !errors.Is(err, ErrStale) {
		t.Errorf("the runner did not notice the cancel: %v", err)
	}
	j.Rev = 2
	end(t, d, j, JobCancelled)
	if got, err := d.CancelJob(ctx, j.ID); err != nil || got.State != JobCancelled {
		t.Errorf("again after the end: %+v, %v", got, err)
	}
	k := create(t, d, moveJob(2))
	end(t, d, k, JobDone)
	if _, err := d.CancelJob(ctx, k.ID); !errors.Is(err, ErrEnded) {
		t.Errorf("cancel of a done job: %v", err)
	}
	if _, err := d.CancelJob(ctx, 99); !errors.Is(err, ErrNotFound) {
		t.Errorf("cancel of no job: %v", err)
	}
}

func TestADrainMarksItsNodeAndTheMarkOutlivesIt(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	marks := func() string {
		m, err := d.Draining(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(m)
	}
	j := create(t, d, &Job{Spec: JobSpec{Kind: JobDrain, From: 3, Replicas: true}, State: JobRunning})
	create(t, d, &Job{Spec: JobSpec{Kind: JobDrain, From: 2}, State: JobRunning})
	if got := marks(); got != "map[n2:leaders n3:replicas]" {
		t.Errorf("marks %s", got)
	}
	end(t, d, j, JobDone)
	if err := d.SetDraining(ctx, 2, DrainNone); err != nil {
		t.Fatal(err)
	}
	if got := marks(); got != "map[n3:replicas]" {
		t.Errorf("marks %s", got)
	}
	if err := d.SetDraining(ctx, 9, DrainLeaders); !errors.Is(err, ErrNotFound) {
		t.Errorf("mark of no node: %v", err)
	}
}

func TestOfManyJobsAtOnceOneGetsTheShard(t *testing.T) {
	ctx := context.Background()
	d, kv := jobDirectory(t)
	var mu sync.Mutex
	var won []JobID
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			j := moveJob(2)
			err := NewDirectory(kv).CreateJob(ctx, j)
			var busy *BusyError
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won = append(won, j.ID)
			case !errors.As(err, &busy):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("jobs %v got the shard", won)
	}
	jobs, err := d.RunningJobs(ctx)
	if err != nil || len(jobs) != 1 || !slices.Contains(won, jobs[0].ID) {
		t.Errorf("running %v, %v", jobs, err)
	}
}
