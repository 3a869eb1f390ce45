package shard

import (
	"context"
	"fmt"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// SplitKeys returns keys that divide the data of a shard that this store leads into parts of about equal bytes; the size
// that is known here is filled in. Errors are those of engine.SplitKeys, and of HotKeys.
func (s *Store) SplitKeys(ctx context.Context, shard base.ShardID, o engine.SplitOptions) (engine.Division, error) {
	r, err := s.leading(shard)
	if err != nil {
		return engine.Division{}, err
	}
	o.SizeBytes, _ = r.sizeNow(s.clock.Boot())
	d := r.desc.Load()
	out, err := s.engine.SplitKeys(ctx, d.Start, d.End, o)
	if err != nil {
		return engine.Division{}, fmt.Errorf("split keys of %s: %w", shard, err)
	}
	return out, nil
}

// SampleKeys returns up to n keys that divide the data of a shard that this store leads into n+1 parts of about equal
// bytes, to pre-split another range by. Errors are those of SplitKeys.
func (s *Store) SampleKeys(ctx context.Context, shard base.ShardID, n int) ([][]byte, error) {
	d, err := s.SplitKeys(ctx, shard, engine.SplitOptions{Parts: n + 1, MaxKeys: n})
	return d.Keys, err
}
