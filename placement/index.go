package placement

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/shardd/shardd/internal/base"
)

// The descriptor index is only an index: the shards hold the truth (L3). Whoever leads the meta shard reads it once
// (Epochs), compares it with what the stores report, and puts right what is behind (PutDescriptors).

// Epochs reads the whole index and returns the epoch that it holds of each shard.
func (d *Directory) Epochs(ctx context.Context) (map[base.ShardID]base.Epoch, error) {
	lo, hi := tagSpan(tagIndex)
	out := make(map[base.ShardID]base.Epoch)
	for {
		rows, err := d.kv.Scan(ctx, lo, hi, 1024, false)
		if err != nil {
			return nil, fmt.Errorf("read descriptor index: %w", err)
		}
		shards, err := decodeShards(rows)
		if err != nil {
			return nil, err
		}
		for _, s := range shards {
			if e, ok := out[s.Desc.Shard]; !ok || s.Desc.Epoch.Newer(e) {
				out[s.Desc.Shard] = s.Desc.Epoch
			}
		}
		if len(rows) < 1024 {
			return out, nil
		}
		lo = append(bytes.Clone(rows[len(rows)-1].Key), 0)
	}
}

// putAtOnce is how many descriptors are recorded at the same time: the meta shard makes few log entries of them.
const putAtOnce = 16

// PutDescriptors records many descriptors as PutDescriptor does, several at a time. It calls done for each that the
// index holds now, or holds a newer one of; the error joins what failed of the others. done may run on any goroutine,
// one call at a time.
func (d *Directory) PutDescriptors(ctx context.Context, descs []*base.Descriptor, done func(*base.Descriptor)) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, putAtOnce)
	for _, desc := range descs {
		slots <- struct{}{}
		wg.Go(func() {
			err := d.PutDescriptor(ctx, desc)
			mu.Lock()
			defer mu.Unlock()
			if err == nil || errors.Is(err, ErrStale) {
				done(desc)
			} else {
				errs = append(errs, err)
			}
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
