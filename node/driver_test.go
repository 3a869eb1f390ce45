package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// balanced makes the placement driver of a node work, fast.
func balanced(cfg *Config) {
	cfg.Settings.NoBalance = false
	cfg.Settings.PlanInterval = 50 * time.Millisecond
}

// balancedProcs makes a cluster of one node whose driver works, and n-1 nodes that have joined it.
func balancedProcs(t *testing.T, n, shards int) []*proc {
	t.Helper()
	p := newProc(t, "p0")
	p.tune = balanced
	ps := []*proc{p.start()}
	if _, err := p.admin().Init(testContext(t), &pb.InitRequest{Splits: splitKeys(shards)}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		ps = append(ps, joinBalanced(t, fmt.Sprintf("p%d", i), ps...))
	}
	return ps
}

func joinBalanced(t *testing.T, name string, by ...*proc) *proc {
	t.Helper()
	p := newProc(t, name)
	p.join, p.tune = addrs(by), balanced
	p.start()
	p.ready()
	return p
}

// counts returns how many voters and leaders each node has, as the index and the reports say.
func counts(ctx context.Context, p *proc) (voters, leaders map[uint64]int, err error) {
	list, err := p.admin().ListShards(ctx, &pb.ListShardsRequest{})
	if err != nil {
		return nil, nil, err
	}
	voters, leaders = map[uint64]int{}, map[uint64]int{}
	for _, s := range list.Shards {
		for _, r := range s.Replicas {
			if r.Role != base.RoleVoter.String() {
				return nil, nil, fmt.Errorf("s%d has a %s", s.ShardId, r.Role)
			}
			voters[r.NodeId]++
		}
		leaders[s.Leader]++
	}
	return voters, leaders, nil
}

func TestAClusterThatGrowsFromOneNodeSpreadsByItself(t *testing.T) {
	const shards = 8
	ps := balancedProcs(t, 1, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 20, shards)
	for i := 1; i < 3; i++ {
		ps = append(ps, joinBalanced(t, fmt.Sprintf("p%d", i), ps...))
	}
	eventually(t, "every shard has three voters, and the leaders are spread", func(ctx context.Context) error {
		voters, leaders, err := counts(ctx, ps[1])
		if err != nil {
			return err
		}
		for _, p := range ps {
			id := uint64(p.store())
			if voters[id] != shards+1 || leaders[id] < 2 || leaders[id] > 4 {
				return fmt.Errorf("voters %v, leaders %v", voters, leaders)
			}
		}
		return nil
	})
	l.check(t, ps[2])
}

// status asks p for the state of the driver.
func (p *proc) balance(ctx context.Context) (*pb.BalanceStatusResponse, error) {
	return p.admin().BalanceStatus(ctx, &pb.BalanceStatusRequest{})
}

// atRest waits until the driver has had nothing to do for some rounds.
func atRest(t *testing.T, p *proc) *pb.BalanceStatusResponse {
	t.Helper()
	var out *pb.BalanceStatusResponse
	eventually(t, "the driver has nothing to do", func(ctx context.Context) (err error) {
		now, err := p.balance(ctx)
		if err == nil {
			out = now
			if out.State != "running" || out.QuietRounds < 10 {
				err = errPending
			}
		}
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w; last seen %v", err, out)
		}
		return err
	})
	return out
}

func TestAPausedDriverDoesNothingAndResumes(t *testing.T) {
	const shards = 2
	ps := balancedProcs(t, 1, shards)
	ctx := testContext(t)
	got, err := ps[0].admin().SetBalance(ctx, &pb.SetBalanceRequest{
		Pause: []string{"all"}, Limits: &pb.BalanceLimits{Operators: 3, DownAfterMs: 20_000},
	})
	if err != nil || len(got.Paused) != 1 || got.Limits.Operators != 3 || got.Limits.DownAfterMs != 20_000 {
		t.Fatalf("%v %v", got, err)
	}
	ps = append(ps, joinBalanced(t, "p1", ps...))
	var before uint64
	eventually(t, "some rounds pass", func(ctx context.Context) error {
		st, err := ps[1].balance(ctx) // any node answers
		if err != nil {
			return err
		}
		if before == 0 {
			before = st.Rounds
		}
		if st.State != "paused" || st.Rounds < before+10 || st.Limits.Operators != 3 {
			return fmt.Errorf("%v", st)
		}
		if len(st.Running)+len(st.Recent) > 0 {
			t.Fatalf("a paused driver works: %v", st)
		}
		return nil
	})
	if voters, _, err := counts(ctx, ps[0]); err != nil || voters[uint64(ps[1].store())] != 0 {
		t.Fatalf("voters %v, %v", voters, err)
	}
	if _, err := ps[1].admin().SetBalance(ctx, &pb.SetBalanceRequest{Resume: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second node gets its replicas", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[0])
		if err == nil && voters[uint64(ps[1].store())] != shards+1 {
			err = fmt.Errorf("voters %v", voters)
		}
		return err
	})
	for _, req := range []*pb.SetBalanceRequest{
		{Pause: []string{"everything"}}, {Pause: []string{"hot"}, Resume: []string{"hot"}},
		{Limits: &pb.BalanceLimits{SplitBytes: 100}},
	} {
		if _, err := ps[0].admin().SetBalance(ctx, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
}

func TestADecommissionedNodeIsEmptyAndTheJobEndsByItself(t *testing.T) {
	const shards = 4
	ps := balancedProcs(t, 3, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 20, shards)
	atRest(t, ps[0])
	ctx := testContext(t)
	out := ps[2]
	dry, err := ps[0].admin().DecommissionNode(ctx, &pb.DecommissionNodeRequest{NodeId: uint64(out.store()), DryRun: true})
	if err != nil || dry.Job.JobId != 0 || dry.Replicas != shards+1 || len(dry.Blocked) == 0 {
		t.Fatalf("without a fourth node: %v %v", dry, err)
	}
	ps = append(ps, joinBalanced(t, "p3", ps...))
	var resp *pb.DecommissionNodeResponse
	eventually(t, "nothing is in its way", func(ctx context.Context) (err error) {
		if dry, err = ps[1].admin().DecommissionNode(ctx, &pb.DecommissionNodeRequest{
			NodeId: uint64(out.store()), DryRun: true,
		}); err == nil && (len(dry.Blocked) > 0 || dry.TookMs == 0) {
			err = fmt.Errorf("%v", dry)
		}
		return err
	})
	if resp, err = ps[1].admin().DecommissionNode(ctx, &pb.DecommissionNodeRequest{NodeId: uint64(out.store())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job ends", func(ctx context.Context) error {
		j, err := ps[1].admin().GetJob(ctx, &pb.GetJobRequest{JobId: resp.Job.JobId})
		if err == nil && j.Job.State != "done" {
			err = fmt.Errorf("%v", j.Job)
		}
		return err
	})
	nodes, err := ps[0].admin().ListNodes(ctx, &pb.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Nodes {
		want := ""
		if n.NodeId == uint64(out.store()) {
			want = "decommissioned"
		}
		if n.Commission != want || want != "" && n.Replicas != 0 {
			t.Errorf("n%d: %q with %d replicas", n.NodeId, n.Commission, n.Replicas)
		}
	}
	if st, err := out.admin().NodeStatus(ctx, &pb.NodeStatusRequest{}); err != nil || st.Replicas != 0 {
		t.Errorf("%d replicas are left, %v", st.GetReplicas(), err)
	}
	l.check(t, ps[0])
	// It can come back.
	if _, err := ps[0].admin().RecommissionNode(ctx, &pb.RecommissionNodeRequest{NodeId: uint64(out.store())}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it gets replicas again", func(ctx context.Context) error {
		st, err := out.admin().NodeStatus(ctx, &pb.NodeStatusRequest{})
		if err == nil && st.Replicas == 0 {
			err = errPending
		}
		return err
	})
}

func TestOperatorsGoOnWhenTheMetaLeaderChanges(t *testing.T) {
	if testing.Short() {
		t.Skip("four nodes for a minute, several under the race detector; not with -short")
	}
	const shards = 6
	ps := balancedProcs(t, 3, shards)
	atRest(t, ps[0])
	ps = append(ps, joinBalanced(t, "p3", ps...), joinBalanced(t, "p4", ps...))
	eventually(t, "operators run", func(ctx context.Context) error {
		st, err := ps[0].balance(ctx)
		if err == nil && len(st.Running)+len(st.Recent) == 0 {
			err = errPending
		}
		return err
	})
	for range 3 {
		now, err := ps[3].member().shardNow(testContext(t), base.MetaShard)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range now.Desc.Replicas {
			if r.Store != now.Leader && r.Role == base.RoleVoter {
				ps[3].admin().TransferLeader(testContext(t), &pb.TransferLeaderRequest{ // any outcome will do
					ShardId: uint64(base.MetaShard), ToNode: uint64(r.Store),
				})
				break
			}
		}
		pause(testContext(t), 300*time.Millisecond)
	}
	atRest(t, ps[4])
	eventually(t, "replicas are spread over five nodes", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[1])
		if err != nil {
			return err
		}
		for _, p := range ps {
			// 21 replicas on five nodes.
			if n := voters[uint64(p.store())]; n < 3 || n > 6 {
				return fmt.Errorf("voters %v", voters)
			}
		}
		return nil
	})
	jobs, err := ps[2].admin().ListJobs(testContext(t), &pb.ListJobsRequest{Running: true})
	if err != nil || len(jobs.Jobs) > 0 {
		t.Errorf("jobs are left: %v %v", jobs, err)
	}
}

func TestRulesThatAreAppliedMoveReplicas(t *testing.T) {
	const shards = 2
	ps := balancedProcs(t, 4, shards)
	atRest(t, ps[0])
	ctx := testContext(t)
	yaml := "defaults:\n  replicas: 3\n  constraints:\n    prohibited: [name=p1]\n"
	dry, err := ps[2].admin().ApplyZones(ctx, &pb.ApplyZonesRequest{Yaml: yaml, DryRun: true})
	if err != nil || len(dry.Diff) == 0 || dry.Revision != 0 {
		t.Fatalf("dry run: %v %v", dry, err)
	}
	got, err := ps[2].admin().ApplyZones(ctx, &pb.ApplyZonesRequest{Yaml: yaml})
	if err != nil || got.Revision != 1 {
		t.Fatalf("apply: %v %v", got, err)
	}
	eventually(t, "p1 has no replica", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[0])
		if err == nil && (voters[uint64(ps[1].store())] != 0 || voters[uint64(ps[3].store())] != shards+1) {
			err = fmt.Errorf("voters %v", voters)
		}
		return err
	})
	x, err := ps[3].admin().ExplainZones(ctx, &pb.ExplainZonesRequest{ShardId: 2})
	if err != nil || len(x.Replicas) != 3 || len(x.Others) != 1 || x.Others[0].Verdict != "rule" {
		t.Errorf("explained: %v %v", x, err)
	}
	zones, err := ps[1].admin().GetZones(ctx, &pb.GetZonesRequest{})
	if err != nil || zones.Yaml != yaml || zones.Revision != 1 {
		t.Errorf("rules: %v %v", zones, err)
	}
	for name, req := range map[string]*pb.ApplyZonesRequest{
		"nonsense":        {Yaml: "colour: blue\n"},
		"another writer":  {Yaml: "defaults: {replicas: 1}\n", Revision: 7},
		"never satisfied": {Yaml: "defaults: {replicas: 3, constraints: {required: [name=p0]}}\n"},
	} {
		if _, err := ps[0].admin().ApplyZones(ctx, req); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
}

func TestTheDriverSaysWhy(t *testing.T) {
	if testing.Short() {
		t.Skip("four nodes for a minute, several under the race detector; not with -short")
	}
	const shards = 3
	ps := balancedProcs(t, 3, shards)
	st := atRest(t, ps[0])
	if len(st.Recent) == 0 || st.Term == 0 || st.Rounds == 0 {
		t.Errorf("%v", st)
	}
	ctx := testContext(t)
	for name, req := range map[string]*pb.WhyRequest{
		"shard": {Subject: &pb.WhyRequest_ShardId{ShardId: 2}},
		"node":  {Subject: &pb.WhyRequest_NodeId{NodeId: uint64(ps[1].store())}},
	} {
		why, err := ps[2].admin().Why(ctx, req)
		if err != nil || why.Summary == "" || len(why.Now) == 0 || len(why.Past) == 0 {
			t.Errorf("%s: %v %v", name, why, err)
		}
	}
	for _, op := range st.Recent {
		why, err := ps[1].admin().Why(ctx, &pb.WhyRequest{Subject: &pb.WhyRequest_OperatorId{OperatorId: op.OperatorId}})
		if err != nil || why.Summary == "" || len(why.Past) == 0 {
			t.Errorf("operator %v: %v %v", op, why, err)
		}
	}
	for _, req := range []*pb.WhyRequest{
		{Subject: &pb.WhyRequest_ShardId{ShardId: 999}}, {Subject: &pb.WhyRequest_NodeId{NodeId: 999}},
		{Subject: &pb.WhyRequest_OperatorId{OperatorId: 99999}},
	} {
		if _, err := ps[0].admin().Why(ctx, req); status.Code(err) != codes.NotFound {
			t.Errorf("%v: %v", req, err)
		}
	}
	eventually(t, "the life of a shard", func(ctx context.Context) error {
		log, err := ps[0].admin().ShardLog(ctx, &pb.ShardLogRequest{ShardId: 2})
		if err == nil && len(log.Events) == 0 {
			err = errPending
		}
		return err
	})
	top, err := ps[1].admin().Top(ctx, &pb.TopRequest{By: "size"})
	if err != nil || len(top.Nodes) != 3 || len(top.Shards) != shards+1 || top.ShardCount != shards+1 {
		t.Errorf("top: %v %v", top, err)
	}
	if heat, err := ps[1].admin().HotMap(ctx, &pb.HotMapRequest{}); err != nil || len(heat.Bounds) != shards+1 ||
		len(heat.Cells) != shards*len(heat.Times) {
		t.Errorf("heat: %v %v", heat, err)
	}
	tried, err := ps[2].admin().Simulate(ctx, &pb.SimulateRequest{AddNodes: []string{"zone=b", "zone=c"}})
	if err != nil || len(tried.Nodes) != 5 || tried.MovesTotal == 0 || tried.Unfinished {
		t.Errorf("simulated: %v %v", tried, err)
	}
	if _, err := ps[2].admin().Simulate(ctx, &pb.SimulateRequest{Lose: "zone=x"}); status.Code(err) != codes.NotFound {
		t.Errorf("a zone that is none: %v", err)
	}
}
