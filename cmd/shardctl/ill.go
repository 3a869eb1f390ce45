package main

import (
	"context"
	"fmt"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// ill are the shards that status names, in key order.
type ill struct {
	joint []uint64 // between two configurations
	down  []uint64 // a replica is on a node that is down
}

// mostNames is how many shards text names; JSON names all.
const mostNames = 10

// illShards looks at every shard of the cluster.
func illShards(ctx context.Context, a *admin.Client, nodes []*sharddv1.NodeInfo) (ill, error) {
	up := map[uint64]bool{}
	for _, n := range nodes {
		up[n.GetNodeId()] = n.GetAlive()
	}
	var out ill
	for s, err := range a.ListShards(ctx) {
		if err != nil {
			return out, err
		}
		joint, down := false, false
		for _, r := range s.GetReplicas() {
			joint = joint || r.GetRole() == "incoming" || r.GetRole() == "outgoing"
			down = down || !up[r.GetNodeId()]
		}
		if joint {
			out.joint = append(out.joint, s.GetShardId())
		}
		if down {
			out.down = append(out.down, s.GetShardId())
		}
	}
	return out, nil
}

// names are the names of shards, at most so many (0: all) and how many more there are.
func (ill) names(ids []uint64, most int) []string {
	out := []string{}
	for i, id := range ids {
		if most > 0 && i == most {
			return append(out, fmt.Sprintf("and %d more", len(ids)-most))
		}
		out = append(out, shardName(id))
	}
	return out
}
