package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// counter is a key that one client counts up, and when which value was acknowledged.
type counter struct {
	key []byte

	mu    sync.Mutex
	acked []time.Time // of the values from 1 on; zero: it may not have been written
}

// least returns the highest value that was acknowledged by a time.
func (c *counter) least(by time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := len(c.acked); v > 0; v-- {
		if at := c.acked[v-1]; !at.IsZero() && !at.After(by) {
			return v
		}
	}
	return 0
}

func (c *counter) count(ctx context.Context, db *client.DB) {
	for v := 1; ctx.Err() == nil; v++ {
		try, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_, err := db.All().Put(try, c.key, strconv.AppendInt(nil, int64(v), 10))
		cancel()
		at := time.Now()
		if err != nil {
			at = time.Time{}
		}
		c.mu.Lock()
		c.acked = append(c.acked, at)
		c.mu.Unlock()
	}
}

// TestStaleReadsKeepTheirBoundWhileNodesArePaused counts up keys, pauses and kills nodes, and reads with bounds at
// whatever replica serves.
func TestStaleReadsKeepTheirBoundWhileNodesArePaused(t *testing.T) {
	c := harness.New(t, binaries(t), 3)
	c.StartAll()
	c.Init(splitsOf(4))
	c.WaitHealthy()
	db := c.DB(client.WithTimeout(20 * time.Second))
	counters := make([]*counter, 4)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for i := range counters {
		counters[i] = &counter{key: fmt.Appendf(nil, "%02d/count", i)}
		clients.Go(func() { counters[i].count(ctx, db) })
	}
	var reads, old, failed atomic.Int64
	for i := range 8 {
		clients.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), rand.Uint64()))
			for ctx.Err() == nil {
				k := counters[rnd.IntN(len(counters))]
				d := []time.Duration{20, 100, 400, 1500, 5000}[rnd.IntN(5)] * time.Millisecond
				try, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				called := time.Now()
				v, err := db.All().Get(try, k.key, client.Stale(d))
				cancel()
				if err != nil && !errors.Is(err, client.ErrNotFound) {
					failed.Add(1)
					continue
				}
				saw, _ := strconv.Atoi(string(v.Bytes)) // absent is 0
				reads.Add(1)
				if saw < k.least(called) {
					old.Add(1)
				}
				if want := k.least(called.Add(-d)); saw < want {
					t.Errorf("%s is %d, read with a bound of %s; %d was acknowledged before that", k.key, saw, d, want)
				}
			}
		})
	}
	seed := rand.Uint64()
	t.Logf("faults with seed %d", seed)
	faults := rand.New(rand.NewPCG(seed, seed))
	for round := range scale(6, 12, 200) {
		victim := faults.IntN(len(c.Nodes))
		if round%6 == 5 {
			c.Kill(victim)
			c.Start(victim)
			c.WaitHealthy()
			continue
		}
		c.Pause(victim)
		time.Sleep(time.Duration(200+faults.IntN(2000)) * time.Millisecond) // how long the pause is, not a wait
		c.Resume(victim)
		time.Sleep(300 * time.Millisecond)
	}
	stop()
	clients.Wait()
	t.Logf("%d reads, %d of them of an old value, %d failed", reads.Load(), old.Load(), failed.Load())
	if reads.Load() < 100 {
		t.Error("too few reads to prove anything")
	}
}
