package harness

import (
	"bytes"
	"context"
	"fmt"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// Tile checks that shards, in key order and with the system's own first, cover the user's keys once and without a gap.
func Tile(shards []*sharddv1.ShardInfo) error {
	at := base.UserStart()
	seen := map[uint64]bool{}
	for i, s := range shards {
		if seen[s.GetShardId()] {
			return fmt.Errorf("s%d is listed twice", s.GetShardId())
		}
		seen[s.GetShardId()] = true
		if i == 0 && bytes.Equal(s.GetStart(), base.SystemStart()) {
			continue
		}
		if !bytes.Equal(s.GetStart(), at) {
			return fmt.Errorf("s%d starts at %q, the shard before it ends at %q", s.GetShardId(), s.GetStart(), at)
		}
		at = s.GetEnd()
	}
	if !bytes.Equal(at, base.UserEnd()) {
		return fmt.Errorf("the last shard ends at %q", at)
	}
	return nil
}

// WaitTiles waits until the index of shards tiles the key space and each shard's leader agrees with its record. The
// index is behind the shards for a moment after a split or a merge.
func (c *Cluster) WaitTiles() {
	c.t.Helper()
	c.Until("shards tile the key space", func(ctx context.Context) error {
		shards := c.Shards()
		if err := Tile(shards); err != nil {
			return err
		}
		for _, s := range shards {
			d, err := c.Admin.DescribeShard(ctx, s.GetShardId())
			if err != nil {
				return fmt.Errorf("describe s%d: %w", s.GetShardId(), err)
			}
			for _, r := range d.GetReplicas() {
				if r.GetRaftState() == "leader" && r.GetVersion() != s.GetVersion() {
					return fmt.Errorf("s%d is at version %d, the index at %d", s.GetShardId(), r.GetVersion(), s.GetVersion())
				}
			}
		}
		return nil
	})
}

// ShardOf is the shard that holds a user's key, as the index has it.
func (c *Cluster) ShardOf(key []byte) *sharddv1.ShardInfo {
	c.t.Helper()
	k := base.UserKey(key)
	var found *sharddv1.ShardInfo
	c.Until("find the shard of a key", func(context.Context) error {
		for _, s := range c.Shards() {
			if bytes.Compare(s.GetStart(), k) <= 0 && bytes.Compare(k, s.GetEnd()) < 0 {
				found = s
				return nil
			}
		}
		return fmt.Errorf("no shard holds %q", key)
	})
	return found
}

// RightOf is the shard that begins where another one ends, nil if that is the last one.
func RightOf(shards []*sharddv1.ShardInfo, of *sharddv1.ShardInfo) *sharddv1.ShardInfo {
	for _, s := range shards {
		if bytes.Equal(s.GetStart(), of.GetEnd()) && !bytes.Equal(s.GetStart(), base.SystemStart()) {
			return s
		}
	}
	return nil
}

// Split is a job that splits a shard at user keys.
func Split(shard uint64, keys ...[]byte) *sharddv1.JobSpec {
	spec := &sharddv1.JobSpec{Kind: "split", ShardId: shard}
	for _, k := range keys {
		spec.Keys = append(spec.Keys, base.UserKey(k))
	}
	return spec
}

// Merge is a job that has a shard take in its right neighbour.
func Merge(left, right uint64) *sharddv1.JobSpec {
	return &sharddv1.JobSpec{Kind: "merge", ShardId: left, RightShardId: right}
}

// Spread is the largest less the smallest number of replicas and of leaders among the nodes that are alive, as they
// report it.
func (c *Cluster) Spread(ctx context.Context) (replicas, leaders uint32, err error) {
	nodes, err := c.Admin.ListNodes(ctx)
	if err != nil {
		return 0, 0, err
	}
	type bound struct{ lo, hi uint32 }
	var r, l *bound
	widen := func(b **bound, v uint32) {
		if *b == nil {
			*b = &bound{v, v}
		}
		(*b).lo, (*b).hi = min((*b).lo, v), max((*b).hi, v)
	}
	for _, n := range nodes {
		if n.GetAlive() {
			widen(&r, n.GetReplicas())
			widen(&l, n.GetLeaders())
		}
	}
	if r == nil {
		return 0, 0, fmt.Errorf("no node is alive")
	}
	return r.hi - r.lo, l.hi - l.lo, nil
}

// Quiet waits until the placement driver has proposed nothing for so long and in so many rounds, and has nothing under
// way. It fails after limit.
func (c *Cluster) Quiet(quiet time.Duration, rounds uint64, limit time.Duration) (*sharddv1.BalanceStatusResponse, error) {
	c.t.Helper()
	var last *sharddv1.BalanceStatusResponse
	err := Until(c.t.Context(), limit, func(ctx context.Context) error {
		st, err := c.Admin.BalanceStatus(ctx)
		if err != nil {
			return err
		}
		last = st
		if len(st.GetRunning()) > 0 || st.GetState() != "running" || st.GetQuietRounds() < rounds ||
			time.Duration(st.GetQuietMs())*time.Millisecond < quiet {
			return fmt.Errorf("driver is %s (%s), %d operators run, quiet for %d rounds and %d ms; problems %v",
				st.GetState(), st.GetDetail(), len(st.GetRunning()), st.GetQuietRounds(), st.GetQuietMs(), st.GetProblems())
		}
		return nil
	})
	return last, err
}
