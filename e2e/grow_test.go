package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// A cluster begins as one node, gets two more and a replica of every shard on each, the system's own included, all
// under load; then the first node dies and nothing is missed.
func TestAClusterGrowsFromOneNodeAndOutlivesIt(t *testing.T) {
	const shards, roamers = 6, 10
	c := harness.New(t, binaries(t), 3)
	c.Start(0)
	c.InitOn(splitsOf(shards), 0)
	l := newLoadOf(t, c.DB(client.WithTimeout(20*time.Second)), shards, roamers)
	stop := l.run(1)
	l.waitWrites("on one node")
	second, third := c.Join(1), c.Join(2)
	var adds []*sharddv1.JobSpec
	for _, to := range []uint64{second, third} {
		for _, s := range c.Shards() {
			adds = append(adds, harness.Add(s.GetShardId(), to))
		}
	}
	c.Do(adds...)
	// The index of shards follows the shards' own descriptors with the next reports.
	c.Until("three voters of every shard", func(context.Context) error {
		for _, s := range c.Shards() {
			if n := voters(s); n != 3 || len(s.GetReplicas()) != 3 {
				return fmt.Errorf("s%d has %v", s.GetShardId(), s.GetReplicas())
			}
		}
		return nil
	})
	l.waitWrites("with three nodes")
	c.Verify()
	c.Kill(0)
	l.waitWrites("without the first node")
	stop()
	l.judge(1)
	c.Start(0)
	c.WaitHealthy()
	c.Verify()
}

func voters(s *sharddv1.ShardInfo) int {
	n := 0
	for _, r := range s.GetReplicas() {
		if r.GetRole() == "voter" {
			n++
		}
	}
	return n
}
