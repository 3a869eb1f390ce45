package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

// What people ask and set of the driver. All of it is answered by the node that leads the meta shard.

// BalanceStatus implements AdminService.
func (s *adminService) BalanceStatus(ctx context.Context, req *pb.BalanceStatusRequest) (
	*pb.BalanceStatusResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, _ *pb.BalanceStatusRequest) (
		*pb.BalanceStatusResponse, error) {
		return m.balanceStatus(ctx)
	}, pb.AdminServiceClient.BalanceStatus)
}

func (m *member) balanceStatus(ctx context.Context) (*pb.BalanceStatusResponse, error) {
	p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), true)
	if err != nil {
		return nil, directoryStatus(err)
	}
	term, leads := m.leadsMeta()
	if !leads {
		return nil, status.Errorf(codes.Unavailable, "%s does not lead the meta shard any more", m.self)
	}
	jobs := m.jobs.all()
	cfg := m.planConfig(&p)
	now := m.clock.Boot()
	c := &m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enterLocked(term)
	st := c.driverState
	resp := &pb.BalanceStatusResponse{
		Term: term, Rounds: st.rounds, LastRoundMicros: uint64(st.took.Microseconds()), Limits: limitsProto(&cfg),
		ReplicaSpread: uint32(max(st.last.ReplicaSpread, 0)), LeaderSpread: uint32(max(st.last.LeaderSpread, 0)),
		QuietRounds: st.quiet, Paused: p.balance.Paused.Names(),
	}
	if st.planner != nil {
		resp.QuietMs = uint64((now - st.active).Milliseconds())
	}
	resp.State, resp.Detail = "running", ""
	switch {
	case m.n.cfg.Settings.NoBalance:
		resp.State, resp.Detail = "paused", fmt.Sprintf("%s runs with --balance=false: nothing is started while it leads", m.self)
	case cfg.Off == plan.PartAll:
		resp.State, resp.Detail = "paused", "shardctl balance resume lets it go on"
	case st.trouble != "":
		resp.State, resp.Detail = "waiting", st.trouble
	case st.planner == nil:
		resp.State, resp.Detail = "waiting", "the first round has not been planned yet"
	case st.last.Waiting != "":
		resp.State, resp.Detail = "waiting", st.last.Waiting
	case cfg.Off != 0:
		resp.Detail = "paused: " + strings.Join(cfg.Off.Names(), ", ")
	}
	for _, f := range st.flights() {
		resp.Running = append(resp.Running, f.proto(jobs, now))
	}
	for _, e := range slices.Backward(st.recent) {
		resp.Recent = append(resp.Recent, e.proto(now))
	}
	needs := c.view.Needs()
	for _, what := range slices.Sorted(maps.Keys(needs)) {
		resp.Problems = append(resp.Problems, &pb.Count{What: what, Count: uint64(needs[what])})
	}
	if n := st.last.NoRoom; n > 0 {
		resp.Problems = append(resp.Problems, &pb.Count{What: "nodes without room for more", Count: uint64(n)})
	}
	return resp, nil
}

// flights returns the operators of the driver in the order of their ids, those that start last.
func (d *driverState) flights() []*flight {
	out := slices.Collect(maps.Values(d.running))
	slices.SortFunc(out, func(a, b *flight) int { return cmp.Compare(a.ID, b.ID) })
	starting := slices.Collect(maps.Keys(d.starting))
	slices.SortFunc(starting, func(a, b *flight) int { return cmp.Compare(a.Shard, b.Shard) })
	return append(out, starting...)
}

func (f *flight) proto(jobs []*placement.Job, now time.Duration) *pb.Operator {
	out := operatorProto(&f.Operator)
	out.AgeMs, out.State, out.Step = uint64(max(now-f.Created, 0).Milliseconds()), "running", f.step
	if f.late {
		out.Error = "it takes too long and is being cancelled"
	}
	for _, j := range jobs {
		if uint64(j.ID) == f.ID {
			out.Step = runningStep(j)
		}
	}
	return out
}

// runningStep says what a job is doing.
func runningStep(j *placement.Job) string {
	for _, s := range j.Steps {
		if s.State == placement.StepRunning {
			if s.Detail != "" {
				return s.Name + ": " + s.Detail
			}
			return s.Name
		}
	}
	return ""
}

func (e *endedOp) proto(now time.Duration) *pb.Operator {
	out := operatorProto(&e.Operator)
	out.State, out.Error, out.AgeMs = e.state, e.err, uint64(max(now-e.at, 0).Milliseconds())
	return out
}

func operatorProto(op *plan.Operator) *pb.Operator {
	reason := op.Reason
	if op.Maker != "" {
		reason = op.Maker + ": " + reason
	}
	return &pb.Operator{
		OperatorId: op.ID, Kind: op.Kind.String(), ShardId: uint64(op.Shard), Reason: strings.TrimSuffix(opText(op)+"; "+reason, "; "),
		Bytes: op.Bytes,
	}
}

// opText is an operator without its reason.
func opText(op *plan.Operator) string {
	o := *op
	o.Reason = ""
	return o.String()
}

func limitsProto(c *plan.Config) *pb.BalanceLimits {
	return &pb.BalanceLimits{
		Operators: uint32(c.Operators), NodeSnapshots: uint32(c.StoreSnapshots), NodeTransfers: uint32(c.StoreTransfers),
		DownAfterMs: uint64(c.DownAfter.Milliseconds()), SplitBytes: c.SplitBytes, MergeBytes: c.MergeBytes,
		MergeAgeMs: uint64(c.MergeAge.Milliseconds()), SplitRequests: float64(c.SplitRequests),
	}
}

// SetBalance implements AdminService.
func (s *adminService) SetBalance(ctx context.Context, req *pb.SetBalanceRequest) (*pb.SetBalanceResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.SetBalanceRequest) (
		*pb.SetBalanceResponse, error) {
		return m.setBalance(ctx, req)
	}, pb.AdminServiceClient.SetBalance)
}

func (m *member) setBalance(ctx context.Context, req *pb.SetBalanceRequest) (*pb.SetBalanceResponse, error) {
	var pause, resume placement.Part
	for _, set := range []struct {
		names []string
		to    *placement.Part
	}{{req.Pause, &pause}, {req.Resume, &resume}} {
		for _, name := range set.names {
			part, err := placement.ParsePart(name)
			if err != nil {
				return nil, directoryStatus(err)
			}
			*set.to |= part
		}
	}
	if pause&resume != 0 {
		return nil, status.Errorf(codes.InvalidArgument, "pause and resume both name %s",
			strings.Join((pause&resume).Names(), ", "))
	}
	const most = 365 * 24 * time.Hour
	l := req.GetLimits()
	if max(l.GetDownAfterMs(), l.GetMergeAgeMs()) > uint64(most.Milliseconds()) {
		return nil, status.Errorf(codes.InvalidArgument, "a time above %s", most)
	}
	set, err := m.dir.UpdateBalance(ctx, func(b *placement.Balance) error {
		if resume&placement.PartAll != 0 {
			b.Paused = 0
		}
		b.Paused = b.Paused&^resume | pause
		b.BalanceLimits = placement.BalanceLimits{
			Operators: l.GetOperators(), NodeSnapshots: l.GetNodeSnapshots(), NodeTransfers: l.GetNodeTransfers(),
			DownAfter: millis(l.GetDownAfterMs()), SplitBytes: l.GetSplitBytes(), MergeBytes: l.GetMergeBytes(),
			MergeAge: millis(l.GetMergeAgeMs()), SplitRequests: l.GetSplitRequests(),
		}.Or(b.BalanceLimits)
		return nil
	})
	if err != nil {
		return nil, directoryStatus(err)
	}
	p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), true)
	if err != nil {
		return nil, directoryStatus(err)
	}
	m.driver.poke()
	cfg := m.planConfig(&p)
	m.log.Info("placement driver set", "pause", pause.Names(), "resume", resume.Names(), "paused", set.Paused.Names(),
		"limits", limitsProto(&cfg).String())
	return &pb.SetBalanceResponse{Limits: limitsProto(&cfg), Paused: set.Paused.Names()}, nil
}
