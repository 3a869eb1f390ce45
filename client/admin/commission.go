package admin

import (
	"context"
	"fmt"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Decommission has all replicas leave a node for good: it begins a job that goes on whoever watches. With dryRun it only
// says what that takes and what is in its way. Like StartJob it is given to one node only.
func (c *Client) Decommission(ctx context.Context, node uint64, dryRun bool) (*sharddv1.DecommissionNodeResponse, error) {
	name := fmt.Sprintf("decommission n%d", node)
	req := &sharddv1.DecommissionNodeRequest{NodeId: node, DryRun: dryRun}
	if dryRun {
		return ask(ctx, c, name, quick, sharddv1.AdminServiceClient.DecommissionNode, req)
	}
	return askOnce(ctx, c, name, sharddv1.AdminServiceClient.DecommissionNode, req)
}

// Recommission takes a decommission back and cancels its job; replicas that have left do not return by it.
func (c *Client) Recommission(ctx context.Context, node uint64) error {
	_, err := ask(ctx, c, fmt.Sprintf("recommission n%d", node), quick, sharddv1.AdminServiceClient.RecommissionNode,
		&sharddv1.RecommissionNodeRequest{NodeId: node})
	return err
}

// RemoveNode strikes a node from the cluster: one that is decommissioned, or with dead one that is gone for good, whose
// replicas are replaced at once. It returns how many shards still list the node and are repaired now.
func (c *Client) RemoveNode(ctx context.Context, node uint64, dead bool) (shards uint32, err error) {
	resp, err := ask(ctx, c, fmt.Sprintf("remove n%d", node), quick, sharddv1.AdminServiceClient.RemoveNode,
		&sharddv1.RemoveNodeRequest{NodeId: node, Dead: dead})
	return resp.GetShards(), err
}
