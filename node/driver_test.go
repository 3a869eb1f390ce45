package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// balanced makes the placement driver of a node work, fast.
func balanced(cfg *Config) {
	cfg.Settings.NoBalance = false
	cfg.Settings.PlanInterval = 50 * time.Millisecond
}

// balancedProcs makes a cluster of one node whose driver works, and n-1 nodes that have joined it.
func balancedProcs(t *testing.T, n, shards int) []*proc {
	t.Helper()
	p := newProc(t, "p0")
	p.tune = balanced
	ps := []*proc{p.start()}
	if _, err := p.admin().Init(testContext(t), &pb.InitRequest{Splits: splitKeys(shards)}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		ps = append(ps, joinBalanced(t, fmt.Sprintf("p%d", i), ps...))
	}
	return ps
}

func joinBalanced(t *testing.T, name string, by ...*proc) *proc {
	t.Helper()
	p := newProc(t, name)
	p.join, p.tune = addrs(by), balanced
	p.start()
	p.ready()
	return p
}

// counts returns how many voters and leaders each node has, as the index and the reports say.
func counts(ctx context.Context, p *proc) (voters, leaders map[uint64]int, err error) {
	list, err := p.admin().ListShards(ctx, &pb.ListShardsRequest{})
	if err != nil {
		return nil, nil, err
	}
	voters, leaders = map[uint64]int{}, map[uint64]int{}
	for _, s := range list.Shards {
		for _, r := range s.Replicas {
			if r.Role != base.RoleVoter.String() {
				return nil, nil, fmt.Errorf("s%d has a %s", s.ShardId, r.Role)
			}
			voters[r.NodeId]++
		}
		leaders[s.Leader]++
	}
	return voters, leaders, nil
}

func TestAClusterThatGrowsFromOneNodeSpreadsByItself(t *testing.T) {
	const shards = 8
	ps := balancedProcs(t, 1, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 20, shards)
	for i := 1; i < 3; i++ {
		ps = append(ps, joinBalanced(t, fmt.Sprintf("p%d", i), ps...))
	}
	eventually(t, "every shard has three voters, and the leaders are spread", func(ctx context.Context) error {
		voters, leaders, err := counts(ctx, ps[1])
		if err != nil {
			return err
		}
		for _, p := range ps {
			id := uint64(p.store())
			if voters[id] != shards+1 || leaders[id] < 2 || leaders[id] > 4 {
				return fmt.Errorf("voters %v, leaders %v", voters, leaders)
			}
		}
		return nil
	})
	l.check(t, ps[2])
}
