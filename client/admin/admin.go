// Package admin is a thin typed wrapper over Shardd's AdminService: it asks the endpoints one after the other until one
// answers, and turns gRPC status codes into errors that say what to do.
//
// It never repeats a call at a node that has answered, and decides nothing: every rule lives in the node.
package admin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/transport"
)

// Client talks to the nodes of one cluster. It is safe for concurrent use.
type Client struct {
	endpoints []string
	conns     *conns
}

// conns are the connections of a Client and its views, by address.
type conns struct {
	dial []grpc.DialOption
	mu   struct {
		sync.Mutex
		closed bool
		byAddr map[string]*grpc.ClientConn
	}
}

// Open returns a Client over the nodes at endpoints (host:port). It does no I/O; dial options are added to the
// defaults. It fails with ErrInvalid on no endpoints or one that is not an address.
func Open(endpoints []string, opts ...grpc.DialOption) (*Client, error) {
	if len(endpoints) == 0 {
		return nil, &Error{
			Call: "open", Kind: ErrInvalid, Err: errors.New("no endpoints"), Remedy: "give at least one host:port",
		}
	}
	c := &Client{endpoints: slices.Clone(endpoints), conns: &conns{dial: append(transport.DialOptions(), opts...)}}
	c.conns.mu.byAddr = make(map[string]*grpc.ClientConn)
	for _, e := range endpoints {
		if _, err := c.conns.get(e); err != nil {
			_ = c.Close() // the bad endpoint is the error to report
			return nil, &Error{
				Call: "open", Endpoints: []string{e}, Kind: ErrInvalid, Err: err, Remedy: "give endpoints as host:port",
			}
		}
	}
	return c, nil
}

// Close ends all connections, of the views as well.
func (c *Client) Close() error {
	c.conns.mu.Lock()
	defer c.conns.mu.Unlock()
	c.conns.mu.closed = true
	var errs []error
	for _, cc := range c.conns.mu.byAddr {
		errs = append(errs, cc.Close())
	}
	c.conns.mu.byAddr = nil
	return errors.Join(errs...)
}

// Endpoints returns the addresses in the order given.
func (c *Client) Endpoints() []string { return slices.Clone(c.endpoints) }

// At returns a view of the Client that asks only this endpoint; it need not be one of those given to Open. Close the
// Client, not the view.
func (c *Client) At(endpoint string) *Client {
	return &Client{endpoints: []string{endpoint}, conns: c.conns}
}

func (c *conns) get(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, errors.New("the client is closed")
	}
	if cc := c.mu.byAddr[addr]; cc != nil {
		return cc, nil
	}
	cc, err := grpc.NewClient(addr, c.dial...)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", addr, err)
	}
	c.mu.byAddr[addr] = cc
	return cc, nil
}

// Init makes a cluster of the nodes at the given addresses, with the user key space divided at splits (user keys). It
// is idempotent: if the cluster exists the response says so.
func (c *Client) Init(ctx context.Context, nodes []string, splits [][]byte) (*sharddv1.InitResponse, error) {
	req := &sharddv1.InitRequest{Nodes: nodes, Splits: splits}
	return call(ctx, c, "init", slow,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.InitResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).Init(ctx, req)
		})
}

// NodeStatus describes the node that answers first; see At.
func (c *Client) NodeStatus(ctx context.Context) (*sharddv1.NodeStatusResponse, error) {
	return call(ctx, c, "node status", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.NodeStatusResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).NodeStatus(ctx, &sharddv1.NodeStatusRequest{})
		})
}

// ClusterStatus sums the cluster up as the meta shard's leader sees it.
func (c *Client) ClusterStatus(ctx context.Context) (*sharddv1.ClusterStatusResponse, error) {
	return call(ctx, c, "cluster status", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.ClusterStatusResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).ClusterStatus(ctx, &sharddv1.ClusterStatusRequest{})
		})
}

// ListNodes returns every registered node.
func (c *Client) ListNodes(ctx context.Context) ([]*sharddv1.NodeInfo, error) {
	resp, err := call(ctx, c, "list nodes", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.ListNodesResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).ListNodes(ctx, &sharddv1.ListNodesRequest{})
		})
	return resp.GetNodes(), err
}

// ListShards iterates over all shards in key order, the meta shard first, fetching pages as the caller goes along.
// After an error the iteration ends.
func (c *Client) ListShards(ctx context.Context) iter.Seq2[*sharddv1.ShardInfo, error] {
	return func(yield func(*sharddv1.ShardInfo, error) bool) {
		req := &sharddv1.ListShardsRequest{}
		for {
			resp, err := call(ctx, c, "list shards", quick,
				func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.ListShardsResponse, error) {
					return sharddv1.NewAdminServiceClient(cc).ListShards(ctx, req)
				})
			if err != nil {
				yield(nil, err)
				return
			}
			for _, s := range resp.GetShards() {
				if !yield(s, nil) {
					return
				}
			}
			// A page that does not move on would be asked for again for ever.
			if len(resp.GetNext()) == 0 || string(resp.GetNext()) == string(req.GetAfter()) {
				return
			}
			req = &sharddv1.ListShardsRequest{After: resp.GetNext()}
		}
	}
}

// DescribeShard asks every replica of a shard for its state.
func (c *Client) DescribeShard(ctx context.Context, shard uint64) (*sharddv1.DescribeShardResponse, error) {
	return call(ctx, c, fmt.Sprintf("describe shard s%d", shard), quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.DescribeShardResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).DescribeShard(ctx, &sharddv1.DescribeShardRequest{ShardId: shard})
		})
}

// TransferLeader moves the leadership of a shard to a node and waits until it has, or says why not.
func (c *Client) TransferLeader(ctx context.Context, shard, to uint64) (*sharddv1.TransferLeaderResponse, error) {
	req := &sharddv1.TransferLeaderRequest{ShardId: shard, ToNode: to}
	return call(ctx, c, fmt.Sprintf("transfer leader of s%d to n%d", shard, to), slow,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.TransferLeaderResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).TransferLeader(ctx, req)
		})
}

// Health returns the named checks of the node that answers first; see At.
func (c *Client) Health(ctx context.Context) (*sharddv1.HealthResponse, error) {
	return call(ctx, c, "health", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.HealthResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).Health(ctx, &sharddv1.HealthRequest{})
		})
}

// Locate returns the shards from the one that holds a user key upwards, at most limit (0: the node's default), and the
// addresses of all nodes.
func (c *Client) Locate(ctx context.Context, key []byte, limit uint32) (*sharddv1.LookupResponse, error) {
	req := &sharddv1.LookupRequest{Key: base.UserKey(key), Limit: limit}
	return call(ctx, c, "locate", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.LookupResponse, error) {
			return sharddv1.NewRouteServiceClient(cc).Lookup(ctx, req)
		})
}
