package e2e

import (
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// Every node of a cluster of three is lost with its disk, one after the other, and comes back empty under the same
// address: it is a new store then, and gets the replicas that the old one had.
func TestEveryNodeIsReplacedUnderLoad(t *testing.T) {
	n := scale(4, 6, 16) // shards
	c := harness.New(t, binaries(t), 3)
	c.StartAll()
	c.Init(splitsOf(n))
	l := newLoadOf(t, c.DB(client.WithTimeout(20*time.Second)), n, 10)
	stop := l.run(1)
	l.waitWrites("before the first loss")
	for i := range c.Nodes {
		old := c.ID(i)
		c.Kill(i)
		c.Wipe(i)
		l.waitWrites("while a node is lost")
		now := c.Join(i)
		if now == old {
			t.Fatalf("node %d came back empty as n%d, which it was before", i, old)
		}
		var moves []*sharddv1.JobSpec
		for _, s := range c.Shards() {
			for _, r := range s.GetReplicas() {
				if r.GetNodeId() == old {
					moves = append(moves, harness.Move(s.GetShardId(), old, now))
				}
			}
		}
		if len(moves) != n+1 {
			t.Errorf("n%d had replicas of %d shards, want all %d", old, len(moves), n+1)
		}
		c.Do(moves...)
		c.WaitHealthy()
		l.waitWrites("after the node was replaced")
	}
	c.Verify()
	stop()
	l.judge(1)
	c.StopAll()
	if err := c.CheckStores(); err != nil {
		t.Error(err)
	}
}
