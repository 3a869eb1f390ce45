package admin

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// answering returns a view of the first endpoint that answers, for a call that must not be made twice.
func (c *Client) answering(ctx context.Context) (*Client, error) {
	at, err := call(ctx, c, "node status", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (string, error) {
			_, err := sharddv1.NewAdminServiceClient(cc).NodeStatus(ctx, &sharddv1.NodeStatusRequest{})
			return cc.(*grpc.ClientConn).Target(), err // conns.get gives no other kind
		})
	if err != nil {
		return nil, err
	}
	return c.At(at), nil
}

// maybeStarted says of a call without an answer that it may have had its effect.
func maybeStarted(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		e.Remedy = "the job may have been started all the same, the list of jobs tells"
	}
	return err
}
