package admin

import (
	"context"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Liveness returns what the node that answers first and the others promise each other; see At.
func (c *Client) Liveness(ctx context.Context) (*sharddv1.LivenessResponse, error) {
	return call(ctx, c, "ask for liveness", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.LivenessResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).Liveness(ctx, &sharddv1.LivenessRequest{})
		})
}
