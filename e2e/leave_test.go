package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// One client per shard writes without a pause while the node that leads most of them is told to stop: it hands every
// leadership over first, so that no write fails and none waits for long.
func TestAStoppedNodeHandsItsLeadershipsOver(t *testing.T) {
	const shards = 48
	c := harness.New(t, binaries(t), 3)
	c.StartAll()
	c.Init(splitsOf(shards))
	c.WaitHealthy()
	db := c.DB(client.WithTimeout(20 * time.Second))
	stop := make(chan struct{})
	gaps, writes := make([]time.Duration, shards), make([]atomic.Int64, shards)
	var wg sync.WaitGroup
	for i := range shards {
		wg.Go(func() {
			key := fmt.Appendf(nil, "%02d-leave", i)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				from := time.Now()
				_, err := db.All().Put(t.Context(), key, fmt.Append(nil, n))
				if err != nil {
					t.Errorf("shard %d: write %d: %v", i, n, err)
					return
				}
				gaps[i] = max(gaps[i], time.Since(from))
				writes[i].Add(1)
			}
		})
	}
	// further waits until every shard has taken so many more writes.
	further := func(what string, n int64) {
		t.Helper()
		var from [shards]int64
		for i := range from {
			from[i] = writes[i].Load()
		}
		c.Until(what, func(context.Context) error {
			for i := range from {
				if writes[i].Load() < from[i]+n {
					return fmt.Errorf("shard %d takes no writes", i)
				}
			}
			return nil
		})
	}
	further("writes flow, routes are known", 3)
	busiest, led := c.Busiest()
	n := c.Nodes[busiest]
	from := time.Now()
	code, err := n.Proc.Stop(harness.Patience)
	if err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
	took := time.Since(from)
	c.Until("the others lead everything", func(context.Context) error {
		total := 0
		for i, l := range c.Leaders() {
			if i != busiest {
				total += l
			}
		}
		if total != shards+1 {
			return fmt.Errorf("%d of %d shards are led", total, shards+1)
		}
		return nil
	})
	further("every client has found its new leader", 2)
	close(stop)
	wg.Wait()
	worst, total := time.Duration(0), 0
	for i := range shards {
		worst = max(worst, gaps[i])
		total += int(writes[i].Load())
	}
	log, err := os.ReadFile(n.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if led == 0 || !strings.Contains(string(log), "leaderships handed over") ||
		strings.Contains(string(log), "not all leaderships handed over") {
		t.Errorf("node %d led %d shards; its log says nothing of a whole hand-over", busiest, led)
	}
	t.Logf("%d leaderships, stopped after %s; %d writes, the longest took %s", led, took.Round(time.Millisecond), total,
		worst.Round(time.Millisecond))
}
