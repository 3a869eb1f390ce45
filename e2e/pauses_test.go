package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/e2e/harness"
)

// leaseLength is the default of the time for which stores promise each other support.
const leaseLength = 800 * time.Millisecond

// leaderPauses is the result of many pauses of leaders; a run that was interrupted goes on after the last judged group.
type leaderPauses struct {
	Command string        `json:"command"`
	Machine ycsb.Machine  `json:"machine"`
	Started time.Time     `json:"started"`
	Nodes   int           `json:"nodes"`
	Shards  int           `json:"shards"`
	Clients int           `json:"clients"`
	LeaseMS float64       `json:"lease_ms"`
	Groups  []pausesOfOne `json:"groups"`
}

// pausesOfOne is a few pauses under one load, judged at their end.
type pausesOfOne struct {
	Group      int            `json:"group"`
	Seed       uint64         `json:"seed"`
	PausesMS   []float64      `json:"pauses_ms"`
	Seconds    float64        `json:"seconds"`
	Operations int            `json:"operations"`
	Acked      int            `json:"acknowledged_writes"`
	LeaseReads int            `json:"lease_reads"` // answered without asking anybody, on all nodes
	Errors     map[string]int `json:"errors,omitempty"`
	// Longest time without an acknowledged write, of the median and of the worst shard.
	GapP50MS float64 `json:"gap_p50_ms"`
	GapMaxMS float64 `json:"gap_max_ms"`
}

func (f *leaderPauses) pauses() (n int) {
	for _, g := range f.Groups {
		n += len(g.PausesMS)
	}
	return n
}

func (f *leaderPauses) leaseReads() (n int) {
	for _, g := range f.Groups {
		n += g.LeaseReads
	}
	return n
}

// Leaders are stopped for half a lease to five leases at random points of a load, as by a virtual machine that is
// frozen. Whoever wakes up must not answer from what it knew: histories are linearizable, and nothing acknowledged is
// lost. Clients that have heard of the new leaders work beside ones that go on asking the old ones.
func TestAPausedLeaderAnswersNothingStale(t *testing.T) {
	const shards, roamers, nodes, perGroup = 8, 24, 3, 10
	pauses := scale(2, 10, 200)
	f := &leaderPauses{Machine: ycsb.DescribeMachine(), Nodes: nodes, Shards: shards, Clients: shards + roamers,
		LeaseMS: float64(leaseLength.Milliseconds()), Started: time.Now().UTC().Truncate(time.Second),
		Command: "SHARDD_E2E=long go test -count 1 -timeout 2h -v -run " + t.Name() + " ./e2e"}
	path := longResult(t, "pauses", "pauses.json")
	if path != "" && readResult(t, path, f) {
		t.Logf("going on after %d pauses", f.pauses())
	}
	if f.pauses() >= pauses {
		return
	}
	c := harness.New(t, binaries(t), nodes)
	c.StartAll()
	c.Init(splitsOf(shards))
	l := newLoadOf(t, c.DB(), shards, roamers)
	for range 3 { // each with routes of its own
		l.dbs = append(l.dbs, c.DB())
	}
	l.timeout = leaseLength // so that clients go on to the next leader while the last one is stopped
	for group := len(f.Groups) + 1; f.pauses() < pauses && !t.Failed(); group++ {
		g := pauseGroup(c, l, group, min(perGroup, pauses-f.pauses()))
		t.Logf("group %d: %+v", group, g)
		f.Groups = append(f.Groups, g)
		if path != "" && !t.Failed() {
			putResult(t, path, f)
		}
	}
	if f.leaseReads() == 0 {
		t.Error("no read was answered by a lease: the pauses show nothing about leases")
	}
	c.WaitHealthy()
	c.StopAll()
	if err := c.CheckStores(); err != nil {
		t.Error(err)
	}
}

func pauseGroup(c *harness.Cluster, l *load, group, pauses int) pausesOfOne {
	t := l.t
	t.Helper()
	g := pausesOfOne{Group: group, Seed: rand.Uint64(), Errors: map[string]int{}}
	t.Logf("group %d with seed %d", group, g.Seed)
	rnd := rand.New(rand.NewPCG(g.Seed, 0))
	c.WaitHealthy()
	before, leased, from := l.counts(), leaseReads(t, c), time.Now()
	stop := l.run(group)
	l.waitWrites("before the pauses")
	l.resetGaps()
	wait := func(d time.Duration) { // not for a condition: for a random point of the load
		select {
		case <-time.After(d):
		case <-t.Context().Done():
		}
	}
	for len(g.PausesMS) < pauses && !t.Failed() {
		wait(time.Duration(rnd.Int64N(int64(leaseLength / 2))))
		victim := pickLeader(c, rnd)
		// From 0.5 to 5 leases, short ones as often as long ones.
		length := time.Duration(0.5 * math.Pow(10, rnd.Float64()) * float64(leaseLength))
		c.Pause(victim)
		wait(length)
		c.Resume(victim)
		g.PausesMS = append(g.PausesMS, float64(length.Milliseconds()))
		if rnd.IntN(2) == 0 {
			l.waitWrites(fmt.Sprintf("after node %d was paused for %s", victim, length))
		}
	}
	l.waitWrites("after the pauses")
	gaps := l.gaps()
	stop()
	g.Seconds = time.Since(from).Seconds()
	g.LeaseReads = leaseReads(t, c) - leased
	g.Operations = l.judge(group)
	after := l.counts()
	g.Acked = after.acked - before.acked
	for class, n := range after.classes {
		if d := n - before.classes[class]; d > 0 {
			g.Errors[class] = d
		}
	}
	g.GapMaxMS = float64(slices.Max(gaps).Microseconds()) / 1000
	g.GapP50MS = float64(quantile(gaps, 0.5).Microseconds()) / 1000
	return g
}

// leaseReads is how many reads all nodes have answered by a lease.
func leaseReads(t *testing.T, c *harness.Cluster) int {
	t.Helper()
	var sum float64
	for _, n := range c.Nodes {
		m := scrape(t, n.HTTP)
		sum += m["shardd_shard_lease_reads_total"] + m["shardd_shard_lease_index_reads_total"]
	}
	return int(sum)
}

// pickLeader returns a node that leads something, the likelier the more it leads.
func pickLeader(c *harness.Cluster, rnd *rand.Rand) (node int) {
	var led []int
	c.Until("a leader", func(context.Context) error {
		led = c.Leaders()
		if slices.Max(led) == 0 {
			return fmt.Errorf("nobody leads: %v", led)
		}
		return nil
	})
	sum := 0
	for _, n := range led {
		sum += n
	}
	at := rnd.IntN(sum)
	for at >= led[node] {
		at -= led[node]
		node++
	}
	return node
}
