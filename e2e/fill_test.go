package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// fill writes about so many incompressible bytes into a shard of splitsOf, under keys that no load uses.
func fill(t *testing.T, db *client.DB, shard, bytes int) {
	t.Helper()
	const value, writers = 16 << 10, 8
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rnd := rand.NewChaCha8([32]byte{byte(w)})
			buf := make([]byte, value)
			for i := w; i*value < bytes; i += writers {
				_, _ = rnd.Read(buf) // never fails
				err := harness.Until(t.Context(), harness.Patience, func(ctx context.Context) error {
					_, err := db.All().Put(ctx, fmt.Appendf(nil, "%02d/fill/%06d", shard, i), buf)
					return err
				})
				if err != nil {
					t.Errorf("fill shard %d: %v", shard, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}
