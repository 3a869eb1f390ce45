package admin

import (
	"context"
	"fmt"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Measures of load, as Top, HotMap and a split by load take them. Top knows ByCPU and BySize as well, HotMap ByCPU.
const (
	ByRequests = "requests"
	ByBytes    = "bytes"
	ByCPU      = "cpu"
	BySize     = "size"
	ByLoad     = "load" // of a split only
)

// Top returns the nodes and the busiest shards as last reported, at most so many (0: 20), the busiest first by the
// measure given (empty: requests).
func (c *Client) Top(ctx context.Context, shards uint32, by string) (*sharddv1.TopResponse, error) {
	return ask(ctx, c, "top", quick, sharddv1.AdminServiceClient.Top, &sharddv1.TopRequest{Shards: shards, By: by})
}

// HotKeys returns the busiest keys of a shard as sampled at its leader, at most limit (0: 20).
func (c *Client) HotKeys(ctx context.Context, shard uint64, limit uint32) (*sharddv1.HotKeysResponse, error) {
	return ask(ctx, c, fmt.Sprintf("hot keys of s%d", shard), quick, sharddv1.AdminServiceClient.HotKeys,
		&sharddv1.HotKeysRequest{ShardId: shard, Limit: limit})
}

// HotMap returns the load of the key space over time.
func (c *Client) HotMap(ctx context.Context, req *sharddv1.HotMapRequest) (*sharddv1.HotMapResponse, error) {
	return ask(ctx, c, "hot map", quick, sharddv1.AdminServiceClient.HotMap, req)
}

// ShardLog returns at most limit events (0: 100) of the life of a shard, oldest first.
func (c *Client) ShardLog(ctx context.Context, shard uint64, limit uint32) ([]*sharddv1.ShardEvent, error) {
	resp, err := ask(ctx, c, fmt.Sprintf("log of s%d", shard), quick, sharddv1.AdminServiceClient.ShardLog,
		&sharddv1.ShardLogRequest{ShardId: shard, Limit: limit})
	return resp.GetEvents(), err
}
