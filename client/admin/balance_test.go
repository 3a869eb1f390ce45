package admin_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// driverFake answers the calls about the placement driver as fake does.
type driverFake struct {
	fake
	begun    int
	applied  *sharddv1.ApplyZonesRequest
	asked    *sharddv1.WhyRequest
	recovery *sharddv1.RecoverQuorumRequest
}

func (f *driverFake) DecommissionNode(
	_ context.Context, r *sharddv1.DecommissionNodeRequest) (*sharddv1.DecommissionNodeResponse, error) {
	if !r.GetDryRun() {
		f.begun++
	}
	return &sharddv1.DecommissionNodeResponse{Job: &sharddv1.Job{JobId: 4}}, f.fail
}

func (f *driverFake) NodeStatus(context.Context, *sharddv1.NodeStatusRequest) (*sharddv1.NodeStatusResponse, error) {
	return &sharddv1.NodeStatusResponse{NodeId: 7}, nil
}

func (f *driverFake) ApplyZones(_ context.Context, r *sharddv1.ApplyZonesRequest) (*sharddv1.ApplyZonesResponse, error) {
	f.applied = r
	return &sharddv1.ApplyZonesResponse{Revision: 8}, f.fail
}

func (f *driverFake) Why(_ context.Context, r *sharddv1.WhyRequest) (*sharddv1.WhyResponse, error) {
	f.asked = r
	return &sharddv1.WhyResponse{Summary: "well"}, f.fail
}

func (f *driverFake) RecoverQuorum(
	_ context.Context, r *sharddv1.RecoverQuorumRequest) (*sharddv1.RecoverQuorumResponse, error) {
	f.recovery = r
	return &sharddv1.RecoverQuorumResponse{PlanToken: "t"}, f.fail
}

func TestADecommissionIsBegunAtOneNodeOnly(t *testing.T) {
	lost, second := &driverFake{}, &driverFake{}
	lost.fail = status.Error(codes.Unavailable, "connection reset")
	c := open(t, deadAddr(t), start(t, lost), start(t, second))
	_, err := c.Decommission(context.Background(), 3, false)
	if !errors.Is(err, admin.ErrUnreachable) || !strings.Contains(err.Error(), "may have been started all the same") {
		t.Errorf("lost answer: %v", err)
	}
	if lost.begun != 1 || second.begun != 0 {
		t.Errorf("begun %d times at the first node that answers, %d times at the second", lost.begun, second.begun)
	}
	if r, err := c.Decommission(context.Background(), 3, true); err != nil || r.GetJob().GetJobId() != 4 {
		t.Errorf("plan: %v, %v", r, err)
	}
}

func TestRulesAreAppliedOverTheRevisionThatWasSeen(t *testing.T) {
	f := &driverFake{}
	c := open(t, start(t, f))
	if _, err := c.CheckZones(context.Background(), "rules", 7); err != nil || !f.applied.GetDryRun() {
		t.Errorf("check: %v, %v", f.applied, err)
	}
	r, err := c.ApplyZones(context.Background(), "rules", 7)
	if err != nil || r.GetRevision() != 8 || f.applied.GetDryRun() || f.applied.GetRevision() != 7 {
		t.Errorf("apply: %v, %v, %v", r, f.applied, err)
	}
	f.fail = status.Error(codes.FailedPrecondition, "the rules have revision 9")
	if _, err := c.ApplyZones(context.Background(), "rules", 7); !errors.Is(err, admin.ErrConflict) {
		t.Errorf("stale revision: %v", err)
	}
}

func TestWhyNamesItsSubject(t *testing.T) {
	f := &driverFake{}
	c := open(t, start(t, f))
	for _, k := range []struct {
		ask func(context.Context, uint64, uint32) (*sharddv1.WhyResponse, error)
		is  func() uint64
	}{
		{c.WhyShard, func() uint64 { return f.asked.GetShardId() }},
		{c.WhyNode, func() uint64 { return f.asked.GetNodeId() }},
		{c.WhyOperator, func() uint64 { return f.asked.GetOperatorId() }},
	} {
		if _, err := k.ask(context.Background(), 12, 5); err != nil || k.is() != 12 || f.asked.GetLimit() != 5 {
			t.Errorf("asked %v, %v", f.asked, err)
		}
	}
}

func TestARecoveryCarriesTheTokenOfItsPlan(t *testing.T) {
	f := &driverFake{}
	c := open(t, start(t, f))
	plan, err := c.PlanRecovery(context.Background(), []uint64{2, 3})
	if err != nil || f.recovery.GetAction() != "plan" {
		t.Fatalf("plan: %v, %v", f.recovery, err)
	}
	if _, err := c.StartRecovery(context.Background(), []uint64{2, 3}, plan.GetPlanToken()); err != nil ||
		f.recovery.GetAction() != "start" || f.recovery.GetPlanToken() != "t" || len(f.recovery.GetFailedNodes()) != 2 {
		t.Errorf("start: %v, %v", f.recovery, err)
	}
}
