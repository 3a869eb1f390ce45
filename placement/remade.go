package placement

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Remade returns contents for a meta shard of which no replica is left, sorted by key: what the nodes know between them.
// The shards must tile; ids of shards, nodes and jobs are given out from the numbers given, which must be above every one
// that ever was.
func Remade(c Cluster, nodes []Node, shards []*base.Descriptor, nextShard base.ShardID, nextNode base.StoreID,
	nextJob JobID) ([]Pair, error) {
	pairs := []Pair{
		{ClusterKey(), c.Append(nil)},
		{counterKey(ShardIDs), appendNumber(nil, uint64(nextShard))},
		{counterKey(NodeIDs), appendNumber(nil, uint64(nextNode))},
		{counterKey(JobIDs), appendNumber(nil, uint64(nextJob))},
	}
	for i := range nodes {
		if err := nodes[i].Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if nodes[i].ID >= nextNode {
			return nil, fmt.Errorf("node %s, and the next id is %s: %w", nodes[i].ID, nextNode, ErrInvalid)
		}
		pairs = append(pairs, Pair{NodeKey(nodes[i].ID), nodes[i].Append(nil)})
	}
	for _, d := range shards {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if d.Shard >= nextShard || len(d.End) > maxIndexEnd {
			return nil, fmt.Errorf("%s, and the next id is %s: %w", d, nextShard, ErrInvalid)
		}
		pairs = append(pairs, Pair{indexKey(d.End), (&Shard{Desc: d}).Append(nil)})
	}
	slices.SortFunc(pairs, func(a, b Pair) int { return bytes.Compare(a.Key, b.Key) })
	return pairs, nil
}

// SkipIDs raises a counter to what is the higher, seen+1 or where it stands, and by margin: after a recovery the meta
// shard may have forgotten ids that it gave out (an id never repeats). Repeating it only leaves a larger gap.
func (d *Directory) SkipIDs(ctx context.Context, kind IDKind, seen, margin uint64) error {
	key := counterKey(kind)
	err := d.retry(ctx, "skip "+kind.String(), func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		next := uint64(1)
		if ver != 0 {
			if next, err = decodeNumber("counter", v); err != nil {
				return nil, err
			}
		}
		next = max(next, seen+1) + margin
		return []wire.Sub{checkVersion(key, ver), {Code: wire.OpPut, Key: key, Value: appendNumber(nil, next)}}, nil
	})
	if err == nil {
		d.ids.Lock()
		delete(d.ids.free, kind)
		d.ids.Unlock()
	}
	return err
}
