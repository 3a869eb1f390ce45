package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
)

// zoneLoss is the loss of one of three zones, and a decommission, under load.
type zoneLoss struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Nodes   int          `json:"nodes"`
	Shards  int          `json:"shards"`
	Clients int          `json:"clients"`
	// Longest time without an acknowledged write after the zone was killed: median and worst of the shards.
	GapMedianMS float64 `json:"gap_median_ms"`
	GapWorstMS  float64 `json:"gap_worst_ms"`
	// From the start of two new nodes in the lost zone to every shard with three live voters, one in each zone.
	HealedSec float64 `json:"healed_seconds"`
	// The decommission of one node under the same load.
	DecommissionSec      float64        `json:"decommission_seconds"`
	DecommissionReplicas uint32         `json:"decommission_replicas"`
	DecommissionErrors   map[string]int `json:"decommission_errors"`
	DecommissionPlanMS   uint64         `json:"decommission_planned_ms"`
	Acked                int            `json:"acknowledged_writes"`
}

// Six nodes in three zones; a zone dies under load and all shards serve; two new nodes take its place and the shards are
// spread over three zones again; then a node is decommissioned under load and nobody notices.
func TestFiguresOfZoneLossAndDecommission(t *testing.T) {
	const shards, roamers = 24, 24
	dir, full := figures(t, "zones")
	path := filepath.Join(dir, "zoneloss.json")
	z := &zoneLoss{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t), Nodes: 6, Shards: shards,
		Clients: shards + roamers}
	if readResult(t, path, z) {
		t.Logf("%s is there: not measured again: %+v", path, z)
		return
	}
	fillEach := mib / 4
	if full {
		fillEach = 8 * mib
	}
	c := harness.New(t, binaries(t), 8)
	zone := []string{"a", "a", "b", "b", "c", "c", "a", "a"}
	for i, n := range c.Nodes {
		n.Balance = true
		n.Args = append(n.Args, "--labels", "zone="+zone[i], "--down-after", "20s", "--memtable", "16MiB", "--cache", "32MiB",
			"--entry-cache", "32MiB")
	}
	for _, i := range []int{0, 2, 4} {
		c.Start(i)
	}
	c.InitOn(splitsOf(shards), 0, 2, 4)
	for _, i := range []int{1, 3, 5} {
		c.Join(i)
	}
	db := c.DB(client.WithTimeout(20 * time.Second))
	for i := range shards {
		fill(t, db, i, fillEach)
	}
	if _, err := c.Quiet(5*time.Second, 5, 4*harness.Patience); err != nil {
		t.Fatalf("spread over six nodes: %v", err)
	}
	spreadOverZones(c, zone, nil)
	l := newLoadOf(t, db, shards, roamers)
	stop := l.run(1)
	l.waitWrites("before the loss")
	l.resetGaps()
	c.Kill(0)
	c.Kill(1)
	l.waitWrites("after zone a was lost")
	gaps := l.gaps()
	z.GapMedianMS = float64(quantile(gaps, 0.5).Microseconds()) / 1000
	z.GapWorstMS = float64(quantile(gaps, 1).Microseconds()) / 1000
	began := time.Now()
	c.Join(6)
	c.Join(7)
	spreadOverZones(c, zone, map[int]bool{0: true, 1: true})
	z.HealedSec = time.Since(began).Seconds()
	stop()
	l.judge(1)

	// Decommission of a node, under load.
	before := l.counts()
	stop = l.run(2)
	l.waitWrites("before the decommission")
	node := c.ID(2)
	plan, err := c.Admin.Decommission(t.Context(), node, true)
	if err != nil || len(plan.GetBlocked()) > 0 {
		t.Fatalf("plan the decommission of n%d: %v, blocked by %q", node, err, plan.GetBlocked())
	}
	z.DecommissionReplicas, z.DecommissionPlanMS = plan.GetReplicas(), plan.GetTookMs()
	began = time.Now()
	// Zone b keeps one node, which can hold a replica of every shard.
	resp, err := c.Admin.Decommission(t.Context(), node, false)
	if err != nil {
		t.Fatalf("decommission n%d: %v", node, err)
	}
	j, err := c.Await(t.Context(), resp.GetJob().GetJobId(), 10*harness.Patience)
	if err != nil || j.GetState() != admin.JobDone {
		t.Fatalf("decommission of n%d: %v, %s", node, err, harness.Steps(j))
	}
	z.DecommissionSec = time.Since(began).Seconds()
	stop()
	l.judge(2)
	after := l.counts()
	z.Acked, z.DecommissionErrors = after.acked, map[string]int{}
	for class, n := range after.classes {
		if d := n - before.classes[class]; d > 0 {
			z.DecommissionErrors[class] = d
			t.Errorf("%d operations failed with %s while n%d was decommissioned", d, class, node)
		}
	}
	c.Until("the node reports that its replicas are gone", func(context.Context) error {
		if n := c.Info(2).GetReplicas(); n != 0 {
			return fmt.Errorf("n%d has %d replicas", node, n)
		}
		return nil
	})
	c.Verify()
	t.Logf("%+v", z)
	if !t.Failed() {
		putResult(t, path, z)
	}
}

// spreadOverZones waits until every shard has three voters in three zones, none of them on a node that is gone.
func spreadOverZones(c *harness.Cluster, zone []string, gone map[int]bool) {
	c.T().Helper()
	zoneOf := map[uint64]string{}
	for i, n := range c.Nodes {
		if n.Proc != nil && n.Proc.Running() && !gone[i] {
			zoneOf[c.ID(i)] = zone[i]
		}
	}
	err := harness.Until(c.T().Context(), 6*harness.Patience, func(context.Context) error {
		for _, s := range c.Shards() {
			if err := overZones(s, zoneOf); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		c.T().Fatalf("every shard over three zones: %v", err)
	}
}

func overZones(s *sharddv1.ShardInfo, zoneOf map[uint64]string) error {
	seen := map[string]bool{}
	for _, r := range s.GetReplicas() {
		z := zoneOf[r.GetNodeId()]
		if r.GetRole() != "voter" || z == "" || seen[z] {
			return fmt.Errorf("s%d: %v", s.GetShardId(), s.GetReplicas())
		}
		seen[z] = true
	}
	if len(seen) != 3 {
		return fmt.Errorf("s%d is in %d zones: %v", s.GetShardId(), len(seen), s.GetReplicas())
	}
	return nil
}
