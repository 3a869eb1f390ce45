package admin

import (
	"context"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Stages of a recovery of quorums, in this order; no stage: none was started.
const (
	RecoverFence  = "fence"  // the failed nodes are marked, so that they can never come back
	RecoverMeta   = "meta"   // the meta shard, if it had lost its quorum as well
	RecoverShards = "shards" // all other shards
	RecoverDone   = "done"
)

// PlanRecovery says what the recovery of all shards that have lost their quorum with these nodes would do, and what
// may be lost. It changes nothing.
func (c *Client) PlanRecovery(ctx context.Context, failed []uint64) (*sharddv1.RecoverQuorumResponse, error) {
	return c.recover(ctx, "plan recovery", slow, &sharddv1.RecoverQuorumRequest{Action: "plan", FailedNodes: failed})
}

// StartRecovery begins the recovery that was planned; the token is that of the plan. It fails with ErrConflict if the
// cluster has changed since, so that the plan is no longer true. Repeating it with the same token goes on with the same
// recovery.
func (c *Client) StartRecovery(ctx context.Context, failed []uint64, token string) (*sharddv1.RecoverQuorumResponse,
	error) {
	return c.recover(ctx, "start recovery", slow,
		&sharddv1.RecoverQuorumRequest{Action: "start", FailedNodes: failed, PlanToken: token})
}

// RecoveryStatus says how far the recovery has come.
func (c *Client) RecoveryStatus(ctx context.Context) (*sharddv1.RecoverQuorumResponse, error) {
	return c.recover(ctx, "recovery status", quick, &sharddv1.RecoverQuorumRequest{Action: "status"})
}

// CancelRecovery stops a recovery; shards that have been recovered stay so.
func (c *Client) CancelRecovery(ctx context.Context) (*sharddv1.RecoverQuorumResponse, error) {
	return c.recover(ctx, "cancel recovery", slow, &sharddv1.RecoverQuorumRequest{Action: "cancel"})
}

func (c *Client) recover(ctx context.Context, name string, p pace,
	req *sharddv1.RecoverQuorumRequest) (*sharddv1.RecoverQuorumResponse, error) {
	return ask(ctx, c, name, p, sharddv1.AdminServiceClient.RecoverQuorum, req)
}
