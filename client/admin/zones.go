package admin

import (
	"context"
	"fmt"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// GetZones returns the placement rules as YAML, and their revision.
func (c *Client) GetZones(ctx context.Context) (*sharddv1.GetZonesResponse, error) {
	return ask(ctx, c, "get zones", quick, sharddv1.AdminServiceClient.GetZones, &sharddv1.GetZonesRequest{})
}

// CheckZones says what new placement rules would change and what the nodes cannot satisfy, and changes nothing. It
// fails with ErrInvalid on rules that are none, with ErrConflict if the present rules do not have this revision (0:
// whichever).
func (c *Client) CheckZones(ctx context.Context, yaml string, revision uint64) (*sharddv1.ApplyZonesResponse, error) {
	return ask(ctx, c, "check zones", quick, sharddv1.AdminServiceClient.ApplyZones,
		&sharddv1.ApplyZonesRequest{Yaml: yaml, DryRun: true, Revision: revision})
}

// ApplyZones makes new placement rules the rules. It fails as CheckZones does. A repeated call with a revision finds
// that the first one has raised it, so an answer that was lost shows as ErrConflict, never as a second change.
func (c *Client) ApplyZones(ctx context.Context, yaml string, revision uint64) (*sharddv1.ApplyZonesResponse, error) {
	return ask(ctx, c, "apply zones", quick, sharddv1.AdminServiceClient.ApplyZones,
		&sharddv1.ApplyZonesRequest{Yaml: yaml, Revision: revision})
}

// ExplainZones says why the replicas of a shard are where they are.
func (c *Client) ExplainZones(ctx context.Context, shard uint64) (*sharddv1.ExplainZonesResponse, error) {
	return ask(ctx, c, fmt.Sprintf("explain zones of s%d", shard), quick, sharddv1.AdminServiceClient.ExplainZones,
		&sharddv1.ExplainZonesRequest{ShardId: shard})
}
