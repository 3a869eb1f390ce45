package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

const fillValue = 16 << 10 // bytes

// filler is the key and the incompressible value at a place of a shard of splitsOf.
func filler(shard, i int) (key, value []byte) {
	value = make([]byte, fillValue)
	_, _ = rand.NewChaCha8([32]byte{byte(shard), byte(i), byte(i >> 8)}).Read(value) // never fails
	return fmt.Appendf(nil, "%02d/fill/%06d", shard, i), value
}

// fill writes about so many bytes into a shard of splitsOf, under keys that no load uses.
func fill(t *testing.T, db *client.DB, shard, bytes int) {
	t.Helper()
	eachFiller(t, bytes, func(ctx context.Context, i int) error {
		key, value := filler(shard, i)
		_, err := db.All().Put(ctx, key, value)
		return err
	})
}

// checkFill reads back what fill wrote, every byte of it.
func checkFill(t *testing.T, db *client.DB, shard, size int) {
	t.Helper()
	eachFiller(t, size, func(ctx context.Context, i int) error {
		key, want := filler(shard, i)
		v, err := db.All().Get(ctx, key)
		if err == nil && !bytes.Equal(v.Bytes, want) {
			t.Errorf("%s: a wrong value of %d bytes", key, len(v.Bytes))
		}
		return err
	})
}

// eachFiller calls do for each place, from a few goroutines, until it succeeds.
func eachFiller(t *testing.T, bytes int, do func(ctx context.Context, i int) error) {
	t.Helper()
	const clients = 8
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := c; i*fillValue < bytes && !t.Failed(); i += clients {
				if err := harness.Until(t.Context(), harness.Patience, func(ctx context.Context) error {
					return do(ctx, i)
				}); err != nil {
					t.Errorf("filler %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
