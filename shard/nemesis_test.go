package shard

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport/simnet"
)

var nemesisSeed = flag.Int64("nemesis.seed", 0, "seed of TestNothingAcknowledgedIsLost; 0: random ones")

// TestNothingAcknowledgedIsLost runs random writes over three stores and four groups through a network that loses,
// repeats and reorders, with cuts, crashes that keep any share of what was not synced, and transfers. At the end:
// what was acknowledged is there, what was answered as not done is not, and all replicas hold the same bytes.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	seeds := []int64{*nemesisSeed}
	if *nemesisSeed == 0 {
		seeds = nil
		for range 6 {
			seeds = append(seeds, rand.Int64N(1<<40)+1)
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { nemesis(t, seed) })
	}
}

type attempt struct {
	shard base.ShardID
	key   string
	value string
	req   uint64
}

func nemesis(t *testing.T, seed int64) {
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	c := newCluster(t, 3, func(cfg *Config) { cfg.EntryBytes = 200; cfg.PassBytes = 2000; cfg.MaxSizePerMsg = 300 })
	const groups = 4
	for i := range groups {
		c.create(desc(shardID(10+i), fmt.Sprint(i), fmt.Sprint(i+1), 1, 2, 3))
	}
	c.net.SetFaults(simnet.Faults{Drop: 0.05, Duplicate: 0.05, Reorder: 0.1, MaxDelay: 3 * time.Millisecond})
	a := newAnswers(t)
	var tries []attempt
	down := base.StoreID(0)
	for step := range 600 {
		c.each(func(n *testNode) {
			for range rng.IntN(4) {
				g := rng.IntN(groups)
				at := attempt{shard: shardID(10 + g), key: fmt.Sprintf("%d/%d", g, len(tries))}
				at.value = fmt.Sprintf("%s@%d", at.key, step)
				wait := time.Duration(1+rng.IntN(20)) * time.Second
				at.req = c.write(n, op(wire.OpPut, at.shard, at.key, at.value), a, wait)
				tries = append(tries, at)
				c.readIndex(n, at.shard, a, time.Second)
			}
		})
		switch rng.IntN(40) {
		case 0:
			c.net.Isolate(base.StoreID(1 + rng.IntN(3)))
		case 1:
			c.net.Cut(base.StoreID(1+rng.IntN(3)), base.StoreID(1+rng.IntN(3)))
		case 2, 3, 4:
			c.net.HealAll()
		case 5:
			if down == 0 {
				down = base.StoreID(1 + rng.IntN(3))
				c.crash(c.nodes[down], []int{0, 30, 100}[rng.IntN(3)])
			}
		case 6, 7, 8:
			if down != 0 {
				c.start(c.nodes[down])
				down = 0
			}
		case 9:
			shard := shardID(10 + rng.IntN(groups))
			if n := c.leader(shard); n != nil {
				_ = n.store.requestTransfer(shard, 0, func(uint64, error) {})
			}
		}
		switch rng.IntN(3) {
		case 0:
			c.tick()
		case 1:
			c.drain()
		default:
			c.each(func(n *testNode) { n.store.Poll() })
			for range rng.IntN(20) {
				c.net.Step()
			}
		}
	}
	c.net.SetFaults(simnet.Faults{})
	c.net.HealAll()
	if down != 0 {
		c.start(c.nodes[down])
	}
	for i := range groups {
		shard := shardID(10 + i)
		c.until("a leader", func() bool { return c.leader(shard) != nil })
		end := fmt.Sprintf("%d/end", i)
		c.until("a last write", func() bool {
			n := c.leader(shard)
			if n == nil {
				return false
			}
			req := c.write(n, op(wire.OpPut, shard, end, "x"), a, time.Hour)
			c.tick()
			ans, ok := a.of(req)
			return ok && ans.Code == wire.OK
		})
		c.everywhere(shard, end, "x")
		c.until("equal applied indexes", func() bool {
			return c.nodes[1].store.lookup(shard).applied.Load() == c.nodes[2].store.lookup(shard).applied.Load() &&
				c.nodes[2].store.lookup(shard).applied.Load() == c.nodes[3].store.lookup(shard).applied.Load()
		})
	}
	c.until("every request is answered", func() bool { return a.missing() == 0 })
	codes := map[wire.Code]int{}
	for _, at := range tries {
		ans, _ := a.of(at.req)
		codes[ans.Code]++
		got, ok := c.local(c.nodes[1], at.shard, at.key)
		switch {
		case ans.Code == wire.OK && (!ok || got != at.value):
			t.Errorf("acknowledged %s is lost: %q %t", at.key, got, ok)
		case ans.Code != wire.OK && ans.Code != wire.Ambiguous && ok:
			t.Errorf("%s was answered %s and is there", at.key, ans.Code)
		}
	}
	t.Logf("%d writes: %v", len(tries), codes)
	if codes[wire.OK] < 50 {
		t.Errorf("only %d writes were acknowledged", codes[wire.OK])
	}
	c.each(func(n *testNode) {
		if len(n.faults) > 0 {
			t.Errorf("store %s: %v", n.id, n.faults)
		}
	})
	sameState(t, c)
}

// sameState compares every row of all stores, and the logs where they overlap (log matching).
func sameState(t *testing.T, c *cluster) {
	t.Helper()
	dump := func(n *testNode) []byte {
		it, err := n.eng.NewIter(base.UserStart(), base.UserEnd(), false)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		for ; it.Valid(); it.Next() {
			fmt.Fprintf(&b, "%q %d %q\n", it.Key(), it.Header().Version, it.Value())
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	want := dump(c.nodes[1])
	for _, id := range []base.StoreID{2, 3} {
		if got := dump(c.nodes[id]); !bytes.Equal(got, want) {
			t.Errorf("stores 1 and %s differ", id)
		}
	}
	for _, s := range c.nodes[1].store.Summaries() {
		a, b := c.nodes[1].store.lookup(s.Desc.Shard), c.nodes[2].store.lookup(s.Desc.Shard)
		ents := func(r *replica) []raftpb.Entry {
			first, _ := r.worker.log.Bounds()
			out, err := r.worker.log.Entries(first, s.Applied+1, 1<<40)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		ea, eb := ents(a), ents(b)
		if len(ea) != len(eb) {
			t.Fatalf("%s: logs of %d and %d entries", s.Desc.Shard, len(ea), len(eb))
		}
		for i := range ea {
			if ea[i].Term != eb[i].Term || ea[i].Type != eb[i].Type || !bytes.Equal(ea[i].Data, eb[i].Data) {
				t.Fatalf("%s: entry %d differs", s.Desc.Shard, ea[i].Index)
			}
		}
	}
}
