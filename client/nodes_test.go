package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
)

// TestClusterLosesANodeUnderLoad writes through three real nodes while one of them stops, and checks that what was
// acknowledged is there and that nothing fails but, possibly, with an unknown outcome.
func TestClusterLosesANodeUnderLoad(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := startCluster(ctx, 3, "d", "h", "m", "q")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	}()
	db, err := client.Open(ctx, c.endpoints)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := db.All()

	const clients, each = 8, 120
	half := make(chan struct{}, clients)
	var mu sync.Mutex
	acked := map[string]string{}
	unknown := 0
	var wg sync.WaitGroup
	for g := range clients {
		wg.Go(func() {
			for i := range each {
				if i == each/3 {
					half <- struct{}{}
				}
				k, v := fmt.Sprintf("%c-%d-%d", 'a'+(i*7+g)%26, g, i), fmt.Sprint(g, ".", i)
				_, err := all.Put(ctx, []byte(k), []byte(v))
				mu.Lock()
				switch {
				case err == nil:
					acked[k] = v
				case errors.Is(err, client.ErrAmbiguous):
					unknown++
				default:
					t.Errorf("put %s: %v", k, err)
				}
				mu.Unlock()
			}
		})
	}
	for range clients {
		<-half
	}
	if err := c.stops[0](); err != nil {
		t.Errorf("stop a node: %v", err)
	}
	wg.Wait()
	t.Logf("%d writes acknowledged, %d of unknown outcome", len(acked), unknown)

	found := map[string]string{}
	for row, err := range all.Scan(ctx, client.Prefetch()) {
		if err != nil {
			t.Fatal(err)
		}
		found[string(row.Key)] = string(row.Value)
	}
	for k, v := range acked {
		if found[k] != v {
			t.Errorf("%s is %q, acknowledged as %q", k, found[k], v)
		}
	}
	if len(found) > len(acked)+unknown {
		t.Errorf("%d rows, %d acknowledged and %d unknown", len(found), len(acked), unknown)
	}
	wide := client.NewBatch().Put([]byte("a"), nil).Put([]byte("z"), nil)
	if _, err := all.Batch(ctx, wide); !errors.Is(err, client.ErrCrossShard) {
		t.Errorf("batch over two shards: %v", err)
	}
	if err := all.DeleteAll(ctx); err != nil {
		t.Error(err)
	}
	for row, err := range all.Scan(ctx) {
		t.Errorf("after DeleteAll: %s, %v", row.Key, err)
	}
}
