package node

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

const (
	whyDecisions    = 20
	maxWhyDecisions = 1000
)

// Why implements AdminService: the journal of the driver, and the planner run again with a trace.
func (s *adminService) Why(ctx context.Context, req *pb.WhyRequest) (*pb.WhyResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.WhyRequest) (*pb.WhyResponse, error) {
		return m.why(ctx, req)
	}, pb.AdminServiceClient.Why)
}

func (m *member) why(ctx context.Context, req *pb.WhyRequest) (*pb.WhyResponse, error) {
	limit := int(req.Limit)
	if limit == 0 {
		limit = whyDecisions
	}
	limit = min(limit, maxWhyDecisions)
	p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), false)
	if err != nil {
		return nil, directoryStatus(err)
	}
	var job *placement.Job
	op, isOp := req.Subject.(*pb.WhyRequest_OperatorId)
	if isOp && op.OperatorId < transferIDs {
		if j, err := m.dir.Job(ctx, placement.JobID(op.OperatorId)); err == nil {
			job = m.jobs.fresh(j)
		}
	}
	cfg := m.planConfig(&p)
	jobs := m.jobs.all()
	now, wall := m.clock.Boot(), m.clock.Wall()
	c := &m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil || c.driverState.planner == nil {
		return nil, status.Error(codes.Unavailable, "the placement driver has not planned yet: ask again")
	}
	st := c.driverState
	running := st.unsettled(st.operators(jobs, now))
	var w *plan.Why
	known := false
	switch s := req.Subject.(type) {
	case *pb.WhyRequest_ShardId:
		w, known = st.planner.WhyShard(c.view, cfg, base.ShardID(s.ShardId), running, limit)
	case *pb.WhyRequest_NodeId:
		w, known = st.planner.WhyNode(c.view, cfg, base.StoreID(s.NodeId), running, limit)
	case *pb.WhyRequest_OperatorId:
		w, known = st.planner.WhyOperator(s.OperatorId, limit)
		if text := st.operatorText(s.OperatorId, job); text != "" {
			w.Summary, known = text, true
		}
	default:
		return nil, status.Error(codes.InvalidArgument, "why: name a shard, a node or an operator")
	}
	if !known && len(w.Past) == 0 {
		return nil, status.Error(codes.NotFound, w.Summary)
	}
	resp := &pb.WhyResponse{Summary: w.Summary}
	if len(w.Lines) > 0 {
		d := &pb.Decision{UnixMs: uint64(wall.UnixMilli()), By: "checks", Outcome: "as of now"}
		for _, l := range w.Lines {
			d.Candidates = append(d.Candidates, &pb.Candidate{What: l.What, Detail: l.Detail})
		}
		resp.Now = append(resp.Now, d)
	}
	for i := range w.Now {
		resp.Now = append(resp.Now, decisionProto(&w.Now[i], now, wall))
	}
	for i := range w.Past {
		resp.Past = append(resp.Past, decisionProto(&w.Past[i], now, wall))
	}
	return resp, nil
}

// operatorText says what is known of an operator besides the journal, empty if nothing.
func (d *driverState) operatorText(id uint64, job *placement.Job) string {
	if f := d.running[id]; f != nil {
		text := "running: " + f.Operator.String()
		if job != nil && runningStep(job) != "" {
			text += "; " + runningStep(job)
		}
		return text
	}
	for _, e := range d.recent {
		if e.ID == id {
			text := e.state + ": " + e.Operator.String()
			if e.err != "" {
				text += ": " + e.err
			}
			return text
		}
	}
	if job == nil {
		return ""
	}
	text := fmt.Sprintf("%s: %s of the %s", job.State, job.Spec.Kind, job.Spec.Origin)
	if job.Spec.Shard != 0 {
		text += ", " + job.Spec.Shard.String()
	}
	for _, more := range []string{job.Spec.Reason, job.Error} {
		if more != "" {
			text += ": " + more
		}
	}
	return text
}

func decisionProto(d *plan.Decision, now time.Duration, wall time.Time) *pb.Decision {
	out := &pb.Decision{
		UnixMs: uint64(wall.Add(d.At - now).UnixMilli()), By: d.By, Outcome: d.Outcome, OperatorId: d.Operator,
	}
	switch {
	case d.Shard != 0:
		out.Subject = d.Shard.String()
	case d.Stores[0] != 0:
		out.Subject = d.Stores[0].String()
	}
	for _, c := range d.Candidates {
		out.Candidates = append(out.Candidates, &pb.Candidate{
			What: c.What, Verdict: c.Verdict, Detail: c.Detail, Score: c.Score,
		})
	}
	return out
}
