package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
)

// GetZones implements AdminService.
func (s *adminService) GetZones(ctx context.Context, req *pb.GetZonesRequest) (*pb.GetZonesResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, _ *pb.GetZonesRequest) (
		*pb.GetZonesResponse, error) {
		p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), true)
		if err != nil {
			return nil, directoryStatus(err)
		}
		yaml := p.yaml
		if p.revision == 0 {
			yaml = string(p.set.Marshal())
		}
		return &pb.GetZonesResponse{Yaml: yaml, Revision: p.revision}, nil
	}, pb.AdminServiceClient.GetZones)
}

// ApplyZones implements AdminService.
func (s *adminService) ApplyZones(ctx context.Context, req *pb.ApplyZonesRequest) (*pb.ApplyZonesResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.ApplyZonesRequest) (
		*pb.ApplyZonesResponse, error) {
		return m.applyZones(ctx, req)
	}, pb.AdminServiceClient.ApplyZones)
}

func (m *member) applyZones(ctx context.Context, req *pb.ApplyZonesRequest) (*pb.ApplyZonesResponse, error) {
	next, err := rules.Parse("rules", []byte(req.Yaml))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	old, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), true)
	if err == nil {
		term, _ := m.leadsMeta()
		err = m.updateMembers(ctx, term)
	}
	if err != nil {
		return nil, directoryStatus(err)
	}
	if req.Revision != 0 && req.Revision != old.revision {
		return nil, status.Errorf(codes.FailedPrecondition,
			"the rules have revision %d, not %d: get them again, and put your change into those", old.revision, req.Revision)
	}
	var stores []rules.Store
	counts := make(map[[2]string]int)
	ranges := append(old.set.Ranges(), next.Ranges()...)
	m.plan.mu.Lock()
	if v := m.plan.view; v != nil {
		for _, s := range v.Stores() {
			if s.Listed && s.Commission == plan.Active {
				stores = append(stores, rules.Store{ID: s.ID, Labels: s.Labels})
			}
		}
		for _, r := range ranges {
			counts[[2]string{string(r.Start), string(r.End)}] = shardsIn(v, string(r.Start), string(r.End))
		}
	}
	m.plan.mu.Unlock()
	resp := &pb.ApplyZonesResponse{Revision: old.revision}
	resp.Diff = rules.Diff(old.set, next, func(start, end []byte) int { return counts[[2]string{string(start), string(end)}] })
	var fatal []string
	for _, p := range next.Check(stores) {
		if p.Fatal {
			fatal = append(fatal, p.String())
		}
		resp.Warnings = append(resp.Warnings, p.String())
	}
	if req.DryRun {
		return resp, nil
	}
	if len(fatal) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "the nodes there are can never satisfy the rules:\n%s",
			strings.Join(fatal, "\n"))
	}
	rec, err := m.dir.SetRules(ctx, req.Yaml, req.Revision)
	switch {
	case errors.Is(err, placement.ErrStale):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, directoryStatus(err)
	}
	resp.Revision = rec.Revision
	m.log.Info("placement rules applied", "revision", rec.Revision, "was", old.revision, "changes", len(resp.Diff))
	if _, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), true); err != nil {
		m.log.Warn("cannot read the placement rules back", "err", err)
	}
	m.driver.poke()
	return resp, nil
}

// shardsIn counts the shards that lie in [start, end) or reach into it.
func shardsIn(v *plan.View, start, end string) (n int) {
	from := start
	if sh := v.Find(start); sh != nil {
		from = sh.Start
	}
	for sh := range v.Shards(from) {
		if sh.Start >= end {
			break
		}
		n++
	}
	return n
}

// ExplainZones implements AdminService.
func (s *adminService) ExplainZones(ctx context.Context, req *pb.ExplainZonesRequest) (
	*pb.ExplainZonesResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.ExplainZonesRequest) (
		*pb.ExplainZonesResponse, error) {
		return m.explainZones(ctx, base.ShardID(req.ShardId))
	}, pb.AdminServiceClient.ExplainZones)
}

func (m *member) explainZones(ctx context.Context, id base.ShardID) (*pb.ExplainZonesResponse, error) {
	p, err := m.rules.refresh(ctx, m.dir, m.clock.Boot(), false)
	if err == nil {
		term, _ := m.leadsMeta()
		err = m.updateMembers(ctx, term)
	}
	if err != nil {
		return nil, directoryStatus(err)
	}
	d, err := m.findShard(ctx, id)
	if err != nil {
		return nil, err
	}
	cfg := m.planConfig(&p)
	labels := make(map[base.StoreID]map[string]string)
	wrong := make(map[base.StoreID]string)
	var others []rules.Candidate
	now := m.clock.Boot()
	m.plan.mu.Lock()
	if v := m.plan.view; v != nil {
		for _, s := range v.Stores() {
			labels[s.ID], wrong[s.ID] = maps.Clone(s.Labels), storeUnfit(s, &cfg, now)
			if _, has := d.ReplicaOn(s.ID); !has && s.Listed && s.Commission != plan.Removed {
				others = append(others, rules.Candidate{
					Store: rules.Store{ID: s.ID, Labels: labels[s.ID]}, Unfit: wrong[s.ID],
				})
			}
		}
	}
	m.plan.mu.Unlock()
	var placed []rules.Placed
	for _, r := range d.Replicas {
		placed = append(placed, rules.Placed{
			Store: rules.Store{ID: r.Store, Labels: labels[r.Store]}, Learner: r.Role == base.RoleLearner,
		})
	}
	x := rules.NewFitter(p.effective(d.Start)).Explain(placed, others, func(id base.StoreID) string { return wrong[id] })
	resp := &pb.ExplainZonesResponse{Rule: x.Rule, Problems: x.Problems, Spread: x.Spread}
	for i, r := range x.Replicas {
		resp.Replicas = append(resp.Replicas, &pb.ExplainedReplica{
			NodeId: uint64(r.Store), Role: d.Replicas[i].Role.String(), Labels: labelText(labels[r.Store]), Why: r.Why, Fits: r.Fits,
		})
	}
	for _, o := range x.Others {
		resp.Others = append(resp.Others, &pb.Candidate{What: o.Store.String(), Verdict: o.Verdict, Detail: o.Why})
	}
	return resp, nil
}

// storeUnfit says what else than a rule keeps replicas off a store, empty if nothing does.
func storeUnfit(s *plan.Store, cfg *plan.Config, now time.Duration) string {
	switch {
	case s.Commission != plan.Active:
		return s.Commission.String()
	case s.Drain == plan.DrainReplicas:
		return "being drained"
	case !s.Known:
		return "silent: it has not reported to this meta leader"
	case now-s.Seen > cfg.DownAfter:
		return "down"
	case now-s.Seen > cfg.AliveFor:
		return fmt.Sprintf("silent for %s", (now - s.Seen).Round(time.Second))
	case s.Disk != plan.DiskOK:
		return "low on disk"
	case s.Unhealthy != "":
		return "unhealthy: " + s.Unhealthy
	}
	return ""
}

func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
