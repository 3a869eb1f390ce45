package node

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// Keys that a shard's leader chooses: where to split by size or by load, and which are the busiest.

// chosenKeys are where to split, with each part's share of the whole, the left one's first, in millionths.
type chosenKeys struct {
	keys   [][]byte
	shares []uint32
}

// choosers bounds what looks for keys at the same time: each may scan the keys of a shard.
const choosers = 2

// chooseSplitKeys finds the keys of a split that gives none, at the leader: by size or by load, never inside a group of
// keys, no more than there are ids for. *notLead if the store does not lead the shard. FailedPrecondition: there is no
// such key, and there will not be unless the data or the load changes; Aborted: too little is known yet.
func (m *member) chooseSplitKeys(ctx context.Context, req *pb.SplitShardRequest) (chosenKeys, error) {
	id := base.ShardID(req.ShardId)
	d, ok := m.store.Descriptor(id)
	if !ok {
		return chosenKeys{}, &notLead{}
	}
	if want := (base.Epoch{ConfVer: req.ConfVer, Version: req.Version}); d.Epoch != want {
		// Split would find out, but a scan comes before it.
		return chosenKeys{}, status.Errorf(codes.FailedPrecondition, "split %s: its epoch is %s, not %s", id, d.Epoch, want)
	}
	if len(req.NewShardIds) == 0 {
		return chosenKeys{}, status.Errorf(codes.InvalidArgument, "split %s: no ids for new shards", id)
	}
	var groups []engine.KeyGroup
	if req.GroupCount > 0 {
		if len(req.GroupDelimiter) == 0 {
			return chosenKeys{}, status.Errorf(codes.InvalidArgument, "split %s: a group of keys without a delimiter", id)
		}
		groups = []engine.KeyGroup{{
			Prefix: req.GroupPrefix, Delimiter: req.GroupDelimiter, Count: int(min(req.GroupCount, base.MaxKeySize)),
		}}
	}
	switch req.By {
	case "", "size":
		return m.keysBySize(ctx, req, groups)
	case "load":
		return m.keysByLoad(id, groups)
	}
	return chosenKeys{}, status.Errorf(codes.InvalidArgument, "split %s by %q: want size or load", id, req.By)
}

func (m *member) keysBySize(ctx context.Context, req *pb.SplitShardRequest, groups []engine.KeyGroup) (chosenKeys, error) {
	if err := m.choosing.take(ctx); err != nil {
		return chosenKeys{}, status.FromContextError(err).Err()
	}
	defer m.choosing.give()
	id := base.ShardID(req.ShardId)
	div, err := m.store.SplitKeys(ctx, id, engine.SplitOptions{
		Parts: int(min(req.Parts, 1<<16)), TargetBytes: req.TargetBytes, MaxKeys: len(req.NewShardIds), Groups: groups,
	})
	switch {
	case errors.Is(err, engine.ErrOneGroup):
		return chosenKeys{}, status.Errorf(codes.FailedPrecondition,
			"split %s: all of its keys are one group that the rules keep together", id)
	case errors.Is(err, engine.ErrTooFewKeys):
		return chosenKeys{}, status.Errorf(codes.FailedPrecondition, "split %s: it has less than two keys", id)
	case errors.Is(err, engine.ErrCorrupt):
		return chosenKeys{}, status.Errorf(codes.DataLoss, "split %s: %v", id, err)
	case err != nil:
		return chosenKeys{}, leadStatus(err)
	}
	return chosenKeys{keys: div.Keys, shares: sharesOf(div.Bytes)}, nil
}

// sharesOf turns the sizes of parts into millionths of the whole that add up to it.
func sharesOf(sizes []uint64) []uint32 {
	var total float64
	for _, n := range sizes {
		total += float64(n)
	}
	out := make([]uint32, len(sizes))
	rest := uint32(wire.SplitShares)
	for i, n := range sizes {
		part := uint32(wire.SplitShares / len(sizes))
		if total > 0 {
			part = uint32(float64(n) / total * wire.SplitShares)
		}
		out[i] = min(part, rest)
		rest -= out[i]
	}
	out[0] += rest
	return out
}

func (m *member) keysByLoad(id base.ShardID, groups []engine.KeyGroup) (chosenKeys, error) {
	v, err := m.store.LoadSplit(id, groups...)
	switch {
	case err != nil:
		return chosenKeys{}, leadStatus(err)
	case v.Key != nil:
		left := uint32((v.Left + v.Across/2) * wire.SplitShares)
		return chosenKeys{keys: [][]byte{v.Key}, shares: []uint32{left, wire.SplitShares - left}}, nil
	case v.HotKey != nil:
		return chosenKeys{}, status.Errorf(codes.FailedPrecondition,
			"split %s by load: key %x has %.0f%% of it, so that no split helps", id, v.HotKey, 100*v.HotShare)
	case v.Samples == 0:
		return chosenKeys{}, status.Errorf(codes.Aborted, "split %s by load: too few requests lately to tell where", id)
	}
	return chosenKeys{}, status.Errorf(codes.FailedPrecondition,
		"split %s by load: of %d sampled requests no key leaves enough on both sides", id, v.Samples)
}

const (
	keysHot  = "hot"
	keysEven = "even"
	maxKeys  = 1000
)

// ShardKeys implements InternalService.
func (s *internalService) ShardKeys(ctx context.Context, req *pb.ShardKeysRequest) (*pb.ShardKeysResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	resp, err := m.keysHere(ctx, base.ShardID(req.ShardId), req.What, int(min(req.Limit, maxKeys)))
	var not *notLead
	if errors.As(err, &not) {
		return &pb.ShardKeysResponse{NotLeader: true, Leader: uint64(not.leader)}, nil
	}
	return resp, err
}

// keysHere answers at the leader; *notLead if this store is not.
func (m *member) keysHere(ctx context.Context, id base.ShardID, what string, limit int) (*pb.ShardKeysResponse, error) {
	resp := &pb.ShardKeysResponse{}
	switch what {
	case keysHot:
		if limit == 0 {
			limit = hotKeys
		}
		keys, sampled, err := m.store.HotKeys(id, limit)
		if err != nil {
			return nil, leadStatus(err)
		}
		resp.Sampled = sampled
		for _, k := range keys {
			resp.Keys = append(resp.Keys, &pb.HotKey{Key: k.Key, Share: k.Share, Error: k.Error})
		}
	case keysEven:
		if limit == 0 {
			return nil, status.Errorf(codes.InvalidArgument, "keys of %s: how many?", id)
		}
		if err := m.choosing.take(ctx); err != nil {
			return nil, status.FromContextError(err).Err()
		}
		defer m.choosing.give()
		keys, err := m.store.SampleKeys(ctx, id, limit)
		if err != nil && !errors.Is(err, engine.ErrTooFewKeys) && !errors.Is(err, engine.ErrOneGroup) {
			return nil, leadStatus(err)
		}
		for _, k := range keys {
			resp.Keys = append(resp.Keys, &pb.HotKey{Key: k})
		}
	default:
		return nil, status.Errorf(codes.InvalidArgument, "keys of %s: %q is neither %s nor %s", id, what, keysHot, keysEven)
	}
	return resp, nil
}

// turns lets so many go on at the same time as it has room for.
type turns chan struct{}

func (t turns) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn: %w", ctx.Err())
	}
}

func (t turns) give() { <-t }

// splitLimits are the store's own, before it hears from the meta leader.
func (s *Settings) splitLimits() shard.SplitLimits {
	return shard.SplitLimits{Bytes: s.SplitBytes, Requests: s.SplitLoadRequests, RequestBytes: s.SplitLoadBytes}
}

// neverSplit is a size, or a rate, that nothing reaches.
const neverSplit = 1 << 60

// splitNews is what the meta leader tells the others of the cluster's limits; nil while it does not know them. Of the
// rules' sizes the largest counts for all shards: none is to be refused writes below the size at which it splits.
func (m *member) splitNews() (size *uint64, requests *float64) {
	p, known := m.rules.known()
	if !known {
		return nil, nil
	}
	cfg := m.planConfig(&p)
	bytes, rate := cfg.SplitBytes, float64(cfg.SplitRequests)
	for i := range p.set.Rules {
		bytes = max(bytes, uint64(p.set.Rule(i).SplitSize))
	}
	if bytes >= neverSplit {
		bytes = 0
	}
	if rate >= neverSplit {
		rate = 0
	}
	return &bytes, &rate
}

// learnSplit takes the cluster's limits over from the meta leader.
func (m *member) learnSplit(size *uint64, requests *float64) {
	if size == nil || requests == nil {
		return
	}
	l := m.n.cfg.Settings.splitLimits()
	if l.Bytes = int64(*size); l.Bytes == 0 {
		l.Bytes = -1
	}
	if l.Requests = *requests; l.Requests == 0 {
		l.Requests = -1
	}
	m.store.SetSplitLimits(l)
}
