package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// growth is how a cluster that begins as one node with one empty shard comes to rest as five nodes.
type growth struct {
	Command    string       `json:"command"`
	Machine    ycsb.Machine `json:"machine"`
	Nodes      int          `json:"nodes"`
	SplitMiB   int          `json:"split_size_mib"`
	LoadedMiB  int          `json:"loaded_mib"`
	LoadSec    float64      `json:"load_seconds"`
	LoadErrors int64        `json:"load_errors"`
	RestSec    float64      `json:"seconds_from_load_to_rest"` // the last operator ended
	Shards     int          `json:"shards"`
	// At rest, largest less smallest per node.
	ReplicaSpread uint32  `json:"replica_spread"`
	LeaderSpread  uint32  `json:"leader_spread"`
	QuietSec      float64 `json:"quiet_seconds"`
	QuietRounds   uint64  `json:"quiet_rounds"`
	RoundMicros   uint64  `json:"round_us"` // cost of one planning round at rest
	NodeReplicas  []int   `json:"replicas_by_node"`
	NodeLeaders   []int   `json:"leaders_by_node"`
}

// A node grows to five by joins; one empty shard takes a YCSB load, splits by size and spreads by itself, until nothing
// is left to do and nothing is done.
func TestFiguresOfGrowthFromOneNodeToFive(t *testing.T) {
	dir, full := figures(t, "growth")
	path := filepath.Join(dir, "growth.json")
	g := &growth{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t), Nodes: 5, SplitMiB: 1, LoadedMiB: 12}
	quiet, rounds, limit := 5*time.Second, uint64(5), 4*time.Minute
	if full {
		g.SplitMiB, g.LoadedMiB = 16, 1536
		quiet, rounds, limit = 3*time.Minute, 100, 40*time.Minute
	}
	if readResult(t, path, g) {
		t.Logf("%s is there: not measured again: %+v", path, g)
		return
	}
	c := harness.New(t, binaries(t), g.Nodes)
	for _, n := range c.Nodes {
		n.Balance = true
		n.Args = append(n.Args, "--split-size", fmt.Sprintf("%dMiB", g.SplitMiB), "--memtable", "16MiB", "--cache", "64MiB",
			"--entry-cache", "32MiB")
	}
	c.Start(0)
	c.InitOn(nil, 0)
	for i := 1; i < g.Nodes; i++ {
		c.Join(i)
	}
	db := c.DB(client.WithTimeout(60 * time.Second))
	began := time.Now()
	g.LoadErrors = loadYCSB(t, db, g.LoadedMiB<<10)
	g.LoadSec = time.Since(began).Seconds()
	loaded := time.Now()
	st, err := c.Quiet(quiet, rounds, limit)
	if err != nil {
		t.Fatalf("the cluster does not come to rest: %v", err)
	}
	g.QuietSec, g.QuietRounds = float64(st.GetQuietMs())/1000, st.GetQuietRounds()
	g.RestSec = time.Since(loaded).Seconds() - g.QuietSec
	g.RoundMicros = st.GetLastRoundMicros()
	c.WaitTiles()
	c.Until("replica and leader counts differ by at most 2", func(ctx context.Context) (err error) {
		g.ReplicaSpread, g.LeaderSpread, err = c.Spread(ctx)
		if err == nil && (g.ReplicaSpread > 2 || g.LeaderSpread > 2) {
			err = fmt.Errorf("spread of replicas %d, of leaders %d", g.ReplicaSpread, g.LeaderSpread)
		}
		return err
	})
	for _, s := range c.Shards() {
		g.Shards++
		if voters(s) != 3 {
			t.Errorf("s%d has %d voters", s.GetShardId(), voters(s))
		}
	}
	if g.Shards < g.LoadedMiB/g.SplitMiB/2 {
		t.Errorf("%d MiB in shards of at most %d MiB are %d shards", g.LoadedMiB, g.SplitMiB, g.Shards)
	}
	for i := range c.Nodes {
		n := c.Info(i)
		g.NodeReplicas = append(g.NodeReplicas, int(n.GetReplicas()))
		g.NodeLeaders = append(g.NodeLeaders, int(n.GetLeaders()))
	}
	checkYCSB(t, db, g.LoadedMiB<<10)
	c.Verify()
	t.Logf("%+v", g)
	if !t.Failed() {
		putResult(t, path, g)
	}
}

// loadYCSB loads so many records of 1 KiB and returns the number of failed operations that were repeated.
func loadYCSB(t *testing.T, db *client.DB, records int) int64 {
	t.Helper()
	p := ycsbProperties(t, "a", records, 64)
	d, err := ycsb.NewClient(db, p)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ycsb.Load(t.Context(), ycsb.Config{DB: d, Name: "load", Properties: p})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	return r.Total.ErrorCount
}

func ycsbProperties(t *testing.T, workload string, records, clients int) ycsb.Properties {
	t.Helper()
	p, err := ycsb.Workload(workload)
	if err != nil {
		t.Fatal(err)
	}
	p["recordcount"], p["threadcount"] = strconv.Itoa(records), strconv.Itoa(clients)
	return p
}

// checkYCSB scans everything and counts: every record is there once.
func checkYCSB(t *testing.T, db *client.DB, records int) {
	t.Helper()
	if err := harness.Until(t.Context(), harness.Patience, func(context.Context) error {
		n := 0
		for _, err := range db.All().Scan(t.Context(), client.KeysOnly()) {
			if err != nil {
				return err
			}
			n++
		}
		if n != records {
			t.Fatalf("a full scan finds %d of %d records", n, records)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
