package shard

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// mergeTry is a merge on its way, driven as a node would, and left alone by a driver that dies.
type mergeTry struct {
	id          uint64
	left, right base.ShardID
	f           wire.Freeze
	freeze      <-chan boundaryResult
	frozen      *boundaryResult
	commit      <-chan boundaryResult
	steps       int // until the driver dies
}

// move goes on with an attempt; it returns true at its end.
func (w *worldOf) move(a *mergeTry) (merged, ended bool) {
	if a.steps--; a.steps < 0 {
		return false, true // nobody looks after it any more
	}
	switch {
	case a.commit != nil:
		select {
		case res := <-a.commit:
			return res.err == nil, true
		default:
		}
	case a.frozen != nil:
		if lead := w.c.leader(a.left); lead != nil && w.c.confirmed(a.right, a.id, a.frozen.index) {
			a.commit = w.c.commitMerge(lead, a.left, &wire.CommitMerge{
				ID: a.id, Epoch: a.f.IntoEpoch, Frozen: a.frozen.index, Right: a.frozen.d,
			})
		}
	default:
		select {
		case res := <-a.freeze:
			if res.err != nil {
				return false, true
			}
			a.frozen = &res
		default:
		}
	}
	return false, false
}

// begin starts to merge the shard of a key with its right neighbour.
func (w *worldOf) begin(id uint64, key string) *mergeTry {
	_, l := w.owner(key)
	if string(l.End) >= string(base.UserKey([]byte("z"))) {
		return nil
	}
	lead, r := w.owner(string(l.End[1:]))
	for _, d := range []*base.Descriptor{l, r} { // voters only
		if ch := w.role(d); ch.Op == Promote {
			if lead, d := w.owner(string(d.Start[1:])); lead != nil {
				w.c.change(lead, d.Shard, 0, ch)
			}
			return nil
		}
	}
	a := &mergeTry{id: id, left: l.Shard, right: r.Shard, steps: 5 + w.rng.IntN(30)}
	a.f = wire.Freeze{ID: id, Into: l.Shard, IntoEpoch: l.Epoch, Epoch: r.Epoch}
	a.freeze = w.c.freeze(lead, r.Shard, a.f)
	return a
}

// TestRandomMergesAndSplitsUnderCrashesAreLikeAPlainMap: whatever merges, splits, writes, transfers, changes of roles, cuts
// and power losses come, and wherever a driver dies, the shards tile the range on every store, and a scan of all of them
// is the map.
func TestRandomMergesAndSplitsUnderCrashesAreLikeAPlainMap(t *testing.T) {
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("SHARDD_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("SHARDD_SEED=%d", seed)
	var c *cluster
	cut := new(atomic.Bool)
	q := &asker{}
	c0 := newCluster(t, 3, func(cfg *Config) {
		cfg.Indexes = q
		cfg.Compaction = Compaction{FloorBytes: 2 << 10, ShardCapBytes: 8 << 10, Factor: 1}
		cfg.Merges, cfg.MergeTimeout = testAsker{&c, cut}, 3*time.Second
	})
	c, q.c = c0, c0
	c.create(desc(7, "a", "z", 1, 2, 3))
	w := &worldOf{c: c, rng: rand.New(rand.NewPCG(seed, 6)), rows: map[string]string{}, next: 100, heals: true}
	steps := 400
	if testing.Short() {
		steps = 120
	}
	key := func() string { return string(rune('b'+w.rng.IntN(23))) + strconv.Itoa(w.rng.IntN(20)) }
	splits, merges, crashes, ids := 0, 0, 0, uint64(0)
	var waiting []<-chan splitResult
	var open []*mergeTry
	for i := range steps {
		switch w.rng.IntN(20) {
		case 0, 1:
			at := key()
			if lead, d := w.owner(at); string(d.Start) < string(base.UserKey([]byte(at))) && len(waiting) < 3 {
				waiting = append(waiting, c.split(lead, d.Shard, SplitSide{ID: w.next, Start: base.UserKey([]byte(at)), Share: 300_000}))
				w.next++
				if w.rng.IntN(2) == 0 {
					c.drain() // it may be anywhere on its way when the next thing happens
				}
			}
		case 2, 3, 4:
			if len(open) < 2 {
				ids++
				if a := w.begin(ids, key()); a != nil {
					open = append(open, a)
				}
			}
		case 5:
			n := c.nodes[base.StoreID(1+w.rng.IntN(3))]
			c.crash(n, []int{0, 50, 100}[w.rng.IntN(3)])
			c.start(n)
			crashes++
		case 6:
			c.net.HealAll() // a majority stays
			c.net.Isolate(base.StoreID(1 + w.rng.IntN(3)))
		case 7, 8:
			c.net.HealAll()
		case 9:
			lead, d := w.owner(key())
			c.transfer(lead, d.Shard, lead.id%3+1)
		case 10:
			if lead, d := w.owner(key()); w.rng.IntN(2) == 0 {
				c.change(lead, d.Shard, 0, w.role(d))
			}
		case 12, 13:
			c.tick()
		case 11:
			w.write(wire.OpDelete, key(), "")
		default:
			w.write(wire.OpPut, key(), fmt.Sprint(i))
		}
		w.readSomewhere(q)
		if w.rng.IntN(3) > 0 {
			time.Sleep(200 * time.Microsecond) // those who ask are goroutines
			c.settle()
		}
		open = slices.DeleteFunc(open, func(a *mergeTry) bool {
			merged, ended := w.move(a)
			if merged {
				merges++
			}
			return ended
		})
		waiting = slices.DeleteFunc(waiting, func(ch <-chan splitResult) bool {
			select {
			case res := <-ch:
				if res.err == nil {
					splits++
				}
				return true
			default:
				return false
			}
		})
	}
	w.rest(merges, splits, crashes)
}

// role is a change of one replica's role: a learner is promoted, or a voter demoted.
func (w *worldOf) role(d *base.Descriptor) ReplicaChange {
	for _, rep := range d.Replicas {
		if rep.Role == base.RoleLearner {
			return promote(rep.Store)
		}
	}
	return demote(d.Replicas[w.rng.IntN(len(d.Replicas))].Store)
}

// rest brings everything to rest, and checks it.
func (w *worldOf) rest(merges, splits, crashes int) {
	c, t := w.c, w.c.t
	c.net.HealAll()
	frozen := func() bool {
		some := false
		c.each(func(n *testNode) {
			for _, s := range n.store.Summaries() {
				some = some || s.Freeze != nil || s.Desc == nil
			}
		})
		return some
	}
	for i := 0; i < 10 && frozen(); i++ {
		c.untilOr(func() bool { return !frozen() })
	}
	for k, v := range w.rows { // every shard that has a row commits once more
		w.write(wire.OpPut, k, v)
	}
	c.until("all stores have it all", func() bool {
		want, same := "", true
		c.each(func(n *testNode) {
			got := ""
			for _, s := range n.store.Summaries() {
				if s.Desc == nil || s.Freeze != nil {
					same = false
					continue
				}
				got += s.Desc.String() + fmt.Sprint(s.Stats, n.store.lookup(s.Shard).appliedState().Merges)
			}
			if want == "" {
				want = got
			}
			same = same && got == want
		})
		return same
	})
	c.each(func(n *testNode) {
		checkTiles(t, n, "a", "z")
		got := map[string]string{}
		for _, s := range n.store.Summaries() {
			scanShard(t, n, s.Desc, got)
		}
		if fmt.Sprint(got) != fmt.Sprint(w.rows) {
			t.Errorf("%s holds %v, want %v", n.id, got, w.rows)
		}
		c.idle(n)
	})
	w.far.enough(t)
	t.Logf("%d merges, %d splits, %d crashes, %d rows, %d shards", merges, splits, crashes, len(w.rows), len(c.nodes[1].store.all()))
}
