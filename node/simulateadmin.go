package node

import (
	"context"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
)

// Simulate implements AdminService: the planner runs on a copy of the view, outside its lock.
func (s *adminService) Simulate(ctx context.Context, req *pb.SimulateRequest) (*pb.SimulateResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.SimulateRequest) (
		*pb.SimulateResponse, error) {
		return m.simulate(ctx, req)
	}, pb.AdminServiceClient.Simulate)
}

// maxAdded bounds the nodes of one simulation.
const maxAdded = 1000

func (m *member) simulate(ctx context.Context, req *pb.SimulateRequest) (*pb.SimulateResponse, error) {
	p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), false)
	if err == nil {
		term, _ := m.leadsMeta()
		err = m.updateMembers(ctx, term)
	}
	if err != nil {
		return nil, directoryStatus(err)
	}
	if len(req.AddNodes) > maxAdded {
		return nil, status.Errorf(codes.InvalidArgument, "%d nodes to add, at most %d", len(req.AddNodes), maxAdded)
	}
	cfg := m.planConfig(&p)
	cfg.Off = 0                                          // what it would do if nothing were paused
	cfg.Rules = rules.NewPlanner(p.set)                  // it remembers what it sees: not the driver's own
	send, receive := m.snapshots.service.SetLimits(0, 0) // changes nothing
	trial := plan.Trial{Rate: max(min(send, receive)/uint64(cfg.StoreSnapshots), 1)}
	for _, text := range req.AddNodes {
		labels, err := parseLabels(text)
		if err != nil {
			return nil, err
		}
		trial.Add = append(trial.Add, labels)
	}
	if req.RulesYaml != "" {
		set, err := rules.Parse("rules", []byte(req.RulesYaml))
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		trial.Rules = rules.NewPlanner(set)
	}
	m.plan.mu.Lock()
	if m.plan.view == nil {
		m.plan.mu.Unlock()
		return nil, status.Error(codes.Unavailable, "nothing is known of the cluster yet: ask again")
	}
	v := m.plan.view.Clone()
	m.plan.mu.Unlock()
	for _, id := range req.RemoveNodes {
		if v.Store(base.StoreID(id)) == nil {
			return nil, status.Errorf(codes.NotFound, "there is no node n%d", id)
		}
		trial.Remove = append(trial.Remove, base.StoreID(id))
	}
	if req.Lose != "" {
		key, value, ok := strings.Cut(req.Lose, "=")
		if !ok {
			return nil, status.Errorf(codes.InvalidArgument, "nodes to lose: %.64q is not key=value", req.Lose)
		}
		for _, s := range v.Stores() {
			if have, ok := s.Labels[key]; ok && have == value {
				trial.Lose = append(trial.Lose, s.ID)
			}
		}
		if len(trial.Lose) == 0 {
			return nil, status.Errorf(codes.NotFound, "no node has the label %s", req.Lose)
		}
	}
	return triedProto(plan.Simulate(v, cfg, trial)), nil
}

func triedProto(t *plan.Tried) *pb.SimulateResponse {
	resp := &pb.SimulateResponse{
		Bytes: t.Bytes, TookMs: uint64(t.Took.Milliseconds()), Problems: t.Problems, MovesTotal: uint64(t.Total),
		Unfinished: t.Unfinished,
	}
	for _, mv := range t.Moves {
		resp.Moves = append(resp.Moves, &pb.SimulatedMove{
			AtMs: uint64(mv.At.Milliseconds()), Kind: mv.Kind.String(), ShardId: uint64(mv.Shard), FromNode: uint64(mv.From),
			ToNode: uint64(mv.To), Bytes: mv.Bytes, Reason: mv.Reason,
		})
	}
	for _, n := range t.Nodes {
		resp.Nodes = append(resp.Nodes, &pb.SimulatedNode{
			NodeId: uint64(n.ID), Labels: labelText(n.Labels), Note: n.Note,
			ReplicasBefore: uint32(n.Before.Replicas), ReplicasAfter: uint32(n.After.Replicas),
			LeadersBefore: uint32(n.Before.Leaders), LeadersAfter: uint32(n.After.Leaders),
			BytesBefore: n.Before.Bytes, BytesAfter: n.After.Bytes,
		})
	}
	return resp
}

// parseLabels reads key=value,...; empty is no labels.
func parseLabels(text string) (map[string]string, error) {
	out := make(map[string]string)
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok || k == "" || v == "" {
			return nil, status.Errorf(codes.InvalidArgument, "label %.64q is not key=value", part)
		}
		out[k] = v
	}
	return out, nil
}
