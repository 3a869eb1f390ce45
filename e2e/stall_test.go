package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
)

// stalls is how long clients cannot write while their shard is split or merged.
type stalls struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Writers int          `json:"writers"` // each writes one key of its own, again and again, on either side of the split
	Times   int          `json:"times"`
	// The longest time between two acknowledged writes of a writer: while nothing happens (in windows as long as the
	// others), around a split, and around a merge. Over all writers and times.
	IdleP50MS  float64        `json:"nothing_p50_ms"`
	IdleP99MS  float64        `json:"nothing_p99_ms"`
	IdleMaxMS  float64        `json:"nothing_max_ms"`
	SplitP50MS float64        `json:"split_p50_ms"`
	SplitP99MS float64        `json:"split_p99_ms"`
	SplitMaxMS float64        `json:"split_max_ms"`
	MergeP50MS float64        `json:"merge_p50_ms"`
	MergeP99MS float64        `json:"merge_p99_ms"`
	MergeMaxMS float64        `json:"merge_max_ms"`
	Errors     map[string]int `json:"errors"`
}

// gapWriters write one key each and remember the longest pause between two acknowledgements.
type gapWriters struct {
	mu     sync.Mutex
	last   []time.Time
	gap    []time.Duration
	count  []int
	errors map[string]int
}

func (w *gapWriters) run(t *testing.T, db *client.DB, keys [][]byte) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	w.last, w.gap, w.errors = make([]time.Time, len(keys)), make([]time.Duration, len(keys)), map[string]int{}
	w.count = make([]int, len(keys))
	for i, key := range keys {
		w.last[i] = time.Now()
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, err := db.All().Put(ctx, key, fmt.Appendf(nil, "%d", n))
				now := time.Now()
				w.mu.Lock()
				switch {
				case err == nil:
					w.gap[i] = max(w.gap[i], now.Sub(w.last[i]))
					w.last[i], w.count[i] = now, w.count[i]+1
				case ctx.Err() == nil && !errors.Is(err, context.Canceled):
					w.errors[ycsb.ErrorClass(err)]++
				}
				w.mu.Unlock()
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// take returns each writer's longest pause since the last call, once everybody has written again.
func (w *gapWriters) take(t *testing.T) []time.Duration {
	t.Helper()
	w.mu.Lock()
	from := make([]int, len(w.count))
	copy(from, w.count)
	w.mu.Unlock()
	var out []time.Duration
	if err := harness.Until(t.Context(), harness.Patience, func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range w.count {
			if w.count[i] == from[i] {
				return fmt.Errorf("writer %d waits; errors %v", i, w.errors)
			}
		}
		out = append(out[:0], w.gap...)
		clear(w.gap)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// What clients of a shard see of its splits and merges: the longest pause in their writes.
func TestFiguresOfSplitAndMergeStalls(t *testing.T) {
	dir, full := figures(t, "stalls")
	path := filepath.Join(dir, "stalls.json")
	s := &stalls{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t), Writers: 8, Times: 3}
	if full {
		s.Times = 50
	}
	if readResult(t, path, s) {
		t.Logf("%s is there: not measured again: %+v", path, s)
		return
	}
	c := harness.New(t, binaries(t), 3)
	c.StartAll()
	c.Init(splitsOf(2))
	db := c.DB(client.WithTimeout(20 * time.Second))
	fill(t, db, 0, 4*mib)
	var keys [][]byte
	for i := range s.Writers {
		keys = append(keys, fmt.Appendf(nil, "00/w/%d", i))
	}
	var w gapWriters
	stop := w.run(t, db, keys)
	w.take(t)
	var idle, split, merge []time.Duration
	run := func(kind string, left, right uint64) {
		spec := harness.Split(left, keys[len(keys)/2])
		if kind == "merge" {
			spec = harness.Merge(left, right)
		}
		id, err := c.Begin(t.Context(), spec)
		if err != nil {
			t.Fatalf("begin %s: %v", kind, err)
		}
		if j, err := c.Await(t.Context(), id, 2*harness.Patience); err != nil || j.GetState() != admin.JobDone {
			t.Fatalf("%s: %v, %s", kind, err, harness.Steps(j))
		}
	}
	for range s.Times {
		w.take(t)
		timer := time.NewTimer(500 * time.Millisecond) // not a wait for a condition: as long as a job takes, about
		<-timer.C
		idle = append(idle, w.take(t)...)
		left := c.ShardOf([]byte("00"))
		run("split", left.GetShardId(), 0)
		split = append(split, w.take(t)...)
		c.WaitTiles()
		right := c.ShardOf(keys[len(keys)-1])
		w.take(t)
		run("merge", left.GetShardId(), right.GetShardId())
		merge = append(merge, w.take(t)...)
		c.WaitTiles()
	}
	stop()
	ms := func(d []time.Duration, q float64) float64 { return float64(quantile(d, q).Microseconds()) / 1000 }
	s.IdleP50MS, s.IdleP99MS, s.IdleMaxMS = ms(idle, 0.5), ms(idle, 0.99), ms(idle, 1)
	s.SplitP50MS, s.SplitP99MS, s.SplitMaxMS = ms(split, 0.5), ms(split, 0.99), ms(split, 1)
	s.MergeP50MS, s.MergeP99MS, s.MergeMaxMS = ms(merge, 0.5), ms(merge, 0.99), ms(merge, 1)
	s.Errors = w.errors
	t.Logf("%+v", s)
	if len(w.errors) > 0 {
		t.Errorf("writes failed: %v", w.errors)
	}
	if !t.Failed() {
		putResult(t, path, s)
	}
}

// hotRange is one shard under skewed load before and after the driver has dealt with it.
type hotRange struct {
	Command   string       `json:"command"`
	Machine   ycsb.Machine `json:"machine"`
	Records   int          `json:"records"`
	Clients   int          `json:"clients"`
	Before    float64      `json:"ops_per_sec_before"`
	BeforeP99 float64      `json:"p99_us_before"`
	After     float64      `json:"ops_per_sec_after"`
	AfterP99  float64      `json:"p99_us_after"`
	Ratio     float64      `json:"ratio"`
	Shards    int          `json:"shards_after"`
	// Leaders of user shards by node, after.
	Leaders map[string]int `json:"leaders_after"`
	Seconds float64        `json:"seconds_to_spread"`
}

// One shard under a zipfian load is split by load, and the leaders of its parts are spread over the nodes.
func TestFiguresOfAHotRange(t *testing.T) {
	dir, full := figures(t, "hotrange")
	path := filepath.Join(dir, "hotrange.json")
	h := &hotRange{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t), Records: 5000, Clients: 32}
	length, requests, parts := 2*time.Second, "200", 2
	if full {
		h.Records, h.Clients, length, requests, parts = 100_000, 128, 20*time.Second, "2000", 3
	}
	if readResult(t, path, h) {
		t.Logf("%s is there: not measured again: %+v", path, h)
		return
	}
	c := harness.New(t, binaries(t), 3)
	for _, n := range c.Nodes {
		n.Balance = true
		n.Args = append(n.Args, "--split-load-requests", requests)
	}
	c.StartAll()
	c.Init(nil)
	if _, err := c.Admin.SetBalance(t.Context(), &setBalance{Pause: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	db := c.DB(client.WithTimeout(30 * time.Second))
	loadYCSB(t, db, h.Records)
	measure := func(length time.Duration) (ops, p99 float64) {
		p := ycsbProperties(t, "a", h.Records, h.Clients)
		p["requestdistribution"] = "zipfian"
		p.Bound(0, length)
		d, err := ycsb.NewClient(db, p)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ycsb.Run(t.Context(), ycsb.Config{DB: d, Name: "a", Properties: p})
		if err != nil {
			t.Fatal(err)
		}
		if r.Total.ErrorCount > 0 {
			t.Errorf("%d operations failed", r.Total.ErrorCount)
		}
		return r.Total.OpsPerSec, r.Total.Latency.P99
	}
	h.Before, h.BeforeP99 = measure(length)
	if _, err := c.Admin.SetBalance(t.Context(), &setBalance{Resume: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := harness.Until(t.Context(), 6*harness.Patience, func(context.Context) error {
		measure(length) // the load goes on until it has been dealt with
		h.Shards, h.Leaders = 0, map[string]int{}
		for _, s := range c.Shards() {
			if s.GetShardId() == 1 {
				continue
			}
			h.Shards++
			h.Leaders[fmt.Sprintf("n%d", s.GetLeader())]++
		}
		// A leader stays where it is for a minute after a split: only the full run waits for that.
		if h.Shards < parts || full && len(h.Leaders) < parts {
			return fmt.Errorf("%d shards, leaders %v", h.Shards, h.Leaders)
		}
		return nil
	}); err != nil {
		t.Fatalf("the hot shard is not spread: %v", err)
	}
	h.Seconds = time.Since(began).Seconds()
	h.After, h.AfterP99 = measure(length)
	h.Ratio = h.After / h.Before
	c.WaitTiles()
	checkYCSB(t, db, h.Records)
	t.Logf("%+v", h)
	if !t.Failed() {
		putResult(t, path, h)
	}
}
