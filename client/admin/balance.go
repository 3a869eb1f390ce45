package admin

import (
	"context"
	"fmt"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// FirstTransfer is the least id of an operator that transfers a leadership. Those live in the memory of the driver; an
// operator of a smaller id is a job (GetJob).
const FirstTransfer = 1 << 40

// Parts of the placement driver, as SetBalance takes them.
const (
	PartAll      = "all"
	PartSplit    = "split"
	PartMerge    = "merge"
	PartReplicas = "replicas"
	PartLeaders  = "leaders"
	PartHot      = "hot"
	PartRepair   = "repair"
)

// Parts are all parts of the placement driver, "all" first.
func Parts() []string {
	return []string{PartAll, PartSplit, PartMerge, PartReplicas, PartLeaders, PartHot, PartRepair}
}

// WhyShard returns what the placement driver would decide about a shard now and at most limit of its past decisions
// (0: 20), newest first.
func (c *Client) WhyShard(ctx context.Context, shard uint64, limit uint32) (*sharddv1.WhyResponse, error) {
	return c.why(ctx, fmt.Sprintf("why s%d", shard),
		&sharddv1.WhyRequest{Subject: &sharddv1.WhyRequest_ShardId{ShardId: shard}, Limit: limit})
}

// WhyNode is WhyShard for a node.
func (c *Client) WhyNode(ctx context.Context, node uint64, limit uint32) (*sharddv1.WhyResponse, error) {
	return c.why(ctx, fmt.Sprintf("why n%d", node),
		&sharddv1.WhyRequest{Subject: &sharddv1.WhyRequest_NodeId{NodeId: node}, Limit: limit})
}

// WhyOperator is WhyShard for an operator of the driver or a job.
func (c *Client) WhyOperator(ctx context.Context, operator uint64, limit uint32) (*sharddv1.WhyResponse, error) {
	return c.why(ctx, fmt.Sprintf("why j%d", operator),
		&sharddv1.WhyRequest{Subject: &sharddv1.WhyRequest_OperatorId{OperatorId: operator}, Limit: limit})
}

func (c *Client) why(ctx context.Context, name string, req *sharddv1.WhyRequest) (*sharddv1.WhyResponse, error) {
	return ask(ctx, c, name, quick, sharddv1.AdminServiceClient.Why, req)
}

// BalanceStatus says what the placement driver does and what it waits for.
func (c *Client) BalanceStatus(ctx context.Context) (*sharddv1.BalanceStatusResponse, error) {
	return ask(ctx, c, "balance status", quick, sharddv1.AdminServiceClient.BalanceStatus,
		&sharddv1.BalanceStatusRequest{})
}

// SetBalance pauses and resumes parts of the placement driver (see Parts) and sets those limits that are not 0. It
// returns what holds now; a request that changes nothing only asks.
func (c *Client) SetBalance(ctx context.Context, req *sharddv1.SetBalanceRequest) (*sharddv1.SetBalanceResponse, error) {
	return ask(ctx, c, "set balance", quick, sharddv1.AdminServiceClient.SetBalance, req)
}

// Simulate runs the planner on a copy of the live cluster with a change and returns what it would do. It may take as
// long as the context allows, a minute if that has no deadline.
func (c *Client) Simulate(ctx context.Context, req *sharddv1.SimulateRequest) (*sharddv1.SimulateResponse, error) {
	return ask(ctx, c, "simulate", slow, sharddv1.AdminServiceClient.Simulate, req)
}
