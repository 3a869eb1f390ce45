package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/router"
)

const (
	lookupLimit    = 16
	maxLookupLimit = 1024
	// forwardTimeout bounds one question to the meta leader before the node answers from what it knows.
	forwardTimeout = time.Second
)

type routeService struct {
	pb.UnimplementedRouteServiceServer
	n *Node
}

// Lookup implements RouteService.
func (s *routeService) Lookup(ctx context.Context, req *pb.LookupRequest) (*pb.LookupResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	if len(req.Key) == 0 || len(req.Key) > base.MaxKeySize+1 {
		return nil, status.Errorf(codes.InvalidArgument, "look up: routing key of %d bytes, want 1 to %d",
			len(req.Key), base.MaxKeySize+1)
	}
	limit := int(req.Limit)
	if limit == 0 {
		limit = lookupLimit
	}
	routes, err := m.lookup(ctx, req.Key, min(limit, maxLookupLimit), req.Reverse, isHop(ctx))
	if err != nil {
		return nil, directoryStatus(err)
	}
	m.refreshLabels(ctx)
	resp := &pb.LookupResponse{Addresses: map[uint64]string{uint64(m.self): m.n.addr}, Labels: m.labels.all()}
	for _, r := range routes {
		resp.Routes = append(resp.Routes, &pb.Route{Descriptor_: r.Desc.Append(nil), Leader: uint64(r.Leader)})
	}
	for id, addr := range m.book.all() {
		resp.Addresses[uint64(id)] = addr
	}
	return resp, nil
}

// directory is the router's Directory of a node. Where the meta shard is never is looked up in the index; see
// metadesc.go.
type directory struct{ m *member }

// Lookup implements router.Directory.
func (d directory) Lookup(ctx context.Context, key []byte, reverse bool) ([]router.Route, error) {
	return d.m.lookup(ctx, key, lookupLimit, reverse, false)
}

// lookup finds shards: from the index if this node leads the meta shard, else by asking its leader, who also knows from
// the reports who leads what, else from the index through the router, and if the meta shard does not answer from the
// replicas that this node has.
func (m *member) lookup(ctx context.Context, key []byte, limit int, reverse, hop bool) ([]router.Route, error) {
	if meta := m.metaDesc(); meta.Contains(key) && !reverse ||
		reverse && bytes.Compare(key, meta.Start) > 0 && bytes.Compare(key, meta.End) <= 0 {
		return []router.Route{{Desc: meta, Leader: m.metaLeader()}}, nil
	}
	if _, leads := m.leadsMeta(); !leads && !hop {
		if routes, err := m.forwardLookup(ctx, key, limit, reverse); err == nil && len(routes) > 0 {
			return routes, nil
		}
	}
	read, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	shards, err := m.dir.Lookup(read, key, limit, reverse)
	if err == nil {
		descs := make([]*base.Descriptor, len(shards))
		for i := range shards {
			descs[i] = shards[i].Desc
		}
		return m.hint(descs), nil
	}
	if local := m.localDescs(key, limit, reverse); len(local) > 0 {
		return m.hint(local), nil
	}
	return nil, err
}

// hint adds what is known here of the leaders.
func (m *member) hint(descs []*base.Descriptor) []router.Route {
	states := m.reports.view.Shards(descs)
	out := make([]router.Route, len(descs))
	for i, d := range descs {
		out[i] = router.Route{Desc: d, Leader: states[i].Leader}
		if lead, term, ok := m.store.Leader(d.Shard); ok && (out[i].Leader == 0 || term > states[i].Term) {
			out[i].Leader = lead
		}
	}
	return out
}

func (m *member) forwardLookup(ctx context.Context, key []byte, limit int, reverse bool) ([]router.Route, error) {
	lead := m.metaLeader()
	if lead == 0 || lead == m.self {
		return nil, errors.New("leader of the meta shard is unknown")
	}
	addr, ok := m.book.Addr(lead)
	if !ok {
		return nil, fmt.Errorf("address of %s is unknown", lead)
	}
	cc, err := m.n.conns.to(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(withHop(ctx), forwardTimeout)
	defer cancel()
	resp, err := pb.NewRouteServiceClient(cc).Lookup(ctx, &pb.LookupRequest{
		Key: key, Limit: uint32(limit), Reverse: reverse,
	})
	if err != nil {
		return nil, err
	}
	m.book.learn(withoutSelf(addresses(resp.Addresses), m.self))
	for id, l := range resp.Labels {
		m.labels.learn(base.StoreID(id), l.GetLabels())
	}
	out := make([]router.Route, 0, len(resp.Routes))
	for _, r := range resp.Routes {
		d, _, err := base.DecodeDescriptor(r.Descriptor_)
		if err != nil {
			return nil, fmt.Errorf("route from %s: %w", lead, err)
		}
		out = append(out, router.Route{Desc: d, Leader: base.StoreID(r.Leader)})
	}
	return out, nil
}

// localDescs returns the descriptors of local replicas that follow the key without a gap.
func (m *member) localDescs(key []byte, limit int, reverse bool) []*base.Descriptor {
	var all []*base.Descriptor
	for _, s := range m.store.Summaries() {
		if s.Desc != nil {
			all = append(all, s.Desc)
		}
	}
	slices.SortFunc(all, func(a, b *base.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	if reverse {
		slices.Reverse(all)
	}
	var out []*base.Descriptor
	for _, d := range all {
		var follows bool
		switch {
		case len(out) == 0 && !reverse:
			follows = d.Contains(key)
		case len(out) == 0:
			follows = bytes.Compare(d.Start, key) < 0 && bytes.Compare(key, d.End) <= 0
		case !reverse:
			follows = bytes.Equal(out[len(out)-1].End, d.Start)
		default:
			follows = bytes.Equal(out[len(out)-1].Start, d.End)
		}
		if follows && len(out) < limit {
			out = append(out, d)
		} else if len(out) > 0 {
			break
		}
	}
	return out
}

func withoutSelf(addrs map[base.StoreID]string, self base.StoreID) map[base.StoreID]string {
	delete(addrs, self)
	return addrs
}
