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

// jobFake begins jobs and answers NodeStatus as fake does.
type jobFake struct {
	fake
	startErr error
	started  int
}

func (f *jobFake) StartJob(_ context.Context, r *sharddv1.StartJobRequest) (*sharddv1.StartJobResponse, error) {
	f.started++
	return &sharddv1.StartJobResponse{Job: &sharddv1.Job{JobId: 3, Spec: r.GetSpec()}}, f.startErr
}

func TestAJobIsGivenToOneNodeOnly(t *testing.T) {
	lost, second := &jobFake{startErr: status.Error(codes.Unavailable, "connection reset")}, &jobFake{}
	spec := &sharddv1.JobSpec{Kind: admin.KindMove, ShardId: 12, FromNode: 1, ToNode: 2}
	c := open(t, deadAddr(t), start(t, lost), start(t, second))
	_, err := c.StartJob(context.Background(), spec, false)
	if !errors.Is(err, admin.ErrUnreachable) || !strings.Contains(err.Error(), "may have been started all the same") {
		t.Errorf("lost answer: %v", err)
	}
	if lost.started != 1 || second.started != 0 {
		t.Errorf("given to the first node that answers %d times, to the second %d times", lost.started, second.started)
	}
	// A plan may be asked for anywhere.
	if j, err := c.StartJob(context.Background(), spec, true); err != nil || j.GetJobId() != 3 || second.started != 1 {
		t.Errorf("plan: %v, %v", j, err)
	}
	refuses := &jobFake{startErr: status.Error(codes.FailedPrecondition, "j1 moves s12")}
	_, err = open(t, start(t, refuses)).StartJob(context.Background(), spec, false)
	if !errors.Is(err, admin.ErrConflict) || strings.Contains(err.Error(), "may have been") {
		t.Errorf("refused: %v", err)
	}
	_, err = open(t, deadAddr(t)).StartJob(context.Background(), spec, false)
	if err == nil || strings.Contains(err.Error(), "may have") {
		t.Errorf("nobody asked: %v", err)
	}
}
