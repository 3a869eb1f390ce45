// Package sim runs the real planner of placement/plan on a simulated cluster: stores with labels, room and bandwidth,
// shards with size and load, reports, operators that take time and may fail, all in virtual time and from one seed. It
// knows no network and no disk, and what a shard is there is not what the planner believes it to be until a report has said
// so. It is for tests and figures; what the driver would do about a change is told, faster, by plan.Simulate.
//
//	commands, load, growth -> truth: stores and shards --reports--> plan.View
//	                            ^                                     |
//	                            |  step by step                       v
//	                          running operators  <----------- plan.Planner.Round
//
// Not safe for concurrent use.
package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/btree"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// Options say how the simulated cluster behaves. The zero value of each field means its default.
type Options struct {
	// Seed of all chance.
	Seed uint64
	// Tick is the step of time (1 s): stores report, one step of each operator is taken, the planner has a round.
	Tick time.Duration
	// Bandwidth is the bytes per second that the snapshots of a store make, each way (32 MiB).
	Bandwidth uint64
	// SnapshotDelay passes before the first byte of a snapshot flows (1 s).
	SnapshotDelay time.Duration
	// Election is how long a shard is without leader once its leader's store is lost (3 s).
	Election time.Duration
	// FailOneIn makes one of so many steps of operators end the operator then and there, with what it has done left
	// behind; 0: none.
	FailOneIn int
	// NoDigests has stores send none, which saves the memory for what was reported last.
	NoDigests bool
	// Stopwatch is what TimedStep measures the planner with; by default the clock on the wall.
	Stopwatch func() time.Duration
	// Log takes one line for each thing that happens; nil: nobody listens.
	Log func(line string)
}

func (o Options) withDefaults() Options {
	set(&o.Tick, time.Second)
	set(&o.Bandwidth, 32<<20)
	set(&o.SnapshotDelay, time.Second)
	set(&o.Election, 3*time.Second)
	if o.Stopwatch == nil {
		began := time.Now()
		o.Stopwatch = func() time.Duration { return time.Since(began) }
	}
	return o
}

func set[T comparable](at *T, def T) {
	if *at == *new(T) {
		*at = def
	}
}

// Cluster is a simulated cluster with its planner.
type Cluster struct {
	opt Options
	cfg plan.Config
	rng *rand.Rand
	now time.Duration

	stores map[base.StoreID]*store
	order  []*store // by id
	shards map[base.ShardID]*shard
	byKey  *btree.BTreeG[*shard]
	next   base.ShardID

	view    *plan.View
	planner *plan.Planner
	last    *plan.Round
	took    time.Duration // by the last round, by the stopwatch
	// silent: until then there is no driver, and nobody hears the reports.
	silent time.Duration

	running []*running
	fills   []*running // snapshots of replicas that no operator is about
	nextOp  uint64
	leaders []election
	joint   map[base.ShardID]time.Duration // since when shards are between two configurations

	load   *workload
	growth []*growth

	stats Stats
	// faults are breaches of what must always hold.
	faults []string
}

// Stats counts what was done.
type Stats struct {
	Rounds   int
	Quiet    int // rounds since one last proposed something
	Proposed map[plan.OpKind]int
	Done     map[plan.OpKind]int
	Failed   map[plan.OpKind]int
	Bytes    uint64 // copied by snapshots
}

type election struct {
	at    time.Duration
	shard base.ShardID
}

// New returns an empty cluster.
func New(cfg plan.Config, opt Options) *Cluster {
	opt = opt.withDefaults()
	c := &Cluster{
		opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 1)), stores: map[base.StoreID]*store{},
		shards: map[base.ShardID]*shard{}, byKey: btree.NewG(64, func(a, b *shard) bool { return a.start() < b.start() }),
		joint: map[base.ShardID]time.Duration{}, next: 2, stats: newStats(), now: time.Hour,
	}
	c.SetConfig(cfg)
	c.Takeover(0)
	return c
}

func newStats() Stats {
	return Stats{Proposed: map[plan.OpKind]int{}, Done: map[plan.OpKind]int{}, Failed: map[plan.OpKind]int{}}
}

// SetConfig changes the settings of the planner.
func (c *Cluster) SetConfig(cfg plan.Config) { c.cfg = cfg.WithDefaults() }

// Config returns the settings of the planner.
func (c *Cluster) Config() plan.Config { return c.cfg }

// View is what the planner knows.
func (c *Cluster) View() *plan.View { return c.view }

// Now is the virtual time.
func (c *Cluster) Now() time.Duration { return c.now }

// Stats returns what was done since the start, or since ResetStats.
func (c *Cluster) Stats() Stats { return c.stats }

// ResetStats begins counting anew.
func (c *Cluster) ResetStats() { c.stats = newStats() }

// Faults returns breaches of what must always hold, oldest first.
func (c *Cluster) Faults() []string { return c.faults }

func (c *Cluster) fault(format string, args ...any) {
	if len(c.faults) < 100 {
		c.faults = append(c.faults, fmt.Sprintf("%s: ", c.clock())+fmt.Sprintf(format, args...))
	}
}

func (c *Cluster) clock() string { return (c.now - time.Hour).String() }

func (c *Cluster) logf(format string, args ...any) {
	if c.opt.Log != nil {
		c.opt.Log(fmt.Sprintf("%s: ", c.clock()) + fmt.Sprintf(format, args...))
	}
}

// Takeover puts a new driver in place of the old one after a while without any: it knows nothing but the records of the
// members and the operators that run, which are jobs of the meta shard. Leadership transfers are forgotten.
func (c *Cluster) Takeover(pause time.Duration) {
	c.silent = c.now + pause
	c.view, c.planner = plan.NewView(), plan.NewPlanner(c.silent)
	c.running = slices.DeleteFunc(c.running, func(r *running) bool { return !r.op.Kind.Job() })
	for _, s := range c.order {
		s.full = true
		c.member(s)
	}
}

// Run lets time pass.
func (c *Cluster) Run(d time.Duration) {
	for end := c.now + d; c.now < end; {
		c.Step()
	}
}

// Settle runs until no operator runs and a number of rounds proposed none, and reports whether that came within a time.
func (c *Cluster) Settle(rounds int, within time.Duration) bool {
	c.stats.Quiet = 0
	for end := c.now + within; c.now < end; {
		c.Step()
		if c.stats.Quiet >= rounds && len(c.running) == 0 {
			return true
		}
	}
	return false
}

// Step lets one tick pass.
func (c *Cluster) Step() {
	c.now += c.opt.Tick
	c.change()
	c.elect()
	c.execute()
	if c.now < c.silent {
		return
	}
	c.Report()
	c.Round()
}

// Round has the planner look at the view once and starts what it proposes.
func (c *Cluster) Round() {
	ops := make([]*plan.Operator, len(c.running))
	for i, r := range c.running {
		ops[i] = &r.op
	}
	began := c.opt.Stopwatch()
	round := c.planner.Round(c.view, c.cfg, c.now, ops)
	c.last, c.took = round, c.opt.Stopwatch()-began
	c.stats.Rounds++
	c.stats.Quiet++
	for _, op := range round.Ops {
		c.stats.Quiet = 0
		c.begin(op)
	}
	c.checkLimits()
}

// Last is what the last round came to, nil before the first.
func (c *Cluster) Last() *plan.Round { return c.last }

// Shards is the number of shards.
func (c *Cluster) Shards() int { return len(c.shards) }

// Running is the number of operators that run.
func (c *Cluster) Running() int { return len(c.running) }

// sortedShards returns the shards in the order of their ids.
func (c *Cluster) sortedShards() []*shard {
	out := make([]*shard, 0, len(c.shards))
	for _, sh := range c.shards {
		out = append(out, sh)
	}
	slices.SortFunc(out, func(a, b *shard) int { return cmp.Compare(a.id(), b.id()) })
	return out
}

// TimedStep is Step; it returns the time that the planner took, by the stopwatch.
func (c *Cluster) TimedStep() time.Duration {
	c.took = 0
	c.Step()
	return c.took
}
