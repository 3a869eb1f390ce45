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

type setBalance = sharddv1.SetBalanceRequest

// controlPlane is what clients see while the meta shard has no quorum.
type controlPlane struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	DownSec float64      `json:"down_seconds"`
	Rounds  []downRound  `json:"rounds"`
}

type downRound struct {
	Fresh  bool           `json:"splits_and_transfers_just_before"`
	Acked  int            `json:"acknowledged_writes_while_down"`
	GapMS  float64        `json:"longest_gap_ms"`
	Errors map[string]int `json:"errors"`
}

// metaApart keeps the meta shard on three nodes and everything else on three others.
const metaApart = `defaults:
  constraints:
    required: [pool=data]
rules:
  - name: meta
    shards: system
    constraints:
      required: [pool=meta]
`

// The meta shard lives on three nodes, all data on three others; two of the meta nodes are killed for a while. Clients
// with known routes see no error, also if shards were split and leaderships moved just before.
func TestFiguresOfAControlPlaneThatIsDown(t *testing.T) {
	const shards, roamers = 12, 12
	dir, full := figures(t, "controlplane")
	path := filepath.Join(dir, "down.json")
	f := &controlPlane{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t)}
	down := 5 * time.Second
	if full {
		down = time.Minute
	}
	f.DownSec = down.Seconds()
	if readResult(t, path, f) {
		t.Logf("%s is there: not measured again: %+v", path, f)
		return
	}
	c := harness.New(t, binaries(t), 6)
	for i, n := range c.Nodes {
		pool := "meta"
		if i >= 3 {
			pool = "data"
		}
		n.Balance = true
		n.Args = append(n.Args, "--labels", "pool="+pool, "--memtable", "16MiB", "--cache", "32MiB", "--entry-cache", "32MiB")
	}
	for i := range 3 {
		c.Start(i)
	}
	c.InitOn(splitsOf(shards), 0, 1, 2)
	for i := 3; i < 6; i++ {
		c.Join(i)
	}
	if _, err := c.Admin.ApplyZones(t.Context(), metaApart, 0); err != nil {
		t.Fatal(err)
	}
	where := map[uint64]string{}
	for i := range c.Nodes {
		where[c.ID(i)] = map[bool]string{true: "meta", false: "data"}[i < 3]
	}
	if err := harness.Until(t.Context(), 6*harness.Patience, func(context.Context) error {
		for _, s := range c.Shards() {
			want := "data"
			if s.GetShardId() == 1 {
				want = "meta"
			}
			for _, r := range s.GetReplicas() {
				if where[r.GetNodeId()] != want || r.GetRole() != "voter" || len(s.GetReplicas()) != 3 {
					return fmt.Errorf("s%d should be on %s nodes: %v", s.GetShardId(), want, s.GetReplicas())
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("meta and data apart: %v", err)
	}
	l := newLoadOf(t, c.DB(client.WithTimeout(20*time.Second)), shards, roamers)
	for round, fresh := range []bool{false, true} {
		stop := l.run(round)
		l.waitWrites("before the control plane goes")
		if fresh {
			l.churn(c)
		}
		before := l.counts()
		l.resetGaps()
		c.Kill(0)
		c.Kill(1)
		timer := time.NewTimer(down) // not a wait for a condition: the time for which it is down
		<-timer.C
		l.waitWrites("without a control plane")
		after := l.counts()
		r := downRound{Fresh: fresh, Acked: after.acked - before.acked, Errors: map[string]int{},
			GapMS: float64(quantile(l.gaps(), 1).Microseconds()) / 1000}
		for class, n := range after.classes {
			if d := n - before.classes[class]; d > 0 {
				r.Errors[class] = d
				t.Errorf("%d operations failed with %s while the control plane was down", d, class)
			}
		}
		c.Start(0)
		c.Start(1)
		l.waitWrites("after the control plane is back")
		stop()
		l.judge(round)
		f.Rounds = append(f.Rounds, r)
		t.Logf("%+v", r)
	}
	c.WaitTiles()
	if !t.Failed() {
		putResult(t, path, f)
	}
}

// churn splits every shard but the system's own under the load, moves leaderships, and returns as soon as that is done.
func (l *load) churn(c *harness.Cluster) {
	l.t.Helper()
	var ids []uint64
	for i := range l.shards {
		key := fmt.Appendf(nil, "%02d/reg", i)
		id, err := c.Begin(l.t.Context(), harness.Split(c.ShardOf(key).GetShardId(), key))
		if err != nil {
			l.t.Fatalf("split at %q: %v", key, err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if j, err := c.Await(l.t.Context(), id, harness.Patience); err != nil || j.GetState() != admin.JobDone {
			l.t.Fatalf("split: %v, %s", err, harness.Steps(j))
		}
	}
	for i := range l.shards {
		s := c.ShardOf(fmt.Appendf(nil, "%02d/reg", i))
		to := s.GetReplicas()[i%3].GetNodeId()
		ctx, cancel := context.WithTimeout(l.t.Context(), 10*time.Second)
		if _, err := c.Admin.TransferLeader(ctx, s.GetShardId(), to); err != nil {
			l.t.Logf("transfer s%d to n%d: %v", s.GetShardId(), to, err) // it leads there already
		}
		cancel()
	}
}
