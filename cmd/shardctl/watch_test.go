package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// aMove is a move of a shard as a watcher sees it, question by question.
func aMove() []*sharddv1.Job {
	const mib = 1 << 20
	step := func(name, state, detail string) *sharddv1.JobStep {
		return &sharddv1.JobStep{Name: name, State: state, Detail: detail}
	}
	at := func(seconds uint64, state string, steps ...*sharddv1.JobStep) *sharddv1.Job {
		j := &sharddv1.Job{JobId: 7, State: state, Steps: steps, StartedUnixMs: 1000, UpdatedUnixMs: 1000 + seconds*1000,
			Spec: &sharddv1.JobSpec{Kind: admin.KindMove, ShardId: 12, FromNode: 1, ToNode: 4}}
		if admin.Ended(j) {
			j.EndedUnixMs = j.UpdatedUnixMs
		}
		return j
	}
	snapshot := func(done, rate uint64) *sharddv1.JobStep {
		return &sharddv1.JobStep{Name: "snapshot", State: "running", BytesDone: done, BytesTotal: 256 * mib,
			BytesPerSecond: rate}
	}
	sent := &sharddv1.JobStep{Name: "snapshot", State: "done", BytesDone: 256 * mib, BytesTotal: 256 * mib}
	behind := func(lag uint64) *sharddv1.JobStep {
		return &sharddv1.JobStep{Name: "catch up", State: "running", Lag: lag}
	}
	added, w := step("add learner n4", "done", "replica 4"), "waiting"
	return []*sharddv1.Job{
		at(3, "running", step("add learner n4", "running", ""), step("snapshot", w, ""), step("catch up", w, ""),
			step("joint", w, ""), step("remove n1", w, "")),
		at(4, "running", added, snapshot(0, 0), step("catch up", w, ""), step("joint", w, ""), step("remove n1", w, "")),
		at(5, "running", added, snapshot(31*mib, 31*mib), step("catch up", w, ""), step("joint", w, ""),
			step("remove n1", w, "")),
		at(6, "running", added, snapshot(33*mib, 31*mib), step("catch up", w, ""), step("joint", w, ""),
			step("remove n1", w, "")),
		at(7, "running", added, sent, behind(2000), step("joint", w, ""), step("remove n1", w, "")),
		at(8, "running", added, sent, behind(500), step("joint", w, ""), step("remove n1", w, "")),
		nil, nil, // no answer
		at(11, "running", added, sent, step("catch up", "done", ""), step("joint", "running", "n1 hands over to n2"),
			step("remove n1", w, "")),
		at(12, "done", added, sent, step("catch up", "done", ""), step("joint", "done", ""), step("remove n1", "done", "")),
	}
}

// watchOf follows the states of a job, one second for each question; between is called before each.
func watchOf(jobs []*sharddv1.Job, view jobView, between func()) (*sharddv1.Job, error) {
	now, n := time.Unix(0, 0), 0
	w := &watcher{view: view, now: func() time.Time { return now },
		pause: func(context.Context, time.Duration) { now = now.Add(time.Second) },
		get: func(context.Context) (*sharddv1.Job, error) {
			between()
			if n++; n > len(jobs) {
				return nil, errors.New("asked after the end")
			}
			if jobs[n-1] == nil {
				return nil, &admin.Error{Call: "get job", Kind: admin.ErrUnreachable}
			}
			return jobs[n-1], nil
		}}
	return w.follow(context.Background(), nil)
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "watch", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s\n(-update rewrites it)", path, got, want)
	}
}

func TestAMoveDrawnAsBars(t *testing.T) {
	for _, width := range []int{101, 81, 41} {
		var frame bytes.Buffer
		var all strings.Builder
		flush := func() {
			text := frame.String()
			frame.Reset()
			for _, code := range []string{"\x1b[K", "\x1b[J", "\r"} {
				text = strings.ReplaceAll(text, code, "")
			}
			if at := strings.Index(text, "A"); strings.HasPrefix(text, "\x1b[") { // the cursor goes up first
				text = text[at+1:]
			}
			for l := range strings.Lines(text) {
				if n := len(strings.TrimRight(l, "\n")); n >= width {
					t.Errorf("a line of %d columns on a terminal of %d: %q", n, width, l)
				}
			}
			if text != "" {
				all.WriteString(text + "--\n")
			}
		}
		v := &barsView{screen: cli.ScreenOf(&frame, width)}
		if j, err := watchOf(aMove(), v, flush); err != nil || jobEnd(j) != nil {
			t.Fatal(j, err)
		}
		flush()
		checkGolden(t, fmt.Sprintf("bars%d.txt", width-1), all.String())
	}
}

func TestAMoveAsLines(t *testing.T) {
	var out bytes.Buffer
	if j, err := watchOf(aMove(), &linesView{w: &out}, func() {}); err != nil || jobEnd(j) != nil {
		t.Fatal(j, err)
	}
	checkGolden(t, "lines.txt", out.String())
}

func TestWatchingGivesUpAfterLongSilenceOnly(t *testing.T) {
	jobs := append(aMove()[:2:2], make([]*sharddv1.Job, 59)...)
	jobs = append(jobs, aMove()[9])
	if j, err := watchOf(jobs, quietView{}, func() {}); err != nil || j.GetState() != admin.JobDone {
		t.Errorf("after 59 s of silence: %v, %v", j, err)
	}
	jobs = append(aMove()[:2:2], make([]*sharddv1.Job, 200)...)
	if j, err := watchOf(jobs, quietView{}, func() {}); !errors.Is(err, admin.ErrUnreachable) || j == nil {
		t.Errorf("after 200 s of silence: %v, %v", j, err)
	}
}

func TestTheEndOfAJobIsAnExitCode(t *testing.T) {
	for _, tc := range []struct {
		job  *sharddv1.Job
		code int
		text string
	}{
		{&sharddv1.Job{JobId: 1, State: admin.JobDone}, cli.ExitOK, ""},
		{&sharddv1.Job{JobId: 1, State: admin.JobDone, Findings: []string{"s3: ..."}}, cli.ExitUnhealthy,
			"job j1 found differences: 1"},
		{&sharddv1.Job{JobId: 1, State: admin.JobFailed, Error: "n4 is down"}, cli.ExitFailed, "job j1 failed: n4 is down"},
		{&sharddv1.Job{JobId: 1, State: admin.JobCancelled}, cli.ExitCancelled, "job j1 was cancelled"},
		{&sharddv1.Job{JobId: 1, State: "odd"}, cli.ExitFailed, `job j1 is in a state unknown here: "odd"`},
	} {
		err := jobEnd(tc.job)
		if cli.ExitCode(err) != tc.code || err != nil && err.Error() != tc.text {
			t.Errorf("%v: code %d, %v", tc.job, cli.ExitCode(err), err)
		}
		var e *cli.Error
		if err != nil && (!errors.As(err, &e) || e.Next == "") {
			t.Errorf("%v: no advice", tc.job)
		}
	}
}
