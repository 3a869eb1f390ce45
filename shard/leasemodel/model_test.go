package leasemodel

import (
	"math/rand"
	randv2 "math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for linkname

	_ "go.etcd.io/etcd/raft/v3" // globalRand
)

// lockedRand has the layout of raft's type of that name.
type lockedRand struct {
	mu   sync.Mutex
	rand *rand.Rand
}

// raftRand is the hidden source of raft's election jitter.
//
//go:linkname raftRand go.etcd.io/etcd/raft/v3.globalRand
var raftRand *lockedRand

func seedRaft(seed int64) {
	raftRand.mu.Lock()
	defer raftRand.mu.Unlock()
	raftRand.rand = rand.New(rand.NewSource(seed))
}

// How long faults last in a run, and how long everything may take to work again after them.
const (
	faulty  = 8 * time.Second
	healing = 20 * time.Second
)

// enough seeds to find what a missing rule allows; a few to some hundred is what it takes.
const enough = 2000

// run is one run of a seed without some rules; with all of them the cluster has to recover as well.
func run(seed int64, removed rule, trace bool) (w *world) {
	w = newWorld(seed, removed)
	if trace {
		w.trace = []string{}
	}
	defer func() {
		if p := recover(); p != nil { // raft's, or the model's own
			if removed != 0 {
				panic(p)
			}
			w.breaks("panic: %v\n%s", p, debug.Stack())
		}
	}()
	w.until(faulty)
	if w.breach == "" && removed == 0 {
		w.heal()
	}
	return w
}

// heal ends all faults and waits until every group serves by a lease and commits writes.
func (w *world) heal() {
	f := &w.faults
	f.over = true
	f.cuts = map[link]time.Duration{}
	f.loss, f.dup, f.slow = 0, 0, 0
	w.logf("everything works from now on")
	before := len(w.oracle.place)
	var look func()
	look = func() {
		fine := len(w.oracle.place) > before
		for _, st := range w.stores {
			fine = fine && st.up
		}
		for shard, g := range w.oracle.groups {
			served := false
			for _, r := range w.leaders(shard) {
				served = served || r.lease.holds(r.st.live) && r.m.applied >= birthIndex+uint64(len(g.log))
			}
			fine = fine && served
		}
		if w.done = fine; !fine {
			w.writeSomewhere()
			w.in(100*time.Millisecond, nil, look)
		}
	}
	look()
	w.until(faulty + healing)
	if w.breach == "" && !w.done {
		w.breaks("not every group has a lease %s after the faults", healing)
	}
}

// fails reports a breach with the last part of what led to it.
func fails(t *testing.T, w *world) {
	t.Helper()
	lines := run(w.seed, w.removed, true).trace
	if os.Getenv("SHARDD_TRACE") == "" {
		lines = lines[max(0, len(lines)-60):]
	}
	t.Fatalf("%s\nrepeat with SHARDD_SEED=%d, see all of it with SHARDD_TRACE=1\n%s",
		w.breach, w.seed, strings.Join(lines, "\n"))
}

// With all rules no read is stale, no key is served by two stores, no later leader stands beside a lease, whatever
// happens; and when the faults are over every group gets its lease back.
func TestLeasesAreSafeAndComeBack(t *testing.T) {
	n := 400
	if testing.Short() {
		n = 60
	}
	if s := os.Getenv("SHARDD_SEED"); s != "" {
		seed, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("SHARDD_SEED: %v", err)
		}
		if w := run(seed, 0, false); w.breach != "" {
			fails(t, w)
		}
		return
	}
	start := time.Now()
	end := start
	if s := os.Getenv("SHARDD_TORTURE"); s != "" {
		minutes, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("SHARDD_TORTURE: %v", err)
		}
		end = start.Add(time.Duration(minutes * float64(time.Minute)))
	}
	var sum stats
	done := 0
	for ; done < n || time.Now().Before(end); done++ {
		w := run(randv2.Int64N(1<<40)+1, 0, false)
		if w.breach != "" {
			fails(t, w)
		}
		sum.add(w.stats)
	}
	t.Logf("%d runs in %s: %+v", done, time.Since(start).Round(time.Millisecond), sum)
	for what, n := range map[string]int{"answers by lease": sum.answered, "splits": sum.splits,
		"conf changes": sum.changes, "transfers": sum.transfers, "restarts": sum.restarts, "lapses": sum.lapses,
		"leaders asleep": sum.sleeps} {
		if n < done/4 {
			t.Errorf("%d %s in %d runs: the model does not test what it is for", n, what, done)
		}
	}
}

// Without a rule, what it prevents happens: a read is stale, or two stores serve one key.
func TestARemovedRuleIsFound(t *testing.T) {
	for _, removed := range []rule{V1, V1Lead, V2, V2Epoch, V3, V4, V4Late, V5, V6, V7, Margin} {
		t.Run(removed.String(), func(t *testing.T) {
			for seed := int64(1); seed <= enough; seed++ {
				if w := run(seed, removed, false); w.breach != "" {
					t.Logf("seed %d, after %s: %s", seed, w.now, w.breach)
					return
				}
			}
			t.Errorf("nothing happened in %d runs", enough)
		})
	}
}

func TestASeedMakesTheSameRunTwice(t *testing.T) {
	for seed := int64(1); seed <= 5; seed++ {
		a, b := run(seed, 0, true), run(seed, 0, true)
		if a.stats != b.stats || strings.Join(a.trace, "\n") != strings.Join(b.trace, "\n") {
			t.Fatalf("seed %d: %+v, then %+v", seed, a.stats, b.stats)
		}
	}
}
