package admin

import (
	"context"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Latency returns how long the stages of sampled requests took at the node that answers first, since it was started; see
// At. The difference of two answers is what happened in between, if the incarnation is the same.
func (c *Client) Latency(ctx context.Context) (*sharddv1.LatencyResponse, error) {
	return call(ctx, c, "ask for latencies", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.LatencyResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).Latency(ctx, &sharddv1.LatencyRequest{})
		})
}
