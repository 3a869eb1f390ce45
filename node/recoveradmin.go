package node

import (
	"context"
	"crypto/subtle"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/recovery"
)

// RecoverQuorum implements AdminService. Any node that is left can be asked: the meta shard may be among what is lost.
func (s *adminService) RecoverQuorum(ctx context.Context, req *pb.RecoverQuorumRequest) (
	*pb.RecoverQuorumResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	failed, err := failedNodes(req.FailedNodes)
	if err != nil {
		return nil, err
	}
	r := m.recoverer
	switch req.Action {
	case "plan":
		return r.planned(ctx, failed)
	case "start":
		return r.start(ctx, failed, req)
	case "status", "":
		return r.status(ctx, req)
	case "cancel":
		return r.cancelled(ctx, req)
	}
	return nil, status.Errorf(codes.InvalidArgument, "recover quorum: unknown action %q", req.Action)
}

func failedNodes(ids []uint64) ([]base.StoreID, error) {
	var out []base.StoreID
	for _, id := range ids {
		if id == 0 {
			return nil, status.Error(codes.InvalidArgument, "recover quorum: node 0")
		}
		out = append(out, base.StoreID(id))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// prepare plans a recovery from what all nodes say now.
func (r *recoverer) prepare(ctx context.Context, failed []base.StoreID) (*gathered, *pb.RecoverQuorumResponse, error) {
	if len(failed) == 0 {
		return nil, nil, status.Error(codes.InvalidArgument, "recover quorum: no failed nodes are named")
	}
	g := r.m.gather(ctx, failed, nil, 0)
	plan := recovery.Make(g.in)
	resp := &pb.RecoverQuorumResponse{Problems: g.problems, FailedNodes: numbers(failed)}
	if len(g.problems) == 0 { // else it is not known what is lost
		resp.Problems = plan.Problems
	}
	for i := range plan.Shards {
		resp.Shards = append(resp.Shards, planShard(&plan.Shards[i]))
	}
	if len(resp.Problems) == 0 && len(plan.Shards) > 0 {
		token := plan.Token(g.in)
		resp.PlanToken = fmt.Sprintf("%x", token)
	}
	return g, resp, nil
}

func (r *recoverer) planned(ctx context.Context, failed []base.StoreID) (*pb.RecoverQuorumResponse, error) {
	_, resp, err := r.prepare(ctx, failed)
	return resp, err
}

// start begins a recovery that was confirmed, or goes on with one.
func (r *recoverer) start(ctx context.Context, failed []base.StoreID, req *pb.RecoverQuorumRequest) (
	*pb.RecoverQuorumResponse, error) {
	m := r.m
	id, _ := m.n.eng.Ident()
	if old := id.Recovery; old != nil && !old.Stage.Ended() {
		switch {
		case slices.Equal(old.Failed, failed):
			if !sameToken(req.PlanToken, old.Token) {
				return nil, status.Error(codes.FailedPrecondition,
					"a recovery from the loss of the same nodes is under way, from another plan")
			}
			return r.goOn(ctx, old, req)
		case !includes(failed, old.Failed):
			return nil, status.Errorf(codes.FailedPrecondition, "a %s is under way: name those nodes as well", recoveryText(old.Failed))
		}
	}
	g, plan, err := r.prepare(ctx, failed)
	if err != nil {
		return nil, err
	}
	switch {
	case len(plan.Problems) > 0:
		return nil, status.Errorf(codes.FailedPrecondition, "not as things are: %s", plan.Problems[0])
	case len(plan.Shards) == 0:
		return nil, status.Error(codes.FailedPrecondition,
			"no shard has lost its quorum: `shardctl nodes remove --dead` replaces the replicas of a lost node")
	case subtle.ConstantTimeCompare([]byte(plan.PlanToken), []byte(req.PlanToken)) != 1:
		return nil, status.Error(codes.FailedPrecondition, "the cluster has changed since the plan was made: plan again")
	}
	rec := &engine.Recovery{
		Coordinator: m.self, Stage: engine.RecoveryFence, Token: recovery.Make(g.in).Token(g.in), Failed: failed,
		Survivors: g.in.Survivors,
	}
	var highest uint64
	for _, inv := range g.nodes {
		highest = max(highest, inv.RecoveryId)
	}
	rec.ID = nextRecovery(highest, m.self)
	return r.started(rec, plan.Shards)
}

// started puts a recovery on record here, which is what makes it happen.
func (r *recoverer) started(rec *engine.Recovery, shards []*pb.RecoverShard) (*pb.RecoverQuorumResponse, error) {
	add := make([]engine.Fence, len(rec.Failed))
	for i, s := range rec.Failed {
		add[i] = engine.Fence{Store: s, Recovery: rec.ID}
	}
	if err := r.m.takeFences(engine.FenceChange{Add: add, Recovery: rec}); err != nil {
		return nil, err
	}
	r.m.log.Warn("recovery of lost quorums begins", "recovery", rec.ID, "failed", rec.Failed, "survivors", rec.Survivors)
	r.begin(rec, shards)
	return r.local(), nil
}

// goOn has the coordinator of a recovery go on with it, or this node if that one does not answer.
func (r *recoverer) goOn(ctx context.Context, old *engine.Recovery, req *pb.RecoverQuorumRequest) (
	*pb.RecoverQuorumResponse, error) {
	if old.Coordinator == r.m.self {
		return r.local(), nil
	}
	if resp, err := r.forward(ctx, old.Coordinator, req); err == nil {
		return resp, nil
	}
	next := *old
	next.ID, next.Coordinator = nextRecovery(old.ID, r.m.self), r.m.self
	return r.started(&next, nil)
}

func (r *recoverer) forward(ctx context.Context, to base.StoreID, req *pb.RecoverQuorumRequest) (
	*pb.RecoverQuorumResponse, error) {
	if isHop(ctx) {
		return nil, status.Errorf(codes.Unavailable, "the coordinator is %s", to)
	}
	addr, ok := r.m.book.Addr(to)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "address of %s is unknown", to)
	}
	cc, err := r.m.n.conns.to(addr)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	ctx, cancel := context.WithTimeout(withHop(ctx), callTimeout)
	defer cancel()
	return pb.NewAdminServiceClient(cc).RecoverQuorum(ctx, req)
}

// status says how far the last recovery is, in the words of its coordinator.
func (r *recoverer) status(ctx context.Context, req *pb.RecoverQuorumRequest) (*pb.RecoverQuorumResponse, error) {
	id, _ := r.m.n.eng.Ident()
	rec := id.Recovery
	if rec != nil && rec.Coordinator != r.m.self {
		if resp, err := r.forward(ctx, rec.Coordinator, req); err == nil {
			return resp, nil
		}
	}
	resp := r.local()
	if rec != nil && rec.Coordinator != r.m.self && !rec.Stage.Ended() {
		resp.Problems = append(resp.Problems, fmt.Sprintf(
			"%s, which carries it out, does not answer: started again, another node goes on with it", rec.Coordinator))
	}
	return resp, nil
}

// local is what this node knows of the recovery on its record.
func (r *recoverer) local() *pb.RecoverQuorumResponse {
	id, _ := r.m.n.eng.Ident()
	rec := id.Recovery
	if rec == nil || rec.Stage == engine.RecoveryCancelled || rec.Stage == engine.RecoveryStopped {
		return &pb.RecoverQuorumResponse{}
	}
	resp := &pb.RecoverQuorumResponse{
		PlanToken: fmt.Sprintf("%x", rec.Token), Stage: rec.Stage.String(), FailedNodes: numbers(rec.Failed),
	}
	if rec.Coordinator == r.m.self {
		r.mu.Lock()
		defer r.mu.Unlock()
		resp.Shards, resp.Problems = slices.Clone(r.mu.shards), slices.Clone(r.mu.problems)
	}
	return resp
}

// cancelled ends a recovery: before any replica was touched without a trace, later between two steps; the failed nodes then
// stay fenced, since what was made new must never meet them.
func (r *recoverer) cancelled(ctx context.Context, req *pb.RecoverQuorumRequest) (*pb.RecoverQuorumResponse, error) {
	id, _ := r.m.n.eng.Ident()
	rec := id.Recovery
	switch {
	case rec == nil || rec.Stage.Ended():
		return nil, status.Error(codes.FailedPrecondition, "no recovery is under way")
	case rec.Coordinator != r.m.self:
		return r.forward(ctx, rec.Coordinator, req)
	}
	r.mu.Lock()
	if r.mu.rec != nil {
		rec = r.mu.rec
	}
	r.mu.cancel = true
	resp := &pb.RecoverQuorumResponse{
		PlanToken: fmt.Sprintf("%x", rec.Token), Stage: rec.Stage.String(), FailedNodes: numbers(rec.Failed),
		Shards: slices.Clone(r.mu.shards),
	}
	r.mu.Unlock()
	for ctx.Err() == nil {
		if now, _ := r.m.n.eng.Ident(); now.Recovery.Stage.Ended() && r.current() == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			resp.Stage, resp.Shards = now.Recovery.Stage.String(), slices.Clone(r.mu.shards)
			return resp, nil
		}
		pause(ctx, initPoll)
	}
	return nil, status.Error(codes.Unavailable, "the recovery is being called off; not all nodes have answered yet")
}

func sameToken(text string, token [32]byte) bool { return text == fmt.Sprintf("%x", token) }

// includes reports whether all has every one of some; both ascend.
func includes(all, some []base.StoreID) bool {
	for _, s := range some {
		if _, ok := slices.BinarySearch(all, s); !ok {
			return false
		}
	}
	return true
}
