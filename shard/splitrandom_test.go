package shard

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// worldOf is a client of a harness cluster that knows nothing but keys: it finds the shard of a key by the answers.
type worldOf struct {
	c    *cluster
	rng  *rand.Rand
	rows map[string]string // what a plain map would hold
	next base.ShardID

	heals bool // a cut may leave no quorum: it ends if there is no leader for long
	far   farReads
}

// owner returns the leader that serves a key, and the shard's descriptor.
func (w *worldOf) owner(key string) (lead *testNode, d *base.Descriptor) {
	w.c.t.Helper()
	k := base.UserKey([]byte(key))
	tries := 0
	w.c.until("a leader for "+key, func() bool {
		if tries++; w.heals && tries == 60 {
			w.c.net.HealAll()
		}
		lead = nil
		w.c.each(func(n *testNode) {
			n.store.mu.RLock()
			defer n.store.mu.RUnlock()
			n.store.mu.ranges.overlapping(k, nil, func(o *base.Descriptor) bool {
				if d == nil || o.Epoch.Newer(d.Epoch) || !d.Contains(k) {
					d = o
				}
				return true
			})
		})
		if d != nil && d.Contains(k) {
			lead = w.c.leader(d.Shard)
		}
		if lead != nil {
			if now, ok := lead.store.Descriptor(d.Shard); !ok || !now.Contains(k) {
				d, lead = nil, nil
				return false
			} else {
				d = now
			}
		}
		return lead != nil
	})
	return lead, d
}

// write does one until its outcome is known. An unknown one is settled by writing again: there is one client.
func (w *worldOf) write(code wire.OpCode, key, value string) {
	w.c.t.Helper()
	began := w.c.clock.Boot()
	for range 100 {
		lead, d := w.owner(key)
		a := newAnswers(w.c.t)
		o := wire.Op{Code: code, Shard: d.Shard, Version: d.Epoch.Version, Key: base.UserKey([]byte(key)), Value: []byte(value)}
		req := w.c.write(lead, o, a, 0)
		w.c.until("an answer", func() bool { return a.missing() == 0 || lead.store == nil })
		if ans, ok := a.of(req); ok && ans.Code == wire.OK {
			if code == wire.OpPut {
				w.rows[key] = value
			} else {
				delete(w.rows, key)
			}
			w.far.wrote(key, value, began, w.c.clock.Boot())
			return
		}
		w.c.tick()
	}
	w.c.t.Fatalf("%s %s: no end", code, key)
}

// TestRandomSplitsUnderCrashesAreLikeAPlainMap: whatever splits, writes, transfers, cuts and power losses come, the shards
// tile the range on every store, and a scan of all of them is the map.
func TestRandomSplitsUnderCrashesAreLikeAPlainMap(t *testing.T) {
	seed := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("SHARDD_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("SHARDD_SEED=%d", seed)
	q := &asker{}
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Compaction = Compaction{FloorBytes: 2 << 10, ShardCapBytes: 8 << 10, Factor: 1}
		cfg.Indexes = q
	})
	q.c = c
	c.create(desc(7, "a", "z", 1, 2, 3))
	w := &worldOf{c: c, rng: rand.New(rand.NewPCG(seed, 5)), rows: map[string]string{}, next: 100}
	steps := 250
	if testing.Short() {
		steps = 80
	}
	key := func() string { return string(rune('b'+w.rng.IntN(23))) + strconv.Itoa(w.rng.IntN(20)) }
	splits, crashes := 0, 0
	var waiting []<-chan splitResult
	for i := range steps {
		switch w.rng.IntN(12) {
		case 0, 1:
			at := key()
			if lead, d := w.owner(at); string(d.Start) < string(base.UserKey([]byte(at))) && len(waiting) < 3 {
				sides := []SplitSide{{ID: w.next, Start: base.UserKey([]byte(at)), Share: 300_000}}
				if more := base.UserKey([]byte(at + "x")); w.rng.IntN(2) == 0 && string(more) < string(d.End) {
					sides = append(sides, SplitSide{ID: w.next + 1, Start: more, Share: 200_000})
				}
				w.next += 2
				waiting = append(waiting, c.split(lead, d.Shard, sides...))
				if w.rng.IntN(2) == 0 {
					c.drain() // it may be anywhere on its way when the next thing happens
				}
			}
		case 2:
			n := c.nodes[base.StoreID(1+w.rng.IntN(3))]
			c.crash(n, []int{0, 50, 100}[w.rng.IntN(3)])
			c.start(n)
			crashes++
		case 3:
			c.net.HealAll() // a majority stays
			c.net.Isolate(base.StoreID(1 + w.rng.IntN(3)))
		case 4:
			c.net.HealAll()
		case 5:
			lead, d := w.owner(key())
			c.transfer(lead, d.Shard, lead.id%3+1)
		case 6:
			w.write(wire.OpDelete, key(), "")
		default:
			w.write(wire.OpPut, key(), fmt.Sprint(i))
		}
		w.readSomewhere(q)
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
	c.net.HealAll()
	for k, v := range w.rows { // every shard that has a row commits once more
		w.write(wire.OpPut, k, v)
	}
	c.until("all stores have it all", func() bool {
		want := ""
		same := true
		c.each(func(n *testNode) {
			got := ""
			for _, s := range n.store.Summaries() {
				if s.Desc == nil {
					same = false
					continue
				}
				got += s.Desc.String() + fmt.Sprint(s.Stats)
			}
			if want == "" {
				want = got
			}
			same = same && got == want
		})
		return same
	})
	if splits < 3 || crashes < 2 {
		t.Logf("only %d splits and %d crashes", splits, crashes)
	}
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
	t.Logf("%d splits, %d crashes, %d rows, %d shards", splits, crashes, len(w.rows), len(c.nodes[1].store.all()))
}

// scanShard adds the rows that a store has of a shard, through reads as clients make them.
func scanShard(t *testing.T, n *testNode, d *base.Descriptor, into map[string]string) {
	t.Helper()
	o := wire.Op{
		Code: wire.OpScan, Shard: d.Shard, Version: d.Epoch.Version, Key: d.Start, Value: d.End, Arg: wire.ScanArg(10_000, 1<<20),
	}
	var a wire.Answer
	if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &a); err != nil || a.Code != wire.OK || a.Flags != 0 {
		t.Fatalf("scan of %s: %s %v", d, a.Code, err)
	}
	for b := a.Payload; len(b) > 0; {
		var row wire.Row
		rest, err := wire.DecodeRow(b, &row)
		if err != nil {
			t.Fatal(err)
		}
		into[string(row.Key[1:])], b = string(row.Value), rest
	}
}
