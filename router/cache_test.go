package router

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

func key(i int) []byte { return base.UserKey(fmt.Appendf(nil, "%04d", i)) }

// desc makes a descriptor over [lo, hi) with one voter on each of the stores 1 to 3.
func desc(id base.ShardID, lo, hi []byte, version uint64) *base.Descriptor {
	d := &base.Descriptor{
		Shard: id, Start: lo, End: hi, Epoch: base.Epoch{ConfVer: 1, Version: version}, NextReplicaID: 4,
	}
	for i := range 3 {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{
			Replica: base.ReplicaID(i + 1), Store: base.StoreID(i + 1), Role: base.RoleVoter,
		})
	}
	return d
}

func (c *cache) all() (out []*base.Descriptor) {
	c.mu.tree.Ascend(func(i item) bool {
		out = append(out, i.e.desc)
		return true
	})
	return out
}

// history splits, merges and changes members of shards at random and returns every descriptor that ever was, and those
// that are left, in key order.
func history(rnd *rand.Rand, keys, steps int) (ever, last []*base.Descriptor) {
	next := base.ShardID(2)
	last = []*base.Descriptor{desc(next, key(0), key(keys), 1)}
	ever = append(ever, last[0])
	for range steps {
		i := rnd.IntN(len(last))
		d := last[i].Clone()
		switch rnd.IntN(5) {
		case 0: // conf change
			d.Epoch.ConfVer++
			last[i] = d
		case 1: // merge with the right neighbour
			if i+1 == len(last) {
				continue
			}
			d.End = last[i+1].End
			d.Epoch.Version = max(d.Epoch.Version, last[i+1].Epoch.Version) + 1
			last = append(last[:i+1], last[i+2:]...)
			last[i] = d
		default: // split
			at := key(rnd.IntN(keys))
			if bytes.Compare(at, d.Start) <= 0 || bytes.Compare(at, d.End) >= 0 {
				continue
			}
			next++
			right := desc(next, at, d.End, d.Epoch.Version+1)
			d.End = at
			d.Epoch.Version++
			last = append(last, nil)
			copy(last[i+2:], last[i+1:])
			last[i], last[i+1] = d, right
			ever = append(ever, right)
		}
		ever = append(ever, d)
	}
	return ever, last
}

func TestCacheKeepsTheNewestOfWhatOverlapsInAnyOrderOfArrival(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 200 {
		const keys = 60
		ever, last := history(rnd, keys, 40)
		rnd.Shuffle(len(ever), func(i, j int) { ever[i], ever[j] = ever[j], ever[i] })
		c := newCache()
		for _, d := range ever {
			c.insert(d, 0, 0)
			all := c.all()
			for i := 1; i < len(all); i++ {
				if all[i-1].Overlaps(all[i]) {
					t.Fatalf("seed %d round %d: %s and %s overlap", seed, round, all[i-1], all[i])
				}
			}
			for k := range keys {
				at, below := c.at(key(k)), c.below(key(k))
				var wantAt, wantBelow *base.Descriptor
				for _, a := range all {
					if a.Contains(key(k)) {
						wantAt = a
					}
					if bytes.Compare(a.Start, key(k)) < 0 && bytes.Compare(key(k), a.End) <= 0 {
						wantBelow = a
					}
				}
				if got := descOf(at); got != wantAt {
					t.Fatalf("seed %d round %d: at %d: %v, want %v", seed, round, k, got, wantAt)
				}
				if got := descOf(below); got != wantBelow {
					t.Fatalf("seed %d round %d: below %d: %v, want %v", seed, round, k, got, wantBelow)
				}
			}
		}
		all := c.all()
		if len(all) != len(last) {
			t.Fatalf("seed %d round %d: %d entries, want %d", seed, round, len(all), len(last))
		}
		for i := range all {
			if all[i].String() != last[i].String() {
				t.Fatalf("seed %d round %d: entry %d is %s, want %s", seed, round, i, all[i], last[i])
			}
		}
	}
}

func descOf(e *entry) *base.Descriptor {
	if e == nil {
		return nil
	}
	return e.desc
}

func TestCacheCarriesLeaderHintsOver(t *testing.T) {
	c := newCache()
	c.insert(desc(2, key(0), key(10), 1), 3, 0)
	c.insert(desc(2, key(0), key(5), 2), 0, 0)
	if got := c.at(key(1)).leader.Load(); got != 3 {
		t.Errorf("after a split the left side is led by n%d, want n3", got)
	}
	c.insert(desc(3, key(5), key(10), 2), 0, 3)
	if got := c.at(key(7)).leader.Load(); got != 3 {
		t.Errorf("the right side is guessed to be led by n%d, want n3", got)
	}
	if c.insert(desc(2, key(0), key(10), 1), 1, 1) {
		t.Error("an old descriptor counts as news")
	}
	if got := c.at(key(1)).leader.Load(); got != 3 {
		t.Errorf("an old descriptor changed the hint to n%d", got)
	}
	c.insert(desc(2, key(0), key(5), 2), 1, 0)
	if got := c.at(key(1)).leader.Load(); got != 1 {
		t.Errorf("a fresh hint for a known descriptor gives n%d, want n1", got)
	}
}

func TestCacheLookupAllocatesNothing(t *testing.T) {
	c := newCache()
	for i := range 100 {
		c.insert(desc(base.ShardID(i+2), key(i*10), key(i*10+10), 1), 1, 0)
	}
	k := key(555)
	if n := testing.AllocsPerRun(100, func() { c.at(k) }); n != 0 {
		t.Errorf("at allocates %v times", n)
	}
}
