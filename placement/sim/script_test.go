package sim_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/config"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
	"github.com/shardd/shardd/placement/sim"
)

// TestScripts runs the scripts of testdata. Each is one cluster from the beginning; a breach of an invariant fails it at
// the command during which it showed.
//
//	new [seed=N] [fail-one-in=N] [bandwidth=SIZE] [operators=N] [split-size=SIZE] [log]
//	add-node [count=N] [capacity=SIZE] [LABEL=VALUE ...]      prints the ids
//	lose-node nX | return nX | drain nX [leaders|replicas|off] | decommission nX | recommission nX | remove nX
//	lose-zone LABEL=VALUE | return-zone LABEL=VALUE | slow nX [off]
//	shards n=N size=SIZE on=nX,nY,...       made with all replicas there; together with the meta shard
//	load requests=N spread=uniform|zipf|spot [every=D] | grow bytes=SIZE within=D spread=... | churn keep=PERCENT
//	zones                                   (input: a zones file)
//	takeover [pause=D]                      another driver
//	run D | settle [within=D] [rounds=N]    prints which kinds of operators were started; the log has the numbers
//	expect-spread within=N | percent=N      of replicas and leaders per node
//	expect-spread label=LABEL               prints in how many of its values shards have replicas
//	expect-empty nX [of-leaders] | expect-shards [min=N] [max=N]
//	expect-load percent=N                   no node has more load than so many percent above the mean
//	expect-quiet rounds=N                   no operator for so many rounds
//	expect-well | expect-wrong              every shard is as its rule says, or what is not
//	print nodes | shards (in the log) | needs | wrong
//
// What an expect or a settle asks for must be so, whatever the golden text says. After a change of the planner that alters
// which kinds of operators a step needs, "go test ./placement/sim -run TestScripts -rewrite" writes that text anew.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, filepath.Join("testdata"), func(t *testing.T, path string) {
		s := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return s.run(t, d) })
	})
}

type script struct {
	c   *sim.Cluster
	out strings.Builder
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	s.out.Reset()
	s.do(t, d)
	if s.c != nil {
		if f := s.c.Faults(); len(f) > 0 {
			t.Fatalf("%s: %s", d.Pos, strings.Join(f, "\n"))
		}
		if s.c.Shards() > 0 {
			if err := s.c.Tiles(); err != nil {
				t.Fatalf("%s: %v", d.Pos, err)
			}
		}
		if err := s.c.View().Check(); err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
	}
	return s.out.String()
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.out, format, args...) }

// args reads the arguments of a command; it fails on what it does not know.
type args struct {
	t     *testing.T
	d     *datadriven.TestData
	words []string
	named map[string]string
}

func read(t *testing.T, d *datadriven.TestData) args {
	a := args{t: t, d: d, named: map[string]string{}}
	for _, arg := range d.CmdArgs {
		if len(arg.Vals) == 0 {
			a.words = append(a.words, arg.Key)
			continue
		}
		a.named[arg.Key] = strings.Join(arg.Vals, ",")
	}
	return a
}

func (a args) fail(format string, args ...any) {
	a.t.Helper()
	a.t.Fatalf("%s: %s", a.d.Pos, fmt.Sprintf(format, args...))
}

func (a args) take(name, def string) string {
	v, ok := a.named[name]
	if !ok {
		return def
	}
	delete(a.named, name)
	return v
}

func (a args) number(name string, def int) int {
	n, err := strconv.Atoi(a.take(name, strconv.Itoa(def)))
	if err != nil {
		a.fail("%v", err)
	}
	return n
}

func (a args) size(name string) uint64 {
	n, err := config.ParseBytes(a.take(name, "0"))
	if err != nil {
		a.fail("%v", err)
	}
	return uint64(n)
}

func (a args) duration(name, def string) time.Duration {
	d, err := time.ParseDuration(a.take(name, def))
	if err != nil {
		a.fail("%v", err)
	}
	return d
}

func (a args) word(i int) string {
	if i >= len(a.words) {
		return ""
	}
	return a.words[i]
}

func (a args) node(i int) base.StoreID { return a.nodes(a.word(i))[0] }

func (a args) nodes(list string) (out []base.StoreID) {
	for _, w := range strings.Split(list, ",") {
		var id uint64
		if _, err := fmt.Sscanf(w, "n%d", &id); err != nil {
			a.fail("%q is no node", w)
		}
		out = append(out, base.StoreID(id))
	}
	return out
}

// label takes the one LABEL=VALUE that is left.
func (a args) label() (k, v string) {
	for k, v = range a.named {
		delete(a.named, k)
		return k, v
	}
	a.fail("want LABEL=VALUE")
	return "", ""
}

func (s *script) do(t *testing.T, d *datadriven.TestData) {
	a := read(t, d)
	c := s.c
	switch d.Cmd {
	case "new":
		opt := sim.Options{
			Seed: uint64(a.number("seed", 1)), FailOneIn: a.number("fail-one-in", 0), Bandwidth: a.size("bandwidth"),
		}
		if a.word(0) == "log" {
			opt.Log = func(line string) { t.Log(line) }
		}
		s.c = sim.New(plan.Config{Operators: a.number("operators", 0), SplitBytes: a.size("split-size")}, opt)
	case "add-node":
		n, capacity := a.number("count", 1), a.size("capacity")
		labels := map[string]string{}
		for len(a.named) > 0 {
			k, v := a.label()
			labels[k] = v
		}
		var ids []string
		for range n {
			ids = append(ids, c.AddNode(labels, capacity).String())
		}
		s.printf("%s\n", strings.Join(ids, " "))
	case "lose-node":
		c.Lose(a.node(0))
	case "return":
		c.Return(a.node(0))
	case "lose-zone", "return-zone":
		for _, id := range c.With(a.label()) {
			if d.Cmd == "lose-zone" {
				c.Lose(id)
			} else {
				c.Return(id)
			}
		}
	case "drain":
		c.Drain(a.node(0), map[string]plan.Drain{"leaders": plan.DrainLeaders, "": plan.DrainReplicas,
			"replicas": plan.DrainReplicas, "off": plan.DrainNone}[a.word(1)])
	case "decommission":
		c.Commission(a.node(0), plan.Decommissioning)
	case "recommission":
		c.Commission(a.node(0), plan.Active)
	case "remove":
		c.Commission(a.node(0), plan.Removed)
	case "slow":
		c.SetSlow(a.node(0), a.word(1) != "off")
	case "shards":
		on := a.nodes(a.take("on", "n1"))
		c.AddShards(a.number("n", 1), a.size("size"), func(int) []base.StoreID { return on })
	case "load":
		if err := c.SetLoad(float64(a.number("requests", 0)), a.take("spread", "uniform"), a.duration("every", "0s")); err != nil {
			a.fail("%v", err)
		}
	case "grow":
		if err := c.Grow(a.size("bytes"), a.duration("within", "1m"), a.take("spread", "uniform")); err != nil {
			a.fail("%v", err)
		}
	case "churn":
		c.Churn(float64(a.number("keep", 50)) / 100)
	case "zones":
		set, err := rules.Parse("zones.yaml", []byte(d.Input))
		if err != nil {
			a.fail("%v", err)
		}
		cfg := c.Config()
		cfg.Rules = rules.NewPlanner(set)
		c.SetConfig(cfg)
	case "takeover":
		c.Takeover(a.duration("pause", "0s"))
	case "run":
		dur, err := time.ParseDuration(a.word(0))
		if err != nil {
			a.fail("%v", err)
		}
		c.ResetStats()
		c.Run(dur)
		s.done(t)
	case "settle":
		began := c.Now()
		c.ResetStats()
		rounds := a.number("rounds", 100)
		if !c.Settle(rounds, a.duration("within", "2h")) {
			t.Errorf("%s: it does not come to rest", d.Pos)
		}
		t.Logf("%s until the last operator began", c.Now()-began-time.Duration(c.Stats().Quiet)*time.Second)
		s.done(t)
	case "expect-spread":
		s.spread(a)
	case "expect-quiet":
		c.ResetStats()
		for range a.number("rounds", 100) {
			c.Step()
		}
		if c.Stats().Quiet < c.Stats().Rounds {
			t.Errorf("%s: it is not quiet", d.Pos)
		}
		s.done(t)
	case "expect-well", "expect-wrong":
		wrong := c.Wrong()
		if (len(wrong) > 0) != (d.Cmd == "expect-wrong") {
			t.Errorf("%s: wrong is %q", d.Pos, wrong)
		}
		for _, w := range wrong {
			s.printf("%s\n", w)
		}
	case "expect-empty":
		for _, n := range c.Counts() {
			if n.Node == a.node(0) && (n.Leaders > 0 || n.Replicas > 0 && a.word(1) != "of-leaders") {
				t.Errorf("%s: %s has %d replicas, %d leaders", d.Pos, n.Node, n.Replicas, n.Leaders)
			}
		}
	case "expect-shards":
		if lo, hi := a.number("min", 1), a.number("max", 1<<30); c.Shards() < lo || c.Shards() > hi {
			t.Errorf("%s: %d shards", d.Pos, c.Shards())
		}
	case "expect-load":
		// A single key can carry more than a node's share, so that the percent cannot be small.
		var loads []int
		for _, n := range c.Counts() {
			loads = append(loads, int(n.Requests))
		}
		r := sim.RangeOf(loads)
		t.Logf("load from %d to %d requests per second", r.Min, r.Max)
		if most := a.number("percent", 0); float64(r.Max) > r.Mean*float64(100+most)/100 {
			t.Errorf("%s: load from %d to %d, %.0f in the mean", d.Pos, r.Min, r.Max, r.Mean)
		}
	case "print":
		s.print(t, a.word(0))
	default:
		a.fail("unknown command %s", d.Cmd)
	}
	if len(a.named) > 0 {
		a.fail("unknown arguments %v", a.named)
	}
}

// done prints which kinds of operators were done; how many is for the log, as it changes with every change of the planner.
func (s *script) done(t *testing.T) {
	st := s.c.Stats()
	var did []string
	for k := plan.OpMove; k <= plan.OpTransfer; k++ {
		if st.Proposed[k] == 0 && st.Done[k] == 0 && st.Failed[k] == 0 {
			continue
		}
		did = append(did, k.String())
		t.Logf("%s: %d proposed, %d done, %d failed", k, st.Proposed[k], st.Done[k], st.Failed[k])
	}
	if len(did) == 0 {
		did = []string{"no operator"}
	}
	s.printf("%s\n", strings.Join(did, ", "))
}

func (s *script) spread(a args) {
	if label := a.take("label", ""); label != "" {
		s.printf("%s\n", s.c.Zones(label))
		return
	}
	within, percent := a.number("within", -1), a.number("percent", -1)
	replicas, leaders := s.c.Spread()
	for i, r := range []sim.Range{replicas, leaders} {
		name := [...]string{"replicas", "leaders"}[i]
		if within >= 0 && r.Width() > within || percent >= 0 && r.Percent() > float64(percent) && r.Width() > 2 {
			a.t.Errorf("%s: %s from %d to %d", a.d.Pos, name, r.Min, r.Max)
		}
		a.t.Logf("%s from %d to %d", name, r.Min, r.Max)
	}
}

// print shows numbers in the log, and what is wrong in the output.
func (s *script) print(t *testing.T, what string) {
	switch what {
	case "nodes":
		for _, n := range s.c.Counts() {
			t.Logf("%s %s: %d replicas, %d leaders, %d MiB, %d/s", n.Node, s.c.Describe(n.Node), n.Replicas, n.Leaders,
				n.Bytes>>20, n.Requests)
		}
	case "shards":
		t.Logf("%d shards", s.c.Shards())
	case "wrong":
		for _, id := range s.c.WrongShards() {
			s.printf("%s\n", s.c.Show(id))
		}
	case "needs":
		needs := s.c.View().Needs()
		for _, k := range slices.Sorted(maps.Keys(needs)) {
			s.printf("%s\n", k)
		}
	}
}
