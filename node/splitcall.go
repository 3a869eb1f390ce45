package node

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// maxSplitParts bounds the new shards of one split that the leader chooses.
const maxSplitParts = 64

func (w memberWorld) find(ctx context.Context, key []byte) (*base.Descriptor, error) {
	shards, err := w.m.dir.Lookup(ctx, key, 1, false)
	if err != nil {
		return nil, directoryStatus(err)
	}
	if len(shards) == 0 || !shards[0].Desc.Contains(key) {
		return nil, status.Errorf(codes.Unavailable, "the index has no shard for %x", key)
	}
	return shards[0].Desc, nil
}

func (w memberWorld) split(ctx context.Context, ask splitAsk) error {
	m, d := w.m, ask.desc
	limits := m.splitTarget(d)
	fresh := len(ask.keys)
	if fresh == 0 {
		fresh = int(ask.parts)
		if fresh == 0 {
			fresh = int(ask.bytes/max(limits.bytes, 1)) + 2
		}
		fresh = min(max(fresh-1, 1), maxSplitParts)
	}
	first, err := m.dir.AllocIDs(ctx, placement.ShardIDs, fresh)
	if err != nil {
		return directoryStatus(err)
	}
	req := &pb.SplitShardRequest{
		ClusterId: m.cluster[:], ShardId: uint64(d.Shard), ConfVer: d.Epoch.ConfVer, Version: d.Epoch.Version,
		Keys: ask.keys, Parts: ask.parts, TargetBytes: limits.bytes,
		GroupDelimiter: limits.delimiter, GroupCount: limits.count, GroupPrefix: limits.prefix,
	}
	if len(ask.keys) == 0 {
		req.By = ask.by.String()
	}
	for i := range fresh {
		req.NewShardIds = append(req.NewShardIds, first+uint64(i))
	}
	var resp *pb.SplitShardResponse
	err = m.atLeader(ctx, d.Shard, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		if resp, err = c.SplitShard(ctx, req); err == nil && resp.NotLeader {
			err = &notLead{base.StoreID(resp.Leader)}
		}
		return err
	})
	if err != nil {
		return err
	}
	m.learnDescriptors(resp.Descriptors)
	return nil
}

// internalOf returns the InternalService of any node, this one included.
func (m *member) internalOf(at base.StoreID) (pb.InternalServiceClient, error) {
	if at == m.self {
		return m.internalAt(place{m.self, m.n.addr})
	}
	return m.internal(at)
}

// learnDescriptors has descriptors that a shard's leader has just applied recorded in the index, sooner than its next
// report would.
func (m *member) learnDescriptors(encoded [][]byte) {
	term, leads := m.leadsMeta()
	if !leads {
		return
	}
	var states []placement.ReplicaState
	for _, b := range encoded {
		if d, rest, err := base.DecodeDescriptor(b); err == nil && len(rest) == 0 {
			states = append(states, placement.ReplicaState{Desc: d})
		}
	}
	m.index.note(term, states)
}

// splitLimits say where a shard may be split and how large the parts should be.
type splitLimits struct {
	bytes     uint64
	delimiter []byte
	count     uint32
	prefix    []byte
}

// splitTarget is what the rules and settings say of the splits of a shard.
func (m *member) splitTarget(d *base.Descriptor) splitLimits {
	p := m.rules.get()
	e := p.effective(d.Start)
	out := splitLimits{bytes: m.planConfig(&p).SplitBytes}
	if e.SplitSize > 0 {
		out.bytes = uint64(e.SplitSize)
	}
	prefix, delimiter, count := e.GroupPrefix()
	out.prefix, out.delimiter, out.count = prefix, delimiter, uint32(count)
	return out
}

func (w memberWorld) merge(ctx context.Context, left, right base.ShardID, note func(string)) error {
	_, err := w.m.mergeShards(ctx, left, right, w.m.newMergeID(), note)
	return err
}
