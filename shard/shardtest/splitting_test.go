package shardtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// splitKeys is how many keys each of the first shards has: it can be split so often, less one.
const splitKeys = 8

func splitKey(group, i int) string { return fmt.Sprintf("%s/%d", base.ShardID(10+group), i) }

// split divides a random shard at one of its keys, or at two.
func (m *moving) split(rng *rand.Rand) {
	c := m.c
	lead, d := c.leads(c.shards[rng.IntN(len(c.shards))])
	if lead == nil {
		return
	}
	var sides []shard.SplitSide
	for i := range splitKeys {
		key := base.UserKey([]byte(splitKey(rng.IntN(3), i)))
		if string(key) <= string(d.Start) || string(key) >= string(d.End) || len(sides) == 2 ||
			len(sides) == 1 && string(key) <= string(sides[0].Start) {
			continue
		}
		m.nextShard++
		sides = append(sides, shard.SplitSide{ID: m.nextShard, Start: key, Share: 300_000})
	}
	if len(sides) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _, err := lead.mu.store.Split(ctx, d.Shard, d.Epoch, sides)
	if err != nil && !errors.Is(err, shard.ErrAmbiguousBoundary) {
		return
	}
	if err == nil {
		m.count("split")
	}
	for i := range sides {
		c.shards = append(c.shards, sides[i].ID) // it may not be there: then it has no leader
	}
}

// forgetShards takes those out of the list that no store has: splits whose outcome was not known, and what was merged away,
// which may happen late.
func (m *moving) forgetShards() {
	here := map[base.ShardID]bool{}
	for _, n := range m.c.nodes {
		for _, s := range n.mu.store.Summaries() {
			here[s.Shard] = here[s.Shard] || s.Desc != nil
		}
	}
	m.c.shards = slices.DeleteFunc(m.c.shards, func(id base.ShardID) bool { return !here[id] })
}

// route finds the newest descriptor for a key that any running store has, as a directory that is up to date would.
func (c *live) route(key []byte) (best *base.Descriptor) {
	for _, n := range c.nodes {
		n.mu.RLock()
		if !n.mu.dead && n.mu.store != nil {
			for _, s := range n.mu.store.Summaries() {
				if s.Desc != nil && s.Desc.Contains(key) && (best == nil || s.Desc.Epoch.Newer(best.Epoch)) {
					best = s.Desc
				}
			}
		}
		n.mu.RUnlock()
	}
	return best
}

// keyClient reads and writes random keys. It keeps what it knows of the shards, and repairs that from the answers alone
// as long as they help.
func (c *live) keyClient(id int) {
	rng := rand.New(rand.NewPCG(uint64(c.seed), uint64(100+id)))
	routes, leader := map[string]*base.Descriptor{}, map[base.ShardID]base.StoreID{}
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return
		case <-time.After(time.Duration(rng.IntN(60)) * time.Millisecond):
		}
		o := operation{client: id, key: splitKey(rng.IntN(3), rng.IntN(splitKeys)), call: c.clock.Boot()}
		o.read = id%2 == 0 || rng.IntN(4) == 0
		key := base.UserKey([]byte(o.key))
		d := routes[o.key]
		if d == nil {
			if d = c.route(key); d == nil {
				continue
			}
			routes[o.key] = d
		}
		op := wire.Op{Code: wire.OpGet, Shard: d.Shard, Version: d.Epoch.Version, Key: key}
		if !o.read {
			o.value = fmt.Sprintf("%d.%d", id, i)
			op.Code, op.Value = wire.OpPut, []byte(o.value)
		}
		to, anywhere := leader[d.Shard], chooseReplica(rng, &op, &o)
		if to == 0 || anywhere || id%2 == 1 && rng.IntN(10) == 0 {
			to = base.StoreID(1 + rng.IntN(len(c.nodes)))
		}
		a := c.nodes[to-1].do(&op)
		o.back = c.clock.Boot()
		if !anywhere {
			leader[d.Shard] = to
		}
		switch {
		case a.Code == wire.OK || a.Code == wire.NotFound:
			o.version = a.Arg
			if o.read {
				o.value = string(a.Payload)
			}
			c.hist.add(o)
		case a.Code == wire.Ambiguous:
			delete(leader, d.Shard)
			if !o.read {
				o.open, o.back = true, math.MaxInt64
				c.hist.add(o)
			}
		case a.Code == wire.NotLeader && a.Arg > 0:
			leader[d.Shard] = base.StoreID(a.Arg)
		case a.Code == wire.EpochMismatch:
			delete(routes, o.key)
			ds, err := wire.DecodeDescriptors(a.Payload)
			if err != nil {
				c.t.Errorf("%s: %v (seed %d)", o.key, err, c.seed)
			}
			for _, now := range ds {
				if now.Contains(key) && now.Epoch.Newer(d.Epoch) {
					routes[o.key], leader[now.Shard] = now, to
					c.moving.count("repaired by the answer")
				}
			}
		case a.Code == wire.Failed || a.Code == wire.Invalid:
			c.t.Errorf("%s: %s %s (seed %d)", o.key, a.Code, a.Payload, c.seed)
		default:
			delete(leader, d.Shard) // definite: it never happened and never will
			if rng.IntN(3) == 0 {
				delete(routes, o.key) // the shard may have left the store
			}
		}
	}
}

// tiles checks that the shards of all stores together cover each group of keys without a gap or an overlap.
func (m *moving) tiles() {
	c := m.c
	for group := range 3 {
		id := base.ShardID(10 + group)
		at, end := base.UserKey([]byte(id.String()+"/")), base.UserKey([]byte(id.String()+"0"))
		for string(at) < string(end) {
			d := c.route(at)
			if d == nil || string(d.Start) != string(at) {
				c.t.Errorf("no shard begins at %q, but %v holds it (seed %d)", at, d, c.seed)
				return
			}
			at = d.End
		}
		if string(at) != string(end) {
			c.t.Errorf("the shards of %s end at %q, not %q (seed %d)", id, at, end, c.seed)
		}
	}
}

// TestShardsSplitAndMoveUnderFaultsAndNothingIsLost: splits, moves and removals of their replicas, transfers, cuts,
// crashes and old messages at once. Reads and writes stay linearizable, no replica votes twice, the shards tile the key
// space, and every store ends up with the replicas that the descriptors list, and no others.
func TestShardsSplitAndMoveUnderFaultsAndNothingIsLost(t *testing.T) {
	eachSeed(t, 6, func(t *testing.T, seed int64) {
		var c *live
		synctest.Test(t, func(t *testing.T) { c = runMoving(t, seed, course{stores: 5, splits: true, lasts: time.Minute}) })
		if t.Failed() {
			return
		}
		counts := c.moving.mu.counts
		t.Logf("%d operations, %d shards, %v", len(c.hist.mu.ops), len(c.shards), counts)
		if len(c.hist.mu.ops) < 200 || counts["split"] < 3 || counts["repaired by the answer"] == 0 {
			t.Errorf("too little happened to prove anything")
		}
		c.checkLeases(t)
		c.hist.check(t)
	})
}
