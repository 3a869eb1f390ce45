package main

import (
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/config"
)

// limitMemory sets the collector up and returns what ends its tuning. Variables that the Go runtime reads itself win
// over our defaults.
//
// GOGC counts what is live, and most of that is caches and memtables: at 400 a node with 600 MiB of them lets 2.4 GiB of
// garbage pile up, which saves nothing over 256 MiB. So the percentage follows what is live.
func limitMemory(cfg *config.Config, log *slog.Logger, table []*config.Setting) (stop func()) {
	given := map[string]bool{}
	for _, s := range table {
		given[s.Name] = s.From != config.FromDefault
	}
	stop = func() {}
	if given["gc-percent"] || given["gc-slack"] || os.Getenv("GOGC") == "" {
		debug.SetGCPercent(cfg.GCPercent)
		if cfg.GCSlack > 0 {
			stop = tuneCollector(cfg.GCPercent, cfg.GCSlack, time.Second)
		}
	}
	limit := cfg.MemoryLimit
	switch {
	case !given["memory-limit"] && os.Getenv("GOMEMLIMIT") != "", limit == -1:
		return stop
	case limit == 0:
		limit = machineMemory() / 2
	}
	if limit > 0 {
		debug.SetMemoryLimit(limit)
		log.Debug("memory limit", "bytes", limit, "gc_percent", cfg.GCPercent, "gc_slack", cfg.GCSlack)
	}
	return stop
}

// leastGCPercent bounds how often a large heap is walked for a small slack.
const leastGCPercent = 20

// gcPercentFor is the GOGC at which slack bytes of garbage pile up over live ones, at most most percent of them.
func gcPercentFor(live uint64, slack int64, most int) int {
	if live == 0 || uint64(slack)/live > uint64(most)/100 {
		return most
	}
	return min(most, max(int(float64(slack)/float64(live)*100), leastGCPercent))
}

// tuneCollector keeps GOGC in step with what is live, looking every interval, and has the collector rest while the process
// does, until the returned function is called.
func tuneCollector(most int, slack int64, interval time.Duration) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTimer(clock.UntilAligned(interval))
		defer tick.Stop()
		c := newCollector(most, slack)
		defer c.wake()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				tick.Reset(clock.UntilAligned(interval))
			}
			c.look()
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}
