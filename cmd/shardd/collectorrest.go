package main

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
)

// Go collects every two minutes whether there is garbage or not, and with ten thousand sleeping shards that is a good part of
// what an idle node costs. It leaves that out only where GOGC is off. So once a collection was one of those, GOGC is off,
// and a memory limit just above what is in use starts the collection that the percentage would have started: both hold
// for the same amount of garbage. A collection that comes, or allocation in earnest, ends the rest.
const (
	// restAfter is how many looks lie between two collections of which the later one came by the time alone.
	restAfter = 110
	// restBelow is how many bytes a process that rests allocates at most between two looks.
	restBelow = 16 << 20
	// restMost is after how many looks a rest ends in any case, for a collection of what little there is.
	restMost = 3600
)

// collector is what is known of Go's, from one look to the next.
type collector struct {
	most  int
	slack int64
	set   int // GOGC; what it will be after a rest, during one

	samples []metrics.Sample
	allocs  uint64 // bytes, ever
	cycles  uint64 // collections, ever
	since   int    // looks since the last one
	rested  int    // looks since the collector rests; 0: it does not
	limit   int64  // memory limit outside of a rest
}

func newCollector(most int, slack int64) *collector {
	c := &collector{most: most, slack: slack, set: most}
	for _, name := range []string{
		"/gc/heap/live:bytes", "/gc/heap/allocs:bytes", "/gc/cycles/total:gc-cycles", "/gc/heap/goal:bytes",
		"/memory/classes/heap/objects:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
	} {
		c.samples = append(c.samples, metrics.Sample{Name: name})
	}
	return c
}

// look sets what the collector goes by. Each change stops the program for some microseconds, so small ones are left out.
func (c *collector) look() {
	metrics.Read(c.samples)
	at := func(i int) uint64 { return c.samples[i].Value.Uint64() }
	live, allocs, cycles := at(0), at(1), at(2)
	busy, collected, idle := allocs-c.allocs > restBelow, cycles != c.cycles, c.since >= restAfter
	c.allocs, c.cycles = allocs, cycles
	if c.since++; collected {
		c.since = 0
	}
	if c.rested > 0 {
		if c.rested++; !busy && !collected && c.rested <= restMost {
			return
		}
		c.wake()
		idle = false
	}
	if p := gcPercentFor(live, c.slack, c.most); p < c.set-c.set/8 || p > c.set+c.set/8 {
		debug.SetGCPercent(p)
		c.set = p
	}
	goal, objects, used := at(3), at(4), at(5)-at(6)
	if collected && idle && !busy && c.most >= 0 && goal > objects && goal < math.MaxInt64/2 {
		c.rest(int64(used + goal - objects))
	}
}

// rest switches collections by percentage off, and on at a memory limit.
func (c *collector) rest(limit int64) {
	c.rested, c.limit = 1, debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, c.limit))
	debug.SetGCPercent(-1)
}

// wake puts things back as they were before a rest.
func (c *collector) wake() {
	if c.rested == 0 {
		return
	}
	c.rested = 0
	debug.SetGCPercent(c.set)
	debug.SetMemoryLimit(c.limit)
}
