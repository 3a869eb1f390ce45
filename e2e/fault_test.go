package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// roundResult is what one round of a fault under load showed.
type roundResult struct {
	Round      int            `json:"round"`
	Victim     int            `json:"victim"`
	Leaders    int            `json:"leaders_of_victim"`
	Operations int            `json:"operations"`
	Acked      int            `json:"acknowledged_writes"`
	Errors     map[string]int `json:"errors,omitempty"`
	// Longest time without an acknowledged write: of the median, the 90th percentile and the worst of the 64 shards.
	GapP50MS float64 `json:"gap_p50_ms"`
	GapP90MS float64 `json:"gap_p90_ms"`
	GapMaxMS float64 `json:"gap_max_ms"`
}

// results is the file of a long run.
type results struct {
	Test    string        `json:"test"`
	Command string        `json:"command"`
	Machine ycsb.Machine  `json:"machine"`
	Started time.Time     `json:"started"`
	Nodes   int           `json:"nodes"`
	Shards  int           `json:"shards"`
	Clients int           `json:"clients"`
	WorstMS float64       `json:"worst_gap_ms"`
	Rounds  []roundResult `json:"rounds"`
}

// newCluster starts three nodes with 64 shards.
func newCluster(t *testing.T) *harness.Cluster {
	t.Helper()
	c := harness.New(t, binaries(t), 3)
	c.StartAll()
	c.Init(shardSplits())
	return c
}

// faultRound runs load, lets fault hurt the node with most leaders, waits until every shard takes writes again, mends
// the node, and judges the history.
func faultRound(c *harness.Cluster, l *load, round int, fault, mend func(victim int)) roundResult {
	l.t.Helper()
	c.WaitHealthy()
	stop := l.run(round)
	l.waitWrites("before the fault")
	victim, leaders := c.Busiest()
	before := l.counts()
	l.resetGaps()
	fault(victim)
	l.waitWrites("after the fault")
	gaps := l.gaps()
	mend(victim)
	l.waitWrites("after the node is back")
	stop()
	r := roundResult{Round: round, Victim: victim, Leaders: leaders, Operations: l.judge(round)}
	after := l.counts()
	r.Acked, r.Errors = after.acked-before.acked, map[string]int{}
	for class, n := range after.classes {
		if d := n - before.classes[class]; d > 0 {
			r.Errors[class] = d
		}
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r.GapP50MS, r.GapP90MS, r.GapMaxMS = ms(quantile(gaps, 0.5)), ms(quantile(gaps, 0.9)), ms(slices.Max(gaps))
	l.t.Logf("round %d: node %d with %d leaders; longest write gap of a shard: median %.0f ms, p90 %.0f ms, "+
		"worst %.0f ms; %d operations, %d acknowledged writes, errors %v",
		round, victim, leaders, r.GapP50MS, r.GapP90MS, r.GapMaxMS,
		r.Operations, r.Acked, r.Errors)
	return r
}

type counts struct {
	acked   int
	classes map[string]int
}

func (l *load) counts() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return counts{acked: l.mu.acked, classes: maps.Clone(l.mu.classes)}
}

func TestKillingTheBusiestNodeLosesNothing(t *testing.T) {
	c := newCluster(t)
	l := newLoad(t, c.DB(client.WithTimeout(20*time.Second)))
	file := openResults(t, "kill-leader")
	for round := len(file.Rounds) + 1; round <= scale(1, 4, 60) && !t.Failed(); round++ {
		file.add(faultRound(c, l, round, c.Kill, c.Start))
	}
	// All nodes at once, as by a power cut: what was acknowledged is on the disks of a majority.
	for i := range c.Nodes {
		c.Kill(i)
	}
	c.StartAll()
	c.WaitHealthy()
	l.compareLedger()
	file.finish()
}

func TestAPausedLeaderNeitherBlocksNorLies(t *testing.T) {
	c := newCluster(t)
	l := newLoad(t, c.DB(client.WithTimeout(20*time.Second)))
	file := openResults(t, "pause-leader")
	for round := len(file.Rounds) + 1; round <= scale(1, 2, 30) && !t.Failed(); round++ {
		file.add(faultRound(c, l, round, c.Pause, c.Resume))
	}
	file.finish()
}

func TestAFullRestartUnderLoadLosesNothing(t *testing.T) {
	c := newCluster(t)
	l := newLoad(t, c.DB(client.WithTimeout(20*time.Second)))
	stop := l.run(1)
	l.waitWrites("before the restart")
	for i := range c.Nodes {
		c.Kill(i)
	}
	c.StartAll()
	l.waitWrites("after all nodes were killed and started")
	stop()
	l.judge(1)

	// Once more the gentle way: every node ends with 0, within its time.
	stop = l.run(2)
	l.waitWrites("before the rolling restart")
	for i, n := range c.Nodes {
		code, err := n.Proc.Stop(harness.Patience)
		if err != nil || code != 0 {
			t.Fatalf("graceful stop of node %d: exit code %d, %v", i, code, err)
		}
		l.waitWrites("while a node is down")
		c.Start(i)
		c.WaitHealthy()
	}
	stop()
	l.judge(2)
}

func TestAClusterWithoutAMajorityRefusesAndRecovers(t *testing.T) {
	c := newCluster(t)
	db := c.DB()
	ctx := t.Context()
	if _, err := db.All().Put(ctx, []byte("00/k"), []byte("before")); err != nil {
		t.Fatal(err)
	}
	c.Kill(1)
	c.Kill(2)
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err := db.All().Put(short, []byte("00/k"), []byte("lonely"))
	if !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrAmbiguous) &&
		!errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a write without a majority: %v", err)
	}
	c.Start(1)
	c.Until("writes with two of three nodes", func(ctx context.Context) error {
		_, err := db.All().Put(ctx, []byte("00/k"), []byte("after"))
		return err
	})
	v, err := db.All().Get(ctx, []byte("00/k"))
	if err != nil || string(v.Bytes) != "after" {
		t.Fatalf("read %q, %v", v.Bytes, err)
	}
	c.Start(2)
	c.WaitHealthy()
}

// resultFile collects the rounds of a long run, so that one that was interrupted goes on. Other runs write nothing.
type resultFile struct {
	results
	t    *testing.T
	path string // empty: nothing is written
}

func openResults(t *testing.T, name string) *resultFile {
	t.Helper()
	f := &resultFile{t: t, results: results{Test: t.Name(), Machine: ycsb.DescribeMachine(), Nodes: 3, Shards: shards,
		Clients: shards + roamers, Started: time.Now().UTC().Truncate(time.Second),
		Command: "SHARDD_E2E=long go test -timeout 4h -run " + t.Name() + " ./e2e"}}
	if os.Getenv("SHARDD_E2E") != "long" {
		return f
	}
	root, err := harness.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	f.path = filepath.Join(root, "docs", "results", name+".json")
	b, err := os.ReadFile(f.partial())
	if errors.Is(err, fs.ErrNotExist) {
		return f
	}
	if err == nil {
		err = json.Unmarshal(b, &f.results)
	}
	if err != nil {
		t.Fatalf("go on from %s: %v (remove it to start over)", f.partial(), err)
	}
	t.Logf("going on after %d rounds", len(f.Rounds))
	return f
}

func (f *resultFile) partial() string { return f.path + ".partial" }

func (f *resultFile) add(r roundResult) {
	f.Rounds = append(f.Rounds, r)
	f.WorstMS = max(f.WorstMS, r.GapMaxMS)
	if f.path == "" || f.t.Failed() {
		return
	}
	b, err := json.MarshalIndent(f.results, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(f.path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(f.partial(), append(b, '\n'), 0o644)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *resultFile) finish() {
	if f.path == "" || f.t.Failed() {
		return
	}
	if err := os.Rename(f.partial(), f.path); err != nil {
		f.t.Fatal(err)
	}
}
