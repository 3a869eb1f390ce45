package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/router"
	"github.com/shardd/shardd/transport"
)

// nodes is the dialer: the address book and one connection per address. It is the router's Directory, answered by
// whichever node can, and opens the Mux's streams.
type nodes struct {
	seeds  []string
	dial   []grpc.DialOption
	labels map[string]string                    // the client's own
	near   atomic.Pointer[map[base.StoreID]int] // how many labels nodes share with the client; never changed
	mu     struct {
		sync.Mutex
		closed bool
		conns  map[string]*grpc.ClientConn
		addrs  map[base.StoreID]string
		last   string // the address that answered the previous look-up
	}
}

// lookupTry bounds one node's time to answer a look-up while others are left to ask.
const lookupTry = time.Second

func newNodes(seeds []string, dial []grpc.DialOption, labels map[string]string) (*nodes, error) {
	n := &nodes{
		seeds: slices.Clone(seeds), dial: append(transport.DialOptions(), dial...), labels: maps.Clone(labels),
	}
	n.mu.conns = make(map[string]*grpc.ClientConn)
	n.mu.addrs = make(map[base.StoreID]string)
	for _, s := range seeds {
		if _, err := n.conn(s); err != nil {
			_ = n.close() // the bad address is the error to report
			return nil, err
		}
	}
	return n, nil
}

// conn returns the connection to an address, made on first use. gRPC connects when it is needed.
func (n *nodes) conn(addr string) (*grpc.ClientConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.closed {
		return nil, ErrClosed
	}
	if cc := n.mu.conns[addr]; cc != nil {
		return cc, nil
	}
	cc, err := grpc.NewClient(addr, n.dial...)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w: %w", addr, err, ErrInvalid)
	}
	n.mu.conns[addr] = cc
	return cc, nil
}

// redial replaces a connection that gRPC found broken. It would fail every call with what it knows until it has tried again,
// in its own time; the Mux has its own pace, and wants to know what is true now.
func (n *nodes) redial(addr string, old *grpc.ClientConn) (*grpc.ClientConn, error) {
	n.mu.Lock()
	if n.mu.conns[addr] == old {
		delete(n.mu.conns, addr)
	}
	n.mu.Unlock()
	_ = old.Close() // at most a look-up is under way on it, which asks the next node then
	return n.conn(addr)
}

// open is the Mux's router.OpenFunc.
func (n *nodes) open(ctx context.Context, to base.StoreID) (router.FrameStream, error) {
	n.mu.Lock()
	addr, ok := n.mu.addrs[to]
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("no address known for %s", to)
	}
	cc, err := n.conn(addr)
	if err != nil {
		return nil, err
	}
	// Shutdown: another link to the same address has replaced it since.
	if st := cc.GetState(); st == connectivity.TransientFailure || st == connectivity.Shutdown {
		if cc, err = n.redial(addr, cc); err != nil {
			return nil, err
		}
	}
	s, err := transport.OpenBatch(ctx, cc, transport.ClassClient)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Lookup implements router.Directory: it asks the node that answered last, then the others.
func (n *nodes) Lookup(ctx context.Context, key []byte, reverse bool) ([]router.Route, error) {
	var errs []error
	for _, addr := range n.candidates() {
		routes, err := n.ask(ctx, addr, key, reverse)
		if err == nil {
			return routes, nil
		}
		if errors.Is(err, ErrClosed) {
			return nil, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// candidates returns the addresses to ask, each once, the most promising first.
func (n *nodes) candidates() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	add := func(a string) {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	add(n.mu.last)
	for _, a := range n.seeds {
		add(a)
	}
	for _, a := range n.mu.addrs {
		add(a)
	}
	return out
}

func (n *nodes) ask(ctx context.Context, addr string, key []byte, reverse bool) ([]router.Route, error) {
	cc, err := n.conn(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTry)
	defer cancel()
	resp, err := sharddv1.NewRouteServiceClient(cc).Lookup(ctx, &sharddv1.LookupRequest{Key: key, Reverse: reverse})
	if err != nil {
		return nil, err
	}
	routes := make([]router.Route, 0, len(resp.GetRoutes()))
	for _, rt := range resp.GetRoutes() {
		d, _, err := base.DecodeDescriptor(rt.GetDescriptor_())
		if err != nil {
			return nil, err
		}
		routes = append(routes, router.Route{Desc: d, Leader: base.StoreID(rt.GetLeader())})
	}
	if len(routes) == 0 {
		return nil, fmt.Errorf("the node knows no shard for %q", shorten(key))
	}
	n.learn(addr, resp.GetAddresses())
	n.learnLabels(resp.GetLabels())
	return routes, nil
}

// learn takes the address book of an answer. The connection to an address that no node has any more is closed.
func (n *nodes) learn(from string, addrs map[uint64]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.last = from
	var left []string
	for id, a := range addrs {
		if old, ok := n.mu.addrs[base.StoreID(id)]; ok && old != a {
			left = append(left, old)
		}
		n.mu.addrs[base.StoreID(id)] = a
	}
	for _, a := range left {
		used := slices.Contains(n.seeds, a) || a == from
		for _, b := range n.mu.addrs {
			used = used || a == b
		}
		if cc := n.mu.conns[a]; cc != nil && !used {
			delete(n.mu.conns, a)
			_ = cc.Close() // fails only if closed already
		}
	}
}

// learnLabels counts which labels nodes share with the client. What an answer does not tell stays.
func (n *nodes) learnLabels(labels map[uint64]*sharddv1.NodeLabels) {
	if len(n.labels) == 0 || len(labels) == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	near := make(map[base.StoreID]int, len(labels))
	if old := n.near.Load(); old != nil {
		maps.Copy(near, *old)
	}
	for id, l := range labels {
		same := 0
		for k, v := range l.GetLabels() {
			if own, ok := n.labels[k]; ok && own == v {
				same++
			}
		}
		near[base.StoreID(id)] = same
	}
	n.near.Store(&near)
}

// nearness is the router's Config.Near.
func (n *nodes) nearness(id base.StoreID) int {
	if near := n.near.Load(); near != nil {
		return (*near)[id]
	}
	return 0
}

func (n *nodes) close() error {
	n.mu.Lock()
	conns := n.mu.conns
	n.mu.conns, n.mu.closed = nil, true
	n.mu.Unlock()
	var errs []error
	for _, cc := range conns {
		errs = append(errs, cc.Close())
	}
	return errors.Join(errs...)
}
