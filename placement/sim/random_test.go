package sim_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
	"github.com/shardd/shardd/placement/sim"
)

var (
	seeds = flag.Int("seeds", 12, "random clusters to run")
	first = flag.Uint64("seed", 1, "the first seed")
	lines = flag.Int("lines", 60, "lines that are shown of a random cluster that failed")
)

// TestRandomClustersKeepTheirInvariantsAndComeToRest has things happen at random to random clusters. At no step may a
// shard have fewer healthy voters than before (nor than its rule wants, if it had more), two replicas on one node, or more
// work in flight than the settings allow; and once nothing more happens and all nodes are back, every shard must be as its
// rule says, replicas spread evenly, and the planner still.
func TestRandomClustersKeepTheirInvariantsAndComeToRest(t *testing.T) {
	n := *seeds
	if testing.Short() {
		n = min(n, 4)
	}
	for seed := *first; seed < *first+uint64(n); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { randomCluster(t, seed) })
	}
}

type chaos struct {
	t     *testing.T
	rng   *rand.Rand
	c     *sim.Cluster
	log   []string
	down  map[base.StoreID]bool
	slow  map[base.StoreID]bool
	drain map[base.StoreID]bool
	out   map[base.StoreID]bool // decommissioning
}

func randomCluster(t *testing.T, seed uint64) {
	x := &chaos{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), down: map[base.StoreID]bool{}, slow: map[base.StoreID]bool{},
		drain: map[base.StoreID]bool{}, out: map[base.StoreID]bool{},
	}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d; the last of what happened:\n%s", seed, strings.Join(x.log[max(0, len(x.log)-*lines):], "\n"))
		}
	}()
	opt := sim.Options{Seed: seed, Log: func(line string) { x.log = append(x.log, line) }}
	if x.rng.IntN(2) == 0 {
		opt.FailOneIn = 20 + x.rng.IntN(100)
	}
	cfg := plan.Config{SplitBytes: 64 << 20, Operators: 4 + x.rng.IntN(60), StoreSnapshots: 1 + x.rng.IntN(4)}
	x.c = sim.New(cfg, opt)
	for range 4 + x.rng.IntN(5) {
		x.addNode()
	}
	x.c.AddShards(5+x.rng.IntN(60), uint64(1+x.rng.IntN(60))<<20, func(int) []base.StoreID { return []base.StoreID{1, 2, 3} })
	for range 12 {
		what := x.event()
		x.log = append(x.log, "--- "+what)
		for range 1 + x.rng.IntN(8) {
			x.c.Run(time.Duration(1+x.rng.IntN(90)) * time.Second)
			x.check()
		}
		if t.Failed() {
			return
		}
	}
	x.log = append(x.log, "--- the end")
	for _, id := range x.c.Nodes() {
		x.c.Return(id)
		x.c.Drain(id, plan.DrainNone)
		x.c.SetSlow(id, false)
		x.c.Commission(id, plan.Active)
	}
	if !x.c.Settle(1500, 48*time.Hour) {
		t.Errorf("it does not come to rest; %d operators run", x.c.Running())
	}
	x.check()
	if w := x.c.Wrong(); len(w) > 0 {
		for _, id := range x.c.WrongShards() {
			t.Log(x.c.Show(id))
		}
		t.Errorf("at rest, but %s", strings.Join(w, "; "))
	}
	x.even()
}

func (x *chaos) check() {
	x.t.Helper()
	if f := x.c.Faults(); len(f) > 0 {
		x.t.Fatalf("%s", strings.Join(f, "\n"))
	}
	if err := x.c.Tiles(); err != nil {
		x.t.Fatal(err)
	}
	if err := x.c.View().Check(); err != nil {
		x.t.Fatal(err)
	}
}

// even checks that nodes that could hold the same hold about as much.
func (x *chaos) even() {
	x.t.Helper()
	if x.c.Config().Rules != nil {
		if _, ours := x.c.Config().Rules.(*rules.Planner); ours {
			return // what nodes may hold differs
		}
	}
	zones := map[string]int{}
	for _, id := range x.c.Nodes() {
		zones[x.c.Label(id, "zone")]++
	}
	for _, n := range zones {
		if n*len(zones) != len(x.c.Nodes()) {
			return // spread goes first: a zone with fewer nodes gives each of them more
		}
	}
	replicas, leaders := x.c.Spread()
	if replicas.Width() > 2 && replicas.Percent() > 5 {
		x.t.Errorf("replicas from %d to %d per node", replicas.Min, replicas.Max)
	}
	if leaders.Width() > 2 && leaders.Percent() > 5 {
		x.t.Errorf("leaders from %d to %d per node", leaders.Min, leaders.Max)
	}
}

func (x *chaos) addNode() base.StoreID {
	zone := string("abc"[x.rng.IntN(3)])
	return x.c.AddNode(map[string]string{"zone": zone, "host": fmt.Sprint(x.rng.Uint32())}, 0)
}

func (x *chaos) any() base.StoreID {
	ids := x.c.Nodes()
	return ids[x.rng.IntN(len(ids))]
}

// event makes one thing happen and says what.
func (x *chaos) event() string {
	id := x.any()
	switch x.rng.IntN(15) {
	case 0:
		return "added " + x.addNode().String()
	case 1, 2, 3:
		// Losing one at a time: what two at once break, no planner can mend.
		if len(x.down) > 0 || x.slow[id] {
			for d := range x.down {
				x.c.Return(d)
				delete(x.down, d)
				return d.String() + " is back"
			}
		}
		x.c.Lose(id)
		x.down[id] = true
		return "lost " + id.String()
	case 4:
		on := !x.drain[id]
		x.drain[id] = on
		x.c.Drain(id, map[bool]plan.Drain{true: plan.DrainReplicas, false: plan.DrainNone}[on])
		return fmt.Sprintf("drained %s: %t", id, on)
	case 5, 6:
		on := !x.out[id]
		x.out[id] = on
		x.c.Commission(id, map[bool]plan.Commission{true: plan.Decommissioning, false: plan.Active}[on])
		return fmt.Sprintf("decommissioning %s: %t", id, on)
	case 7:
		x.slow[id] = !x.slow[id]
		x.c.SetSlow(id, x.slow[id])
		return fmt.Sprintf("slow %s: %t", id, x.slow[id])
	case 8, 9:
		n, how := x.rng.IntN(40000), []string{"uniform", "zipf", "spot"}[x.rng.IntN(3)]
		must(x.t, x.c.SetLoad(float64(n), how, 0))
		return fmt.Sprintf("load of %d, %s", n, how)
	case 10:
		must(x.t, x.c.Grow(uint64(x.rng.IntN(2000))<<20, 3*time.Minute, []string{"uniform", "zipf", "spot"}[x.rng.IntN(3)]))
		return "growth"
	case 11:
		x.c.Churn(x.rng.Float64())
		return "churn"
	case 12:
		x.c.Takeover(time.Duration(x.rng.IntN(60)) * time.Second)
		return "takeover"
	}
	text := [...]string{
		"defaults: {}",
		"defaults: {replicas: 5}",
		"defaults: {spread: []}",
		"defaults: {leaders: {prefer: [zone=a]}}",
		"rules: [{name: x, prefix: \"0x40\", replicas: 4, split-size: 16MiB}, {name: m, shards: system, replicas: 5}]",
		"defaults: {learners: 1, constraints: {preferred: [zone=b]}}",
	}[x.rng.IntN(6)]
	if text == "defaults: {replicas: 5}" || strings.Contains(text, "learners") || strings.Contains(text, "system") {
		for len(x.c.Nodes()) < 6 {
			x.addNode()
		}
	}
	set, err := rules.Parse("zones", []byte(text))
	must(x.t, err)
	cfg := x.c.Config()
	cfg.Rules = rules.NewPlanner(set)
	x.c.SetConfig(cfg)
	return "rules " + text
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
