package placement

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func sampleJobs() []*Job {
	return []*Job{
		{
			ID: 7, Rev: 3, Owner: 9, State: JobRunning, Replica: 2, Started: 1700000000123, Updated: 1700000000456,
			Spec: JobSpec{Kind: JobMove, Shard: 12, From: 2, To: 4},
			Steps: []Step{
				{Name: "add learner n4", State: StepDone},
				{Name: "snapshot", State: StepRunning, Detail: "streaming", BytesDone: 1 << 20, Bytes: 1 << 30, Rate: 5, Lag: 6},
			},
		},
		{
			ID: 8, Rev: 1, State: JobCancelling, Error: "because", Done: 3, Total: 5, Started: 1,
			Spec:  JobSpec{Kind: JobDrain, From: 2, Replicas: true},
			Moves: []Move{{Shard: 12, Replica: 2, To: 4, Learner: true, State: JobCancelling, Error: "slow"}},
			Steps: []Step{{Name: "move replicas", State: StepRunning, Done: 3, Total: 5}},
		},
		{
			ID: 9, Rev: 1 << 40, State: JobDone, Spec: JobSpec{Kind: JobVerify, Rate: 1 << 20}, Cursor: []byte("\x02k"),
			Findings: []string{"s12: n2 and n3 differ"}, Started: 1, Updated: 2, Ended: 3,
		},
		{ID: 10, State: JobFailed, Spec: JobSpec{Kind: JobAddReplica, Shard: 1, To: 3, Learner: true}},
		{
			ID: 11, State: JobRunning, Version: 5, Spec: JobSpec{
				Kind: JobSplit, Shard: 12, Keys: [][]byte{[]byte("\x02k"), []byte("\x02l")}, Parts: 3, By: SplitByLoad,
				Origin: OriginDriver, Reason: "above the split size",
			},
		},
		{ID: 12, State: JobRunning, Version: 6, Merge: 1 << 50, Spec: JobSpec{Kind: JobMerge, Shard: 12, Right: 13}},
		{
			ID: 13, State: JobRunning, Spec: JobSpec{Kind: JobScatter, Start: []byte("\x02a"), End: []byte("\x02b")},
			Moves: []Move{{Shard: 12, From: 2, Replica: 2, To: 4, State: JobRunning}},
		},
		{ID: 14, State: JobRunning, Spec: JobSpec{Kind: JobDecommission, From: 3}},
	}
}

func TestJobRecordsMatchTheGoldenFile(t *testing.T) {
	var b strings.Builder
	for _, j := range sampleJobs() {
		fmt.Fprintf(&b, "%s %s %x\n", j.Spec.Kind, j.State, j.Append(nil))
	}
	fmt.Fprintf(&b, "job key %x\n", jobKey(258))
	fmt.Fprintf(&b, "ended job key %x\n", endedKey(258))
	fmt.Fprintf(&b, "shard lock %x\n", shardLock(258))
	fmt.Fprintf(&b, "node lock %x\n", nodeLock(258))
	sub := drainSub(258, DrainReplicas)
	fmt.Fprintf(&b, "drain mark %x %x\n", sub.Key, sub.Value)
	checkGolden(t, "jobs.golden", b.String())
}

func TestJobRecordsReadBackAsTheyWereWritten(t *testing.T) {
	for _, j := range sampleJobs() {
		enc := j.Append(nil)
		got, err := DecodeJob(enc)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, j) {
			t.Errorf("got  %+v\nwant %+v", got, j)
		}
		if !bytes.Equal(j.Clone().Append(nil), enc) {
			t.Errorf("%s: a clone encodes differently", j.ID)
		}
		newer := bytes.Clone(enc)
		newer[0] = jobVersion + 1
		if _, err := DecodeJob(newer); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("a newer layout: %v", err)
		}
		for i := range enc {
			if _, err := DecodeJob(enc[:i]); !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%s cut to %d bytes: %v", j.ID, i, err)
			}
		}
		if _, err := DecodeJob(append(bytes.Clone(enc), 0)); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("%s with a byte more: %v", j.ID, err)
		}
	}
}

func FuzzJobsDecodeToWhatEncodesTheSame(f *testing.F) {
	for _, j := range sampleJobs() {
		f.Add(j.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := DecodeJob(b)
		if err != nil {
			if !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%v does not wrap ErrCorrupt", err)
			}
			return
		}
		again, err := DecodeJob(j.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Append(nil), j.Append(nil)) {
			t.Fatalf("%+v is not stable", j)
		}
	})
}

func TestLongTextsAndListsOfAJobAreCut(t *testing.T) {
	j := sampleJobs()[2]
	j.Error = strings.Repeat("x", 5000)
	for i := range 300 {
		j.AddFinding(fmt.Sprintf("finding %d %s", i, strings.Repeat("y", 2000)))
		j.Steps = append(j.Steps, Step{Name: "s", State: StepDone})
	}
	got, err := DecodeJob(j.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Error) != maxJobText || len(got.Findings) != maxFindings || len(got.Steps) != maxSteps {
		t.Fatalf("error of %d bytes, %d findings, %d steps", len(got.Error), len(got.Findings), len(got.Steps))
	}
	if last := got.Findings[maxFindings-1]; !strings.Contains(last, "more was found") {
		t.Errorf("last finding %q", last)
	}
	if n := len(j.Append(nil)); n > base.MaxValueSize {
		t.Errorf("record of %d bytes", n)
	}
}

func TestKindsAndStatesHaveTheWordsOfTheAPI(t *testing.T) {
	for k := JobMove; k <= JobDecommission; k++ {
		if got, err := ParseJobKind(k.String()); err != nil || got != k {
			t.Errorf("%s: %v, %v", k, got, err)
		}
	}
	for _, bad := range []string{"", "moves", "7"} {
		if _, err := ParseJobKind(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	got := fmt.Sprint(JobRunning, JobCancelling, JobDone, JobFailed, JobCancelled, StepWaiting, StepRunning, StepDone,
		StepSkipped, StepFailed, DrainNone, DrainLeaders, DrainReplicas, ChangeAddLearner, ChangePromote, ChangeDemote,
		ChangeRemove, JobID(7), JobKind(19))
	want := "running cancelling done failed cancelled waiting running done skipped failed none leaders replicas " +
		"add-learner promote demote remove j7 19"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
