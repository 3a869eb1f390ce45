package admin

import (
	"context"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// ListSnapshots returns the snapshot streams of the node that answers first, as sender and as receiver; see At.
func (c *Client) ListSnapshots(ctx context.Context) ([]*sharddv1.SnapshotProgress, error) {
	resp, err := call(ctx, c, "list snapshots", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.ListSnapshotsResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).ListSnapshots(ctx, &sharddv1.ListSnapshotsRequest{})
		})
	return resp.GetSnapshots(), err
}

// SetSnapshotLimits changes how many bytes per second the node that answers first sends and receives, until it
// restarts; 0 leaves a limit as it is. It returns the limits that hold now; see At.
func (c *Client) SetSnapshotLimits(ctx context.Context, send, receive uint64) (nowSend, nowReceive uint64, err error) {
	req := &sharddv1.SetSnapshotLimitsRequest{SendBytesPerSecond: send, ReceiveBytesPerSecond: receive}
	resp, err := call(ctx, c, "set snapshot limits", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.SetSnapshotLimitsResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).SetSnapshotLimits(ctx, req)
		})
	return resp.GetSendBytesPerSecond(), resp.GetReceiveBytesPerSecond(), err
}
