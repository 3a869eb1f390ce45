package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/router"
)

// metaKV is the placement.KV of a node: the meta shard through the router, so that it works on every node.
type metaKV struct{ r *router.Router }

// Get implements placement.KV.
func (kv metaKV) Get(ctx context.Context, key []byte) ([]byte, uint64, error) {
	a, err := kv.r.Do(ctx, wire.Op{Code: wire.OpGet, Key: key})
	if err != nil || a.Code == wire.NotFound {
		return nil, 0, err
	}
	return a.Payload, a.Arg, nil
}

// Scan implements placement.KV.
func (kv metaKV) Scan(ctx context.Context, lo, hi []byte, limit int, reverse bool) ([]placement.Row, error) {
	var out []placement.Row
	for row, err := range kv.r.Scan(ctx, lo, hi, router.ScanOptions{Limit: limit, Reverse: reverse}) {
		if err != nil {
			return nil, err
		}
		out = append(out, placement.Row{Key: row.Key, Value: row.Value, Version: row.Version})
	}
	return out, nil
}

// Apply implements placement.KV.
func (kv metaKV) Apply(ctx context.Context, steps []wire.Sub) error {
	var value []byte
	for i := range steps {
		value = steps[i].Append(value)
	}
	if len(value) > base.MaxBatchSize {
		return fmt.Errorf("update of %d bytes, at most %d: %w", len(value), base.MaxBatchSize, placement.ErrInvalid)
	}
	a, err := kv.r.Do(ctx, wire.Op{Code: wire.OpBatch, Key: steps[0].Key, Value: value})
	switch {
	case err != nil:
		return err
	case a.Code == wire.ConditionFailed:
		return placement.ErrConflict
	case a.Code != wire.OK:
		return errors.New("update of the meta shard: " + a.Code.String())
	}
	return nil
}
