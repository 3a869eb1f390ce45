package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

// viewOf is a view in which n1 leads s2, with these replicas.
func viewOf(t *testing.T, v *plan.View, confVer uint64, replicas ...base.ReplicaDesc) {
	t.Helper()
	d := &base.Descriptor{Shard: 2, Start: base.UserStart(), End: base.UserEnd(),
		Epoch: base.Epoch{ConfVer: confVer, Version: 1}, NextReplicaID: 9, Replicas: replicas}
	if _, err := v.Report(&plan.StoreReport{Store: 1, Incarnation: 1, Full: true, Replicas: []plan.ReplicaReport{
		{Shard: 2, Replica: replicas[0].Replica, Desc: d, Leads: true, Term: 5}}}); err != nil {
		t.Fatal(err)
	}
}

func TestWhatHasEndedIsInFlightUntilTheViewShowsIt(t *testing.T) {
	on1, on2 := base.ReplicaDesc{Replica: 1, Store: 1, Role: base.RoleVoter}, base.ReplicaDesc{Replica: 2, Store: 2,
		Role: base.RoleVoter}
	learner, voter := base.ReplicaDesc{Replica: 3, Store: 3, Role: base.RoleLearner}, base.ReplicaDesc{Replica: 3, Store: 3,
		Role: base.RoleVoter}
	move := &flight{Operator: plan.Operator{ID: 7, Kind: plan.OpMove, Shard: 2, From: 2, To: 3, Replica: 2}}
	job := &placement.Job{ID: 7, State: placement.JobRunning, Spec: placement.JobSpec{Kind: placement.JobMove, Shard: 2,
		From: 2, To: 3}, Replica: 2}
	for name, end := range map[string]func(d *driverState, now time.Duration) []*placement.Job{
		"of the driver": func(d *driverState, now time.Duration) []*placement.Job {
			d.end(move, "", "done", now, plan.Config{})
			return nil
		},
		"of a person": func(d *driverState, now time.Duration) []*placement.Job { return nil }, // it is heard of no more
	} {
		t.Run(name, func(t *testing.T) {
			v, d, now := plan.NewView(), newDriverState(), time.Minute
			viewOf(t, v, 3, on1, on2, learner)
			jobs := []*placement.Job{job}
			if name == "of the driver" {
				d.running[7], jobs = move, nil
			}
			round := func() int {
				running := d.operators(jobs, now)
				d.settleRest(v, running, now)
				return len(d.unsettled(running))
			}
			if n := round(); n != 1 {
				t.Fatalf("%d in flight while it runs", n)
			}
			jobs = end(d, now)
			for range 3 { // the learner is a voter by now, and the view does not know
				if n := round(); n != 1 {
					t.Fatalf("%d in flight before the report", n)
				}
				now += time.Second
			}
			viewOf(t, v, 6, on1, voter)
			if n := round(); n != 0 {
				t.Fatalf("%d in flight after the report", n)
			}
			// One that never shows is given up.
			d.settle(&move.Operator, now)
			viewOf(t, v, 7, on1, on2)
			now += settleFor
			if n := round(); n != 0 {
				t.Fatalf("%d in flight for ever", n)
			}
		})
	}
}

func TestNoMoveIsTakenBackBeforeItIsReported(t *testing.T) {
	if testing.Short() {
		t.Skip("four nodes for a minute, several under the race detector; not with -short")
	}
	// A small shard moves in less time than lies between two reports.
	var ps []*proc
	for i := range 4 {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.join = addrs(ps)
		p.tune = func(cfg *Config) {
			balanced(cfg)
			cfg.Settings.ReportInterval = time.Second
			cfg.Settings.Tick = 50 * time.Millisecond // a busy machine must not cost leaderships
		}
		p.start()
		if i > 0 {
			p.ready()
		} else if _, err := p.admin().Init(testContext(t), &pb.InitRequest{Splits: splitKeys(6)}); err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	eventually(t, "the last node has its part", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[0])
		if err == nil && voters[uint64(ps[3].store())] < 4 {
			err = fmt.Errorf("%v", voters)
		}
		return err
	})
	for _, op := range atRest(t, ps[0]).Recent {
		if op.Kind == plan.OpRemove.String() || op.Error != "" {
			t.Errorf("%v", op)
		}
	}
}

func TestOperatorsOfAnEarlierDriverAreShownAndHaveADeadline(t *testing.T) {
	st := newDriverState()
	job := func(id placement.JobID, shard base.ShardID, by placement.Origin) *placement.Job {
		return &placement.Job{ID: id, State: placement.JobRunning, Started: 60_000, Spec: placement.JobSpec{
			Kind: placement.JobMove, Shard: shard, From: 2, To: 3, Origin: by}}
	}
	jobs := []*placement.Job{
		job(7, 2, placement.OriginDriver), job(8, 3, placement.OriginUser), job(9, 4, placement.OriginDriver),
	}
	starts := &flight{Operator: plan.Operator{Kind: plan.OpMove, Shard: 4}}
	st.starting[starts] = true
	now := time.Hour
	cfg := plan.Config{}.WithDefaults()
	st.adopt(jobs, &cfg, now, time.UnixMilli(120_000))
	if len(st.running) != 1 || st.running[7] == nil {
		t.Fatalf("adopted %v", st.running)
	}
	f := *st.running[7]
	if f.Created != now-time.Minute || f.Deadline != now+adoptedFor {
		t.Errorf("created %s, deadline %s", f.Created, f.Deadline)
	}
	st.adopt(jobs, &cfg, now+time.Minute, time.UnixMilli(180_000))
	if got := st.running[7]; got.Created != f.Created || got.Deadline != f.Deadline {
		t.Errorf("a minute later: created %s, deadline %s", got.Created, got.Deadline)
	}
	if n := len(st.flights()); n != 2 {
		t.Errorf("%d operators are shown, want the adopted one and the one that starts", n)
	}
}
