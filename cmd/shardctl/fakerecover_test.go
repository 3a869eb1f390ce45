package main

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// fakeRecovery is the recovery of a fakeCluster, guarded by its mutex: every question moves it a step on.
type fakeRecovery struct {
	now   *sharddv1.RecoverQuorumResponse
	asked int
}

// RecoverQuorum of n2 and n3 recovers two shards; with n4 among the failed one of them fails, with n5 it never ends.
// Without n3 no shard has lost its quorum; n1 is alive.
func (f *fakeCluster) RecoverQuorum(
	_ context.Context, r *sharddv1.RecoverQuorumRequest) (*sharddv1.RecoverQuorumResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rec := &f.driver.recovery
	if rec.now == nil {
		rec.now = &sharddv1.RecoverQuorumResponse{}
	}
	failed := r.GetFailedNodes()
	switch r.GetAction() {
	case "plan":
		resp := &sharddv1.RecoverQuorumResponse{FailedNodes: failed}
		if slices.Contains(failed, 1) {
			resp.Problems = []string{"n1 is alive, it answered 2s ago: stop it first if its data is to be given up"}
		}
		if slices.Contains(failed, 3) {
			resp.PlanToken, resp.Shards = "token", fakeLostShards()
		}
		return resp, nil
	case "start":
		if r.GetPlanToken() != "token" {
			return nil, status.Error(codes.FailedPrecondition, "the cluster has changed since the plan")
		}
		if rec.now.GetStage() == "" || rec.now.GetStage() == admin.RecoverDone {
			*rec = fakeRecovery{now: &sharddv1.RecoverQuorumResponse{PlanToken: "token", Stage: admin.RecoverFence,
				FailedNodes: failed, Shards: fakeLostShards()}}
		}
	case "cancel":
		if rec.now.GetStage() == "" {
			return nil, status.Error(codes.FailedPrecondition, "no recovery is under way")
		}
		resp := proto.CloneOf(rec.now)
		resp.Stage, rec.now.Stage = "stopped", ""
		return resp, nil
	default:
		if !recovering(rec.now) || slices.Contains(rec.now.GetFailedNodes(), 5) {
			break
		}
		if rec.asked++; rec.asked%3 == 0 {
			return nil, status.Error(codes.Unavailable, "the connection broke")
		}
		rec.step()
	}
	return proto.CloneOf(rec.now), nil
}

func fakeLostShards() []*sharddv1.RecoverShard {
	return []*sharddv1.RecoverShard{
		{ShardId: 2, Start: []byte{2}, End: []byte("\x02m"), Survivor: 1, Applied: 812, Commit: 812, LastIndex: 815,
			Loss: "writes after index 815, which only n2 and n3 had", State: "waiting"},
		{ShardId: 3, Start: []byte("\x02m"), End: []byte{3}, Loss: "all of it: no replica is left", State: "waiting",
			Dropped: []uint64{4}}}
}

func (rec *fakeRecovery) step() {
	n := rec.now
	switch {
	case n.GetStage() == admin.RecoverFence:
		n.Stage = admin.RecoverMeta
	case n.GetStage() == admin.RecoverMeta:
		n.Stage = admin.RecoverShards
		n.Shards[0].State = "done"
	case n.GetStage() == admin.RecoverShards:
		n.Stage = admin.RecoverDone
		n.Shards[1].State = "done"
		if slices.Contains(n.GetFailedNodes(), 4) {
			n.Shards[1].State, n.Shards[1].Error = "failed", "n1 has no room"
		}
	}
}
