package node

import (
	"context"
	"errors"
	"fmt"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// DecommissionNode implements AdminService. What is in its way is worked out at once, from all shards of the node.
func (s *adminService) DecommissionNode(ctx context.Context, req *pb.DecommissionNodeRequest) (
	*pb.DecommissionNodeResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.DecommissionNodeRequest) (
		*pb.DecommissionNodeResponse, error) {
		resp, err := m.decommission(ctx, base.StoreID(req.NodeId), req.DryRun)
		if err != nil {
			return nil, jobStatus(err)
		}
		return resp, nil
	}, pb.AdminServiceClient.DecommissionNode)
}

func (m *member) decommission(ctx context.Context, node base.StoreID, dry bool) (*pb.DecommissionNodeResponse, error) {
	marks, err := readMarks(ctx, m.dir)
	if err != nil {
		return nil, err
	}
	if c := marks.commissions[node]; c == placement.Decommissioned || c == placement.Removed {
		return nil, refusal("shardctl nodes list shows the nodes", "%s is %s already", node, c)
	}
	if _, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), false); err != nil {
		return nil, err
	}
	nodes, err := m.jobs.heard(ctx, 0, []base.StoreID{node})
	if err != nil {
		return nil, err
	}
	if _, ok := nodes[node]; !ok {
		return nil, refusal("shardctl nodes list shows the nodes", "there is no node %s", node)
	}
	shards, err := m.jobs.holding(ctx, node)
	if err != nil {
		return nil, err
	}
	resp := &pb.DecommissionNodeResponse{Replicas: uint32(len(shards))}
	resp.Blocked = m.blockers(node, nodes, shards)
	m.plan.mu.Lock()
	if v := m.plan.view; v != nil {
		if st := v.Store(node); st != nil {
			resp.Leaders, resp.Bytes = uint32(st.Leaders), st.Bytes
		}
	}
	m.plan.mu.Unlock()
	resp.TookMs = m.moveTime(resp.Bytes, resp.Replicas)
	spec := &pb.JobSpec{Kind: placement.JobDecommission.String(), FromNode: uint64(node)}
	j, err := m.jobs.start(ctx, spec, dry)
	if err != nil {
		return nil, err
	}
	resp.Job = jobProto(j)
	if !dry {
		m.log.Info("node is decommissioned", "decommissioned", node.String(), "job", j.ID.String(), "replicas", len(shards),
			"bytes", resp.Bytes, "blocked", len(resp.Blocked))
		m.driver.poke()
	}
	return resp, nil
}

// blockers says for each rule how many shards have no node to go to, and what is wrong with those there are.
func (m *member) blockers(node base.StoreID, nodes map[base.StoreID]placement.NodeNow, shards []*base.Descriptor) (
	out []string) {
	p := m.rules.get()
	pick := memberWorld{m}.picker(node)
	type blocked struct {
		count int
		first base.ShardID
		why   string
	}
	var order []string
	by := make(map[string]*blocked)
	for _, d := range shards {
		to, why := pick(d, nodes)
		if to != 0 {
			continue
		}
		e := p.effective(d.Start)
		key := fmt.Sprintf("rule %s wants %d replicas: no other node could take", e.Name, e.Replicas)
		b := by[key+why]
		if b == nil {
			b = &blocked{first: d.Shard, why: why}
			by[key+why] = b
			order = append(order, key+why)
			b.why = key + " %s (" + why + "): add a node that could, or mend those"
		}
		b.count++
	}
	for _, key := range order {
		b := by[key]
		what := fmt.Sprintf("the replica of %s", b.first)
		if b.count > 1 {
			what = fmt.Sprintf("the replicas of %d shards, %s first of them", b.count, b.first)
		}
		out = append(out, fmt.Sprintf(b.why, what))
	}
	return out
}

// moveTime estimates from the limits of snapshots how long replicas take to leave one node, in ms.
func (m *member) moveTime(bytes uint64, replicas uint32) uint64 {
	send, receive := m.snapshots.service.SetLimits(0, 0) // changes nothing
	rate := max(min(send, receive), 1)
	// Each move takes some conf changes besides, a few moves at a time.
	const moveMs, atOnce = 2000, placement.DrainAtOnce
	return bytes*1000/rate + uint64(replicas)*moveMs/atOnce
}

// RecommissionNode implements AdminService.
func (s *adminService) RecommissionNode(ctx context.Context, req *pb.RecommissionNodeRequest) (
	*pb.RecommissionNodeResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.RecommissionNodeRequest) (
		*pb.RecommissionNodeResponse, error) {
		node := base.StoreID(req.NodeId)
		if err := m.jobs.recommission(ctx, node); err != nil {
			return nil, jobStatus(err)
		}
		m.log.Info("node is in commission again", "recommissioned", node.String())
		m.driver.poke()
		return &pb.RecommissionNodeResponse{}, nil
	}, pb.AdminServiceClient.RecommissionNode)
}

// recommission takes a decommission back and cancels its job.
func (r *jobRunner) recommission(ctx context.Context, node base.StoreID) error {
	if err := r.dir.SetCommission(ctx, node, placement.InCommission); err != nil {
		return err
	}
	r.marks.forget()
	jobs, err := r.dir.RunningJobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Spec.Kind != placement.JobDecommission || j.Spec.From != node {
			continue
		}
		if _, err := r.cancel(ctx, j.ID); err != nil && !errors.Is(err, placement.ErrEnded) {
			return err
		}
	}
	return nil
}
