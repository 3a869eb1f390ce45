package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
)

// splitMergeRounds is the result of many rounds of {split, write, merge}; a run that was interrupted goes on after the
// last judged group of rounds.
type splitMergeRounds struct {
	Command string             `json:"command"`
	Machine ycsb.Machine       `json:"machine"`
	Started time.Time          `json:"started"`
	Nodes   int                `json:"nodes"`
	Shards  int                `json:"shards"`
	Clients int                `json:"clients"`
	Groups  []splitMergeJudged `json:"groups"`
}

// splitMergeJudged is a few rounds under one load, judged at their end.
type splitMergeJudged struct {
	Group      int            `json:"group"`
	Seed       uint64         `json:"seed"`
	Rounds     int            `json:"rounds"`
	Splits     int            `json:"splits"`
	Merges     int            `json:"merges"`
	Failed     int            `json:"jobs_failed"` // ended failed, the key space whole
	Transfers  int            `json:"transfers"`
	Cuts       int            `json:"cuts"`
	Kills      int            `json:"kills"`
	Seconds    float64        `json:"seconds"`
	SplitMS    float64        `json:"split_median_ms"`
	MergeMS    float64        `json:"merge_median_ms"`
	Operations int            `json:"operations"`
	Acked      int            `json:"acknowledged_writes"`
	Errors     map[string]int `json:"errors,omitempty"`
}

func (f *splitMergeRounds) rounds() (n int) {
	for _, g := range f.Groups {
		n += g.Rounds
	}
	return n
}

const roundsPerGroup = 10

// Shards are split and merged back, round after round, while clients write and read on both sides and leaderships move,
// links are cut and nodes are killed: the shards tile the key space, scans are exact, histories linearizable.
func TestRoundsOfSplitAndMergeUnderFaults(t *testing.T) {
	const shards, roamers, nodes = 6, 18, 3
	rounds := scale(3, 12, 300)
	f := &splitMergeRounds{Machine: ycsb.DescribeMachine(), Nodes: nodes, Shards: shards, Clients: shards + roamers,
		Started: time.Now().UTC().Truncate(time.Second),
		Command: "SHARDD_E2E=long go test -count 1 -timeout 4h -v -run " + t.Name() + " ./e2e"}
	path := longResult(t, "splitmerge", "rounds.json")
	if path != "" {
		readResult(t, path, f)
	}
	c := harness.New(t, binaries(t), nodes)
	var links []*harness.Proxy
	for i, n := range c.Nodes {
		n.Args = append(n.Args, "--memtable", "16MiB", "--cache", "32MiB", "--entry-cache", "32MiB")
		links = append(links, c.PutBehindProxy(i))
	}
	for i := range nodes {
		c.Start(i)
	}
	c.InitOn(splitsOf(shards), 0, 1, 2)
	db := c.DB(client.WithTimeout(20 * time.Second))
	for i := range shards {
		fill(t, db, i, mib/2)
	}
	l := newLoadOf(t, db, shards, roamers)
	for group := len(f.Groups) + 1; f.rounds() < rounds && !t.Failed(); group++ {
		g := splitMergeGroup(c, links, l, group, min(roundsPerGroup, rounds-f.rounds()))
		t.Logf("group %d: %+v", group, g)
		f.Groups = append(f.Groups, g)
		if path != "" && !t.Failed() {
			putResult(t, path, f)
		}
	}
	c.WaitHealthy()
	c.Verify()
	for i := range shards {
		checkFill(t, db, i, mib/2)
	}
	c.StopAll()
	if err := c.CheckStores(); err != nil {
		t.Error(err)
	}
}

// longResult is where a long run keeps its result; empty in any other run.
func longResult(t *testing.T, dir, name string) string {
	t.Helper()
	if scale(0, 0, 1) == 0 {
		return ""
	}
	root, err := harness.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(makeDir(t, filepath.Join(root, "docs", "results", dir)), name)
}

func splitMergeGroup(c *harness.Cluster, links []*harness.Proxy, l *load, group, rounds int) splitMergeJudged {
	t := l.t
	t.Helper()
	g := splitMergeJudged{Group: group, Seed: rand.Uint64(), Errors: map[string]int{}}
	t.Logf("group %d with seed %d", group, g.Seed)
	rnd := rand.New(rand.NewPCG(g.Seed, 0))
	before, from := l.counts(), time.Now()
	stop := l.run(group)
	l.waitWrites("before the rounds")
	var splits, merges []time.Duration
	for g.Rounds < rounds && !t.Failed() {
		// Split inside the keys that the load uses: ledger and registers of one prefix fall on either side.
		prefix := rnd.IntN(l.shards)
		key := fmt.Appendf(nil, "%02d/reg/%d/%d", prefix, group, rnd.IntN(registers))
		if rnd.IntN(3) == 0 {
			key = fmt.Appendf(nil, "%02d/led/%d", prefix, rnd.IntN(l.shards+l.roamers))
		}
		shard := c.ShardOf(key)
		id, err := c.Begin(t.Context(), harness.Split(shard.GetShardId(), key))
		if err != nil {
			t.Fatalf("begin to split s%d at %q: %v", shard.GetShardId(), key, err)
		}
		began := time.Now()
		mend := g.disturb(c, links, l, rnd, shard)
		ok := g.await(c, id, "split")
		if ok {
			g.Splits++
			splits = append(splits, time.Since(began))
		}
		mend()
		l.waitWrites("after a split")
		c.WaitTiles()
		left := c.ShardOf(fmt.Appendf(nil, "%02d", prefix))
		for right := harness.RightOf(c.Shards(), left); right != nil && inPrefix(right, prefix) && !t.Failed(); {
			id, err := c.Begin(t.Context(), harness.Merge(left.GetShardId(), right.GetShardId()))
			if err != nil {
				t.Fatalf("begin to merge s%d into s%d: %v", right.GetShardId(), left.GetShardId(), err)
			}
			began := time.Now()
			mend := g.disturb(c, links, l, rnd, right)
			if g.await(c, id, "merge") {
				g.Merges++
				merges = append(merges, time.Since(began))
			}
			mend()
			l.waitWrites("after a merge")
			c.WaitTiles()
			left = c.ShardOf(fmt.Appendf(nil, "%02d", prefix))
			right = harness.RightOf(c.Shards(), left)
		}
		g.Rounds++
	}
	stop()
	g.Seconds = time.Since(from).Seconds()
	g.Operations = l.judge(group)
	after := l.counts()
	g.Acked = after.acked - before.acked
	for class, n := range after.classes {
		if d := n - before.classes[class]; d > 0 {
			g.Errors[class] = d
		}
	}
	if len(splits) > 0 {
		g.SplitMS = float64(quantile(splits, 0.5).Microseconds()) / 1000
	}
	if len(merges) > 0 {
		g.MergeMS = float64(quantile(merges, 0.5).Microseconds()) / 1000
	}
	return g
}

// inPrefix reports whether a shard begins inside the keys of one prefix of splitsOf.
func inPrefix(s *sharddv1.ShardInfo, prefix int) bool {
	p := fmt.Sprintf("%02d", prefix)
	start := s.GetStart()
	return len(start) > 1+len(p) && string(start[1:1+len(p)]) == p
}

// disturb hurts the cluster while a job runs: it moves a leadership, cuts a link, kills a node, or does nothing. The
// returned func mends what it broke.
func (g *splitMergeJudged) disturb(c *harness.Cluster, links []*harness.Proxy, l *load, rnd *rand.Rand,
	shard *sharddv1.ShardInfo) (mend func()) {
	t := l.t
	t.Helper()
	nothing := func() {}
	switch p := rnd.IntN(10); {
	case p < 3:
		to := shard.GetReplicas()[rnd.IntN(len(shard.GetReplicas()))].GetNodeId()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		// It may be refused: the shard is being split, merged away, or led there already.
		if _, err := c.Admin.TransferLeader(ctx, shard.GetShardId(), to); err == nil {
			g.Transfers++
		}
		return nothing
	case p < 5:
		link := links[rnd.IntN(len(links))]
		link.Cut()
		g.Cuts++
		l.waitWrites("with a link cut")
		return link.Mend
	case p < 6:
		victim := rnd.IntN(len(c.Nodes))
		c.Kill(victim)
		g.Kills++
		l.waitWrites("with a node killed")
		return func() { c.Start(victim) }
	}
	return nothing
}

// await waits for a job; one that ends failed is allowed now and then (a link was cut, a leader was killed), since the
// key space is whole whatever comes of it.
func (g *splitMergeJudged) await(c *harness.Cluster, id uint64, what string) bool {
	j, err := c.Await(c.T().Context(), id, 2*harness.Patience)
	if err != nil {
		c.T().Fatalf("%s j%d has not ended: %v", what, id, err)
	}
	if j.GetState() == admin.JobDone {
		return true
	}
	c.T().Logf("%s: %s", what, harness.Steps(j))
	if g.Failed++; g.Failed > roundsPerGroup {
		c.T().Fatalf("%d jobs of the group failed", g.Failed)
	}
	return false
}
