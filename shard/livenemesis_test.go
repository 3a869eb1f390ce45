package shard

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport/simnet"
)

var liveSeed = flag.Int64("live.seed", 0, "seed of TestLeaseReadsAreNeverStale; 0: random ones")

// TestLeaseReadsAreNeverStale counts keys up through a network that loses, repeats and reorders, over stores that are
// cut off, paused, crashed and started again, whose clocks run at different rates, while leaderships are transferred,
// shards split and replicas moved. Every read, by a lease or by a read index, at any store that is willing, has to see
// the last count that was acknowledged before it. And at no moment do two stores hold a lease of one shard.
func TestLeaseReadsAreNeverStale(t *testing.T) {
	seeds := []int64{*liveSeed}
	if *liveSeed == 0 {
		seeds = nil
		n := 20
		if testing.Short() {
			n = 5
		}
		for range n {
			seeds = append(seeds, rand.Int64N(1<<40)+1)
		}
	}
	total := 0
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { total += newCounters(t, seed).run() })
	}
	if *liveSeed == 0 && total < 100*len(seeds) {
		t.Errorf("%d reads by a lease under %d seeds", total, len(seeds))
	}
}

// counters is one such world.
type counters struct {
	t    *testing.T
	c    *cluster
	rng  *rand.Rand
	seed int64
	keys []*counter
	a    *answers
	open []counterOp
	next uint64 // shard ids

	leased, indexed, writes int
	wake                    map[base.StoreID]int // tick at which a paused store goes on
	tick                    int
}

type counter struct {
	key   string
	tried int // highest value written, or tried to
	acked int // highest one acknowledged
}

// counterOp is a request without an answer.
type counterOp struct {
	k     *counter
	n     *testNode
	life  uint64
	shard base.ShardID
	req   uint64
	value int // of a write
	least int // of a read: what it has to see
}

func newCounters(t *testing.T, seed int64) *counters {
	w := &counters{
		t: t, rng: rand.New(rand.NewPCG(uint64(seed), 2)), seed: seed, a: newAnswers(t), next: 50,
		wake: map[base.StoreID]int{},
	}
	w.c = newLiveCluster(t, 4, func(cfg *Config) {
		small(cfg)
		cfg.EntryBytes, cfg.PassBytes, cfg.MaxSizePerMsg = 200, 2000, 300
		cfg.NoSleep = seed%4 == 3
	})
	w.c.create(desc(10, "a", "m", 1, 2, 3))
	w.c.create(desc(11, "m", "z", 2, 3, 4))
	for _, k := range []string{"b", "f", "k", "n", "r", "v"} {
		w.keys = append(w.keys, &counter{key: k})
	}
	for _, n := range w.c.nodes {
		n.rate = (w.rng.Float64()*2 - 1) * 0.024 // two of them differ by less than the margin
	}
	w.c.net.SetFaults(simnet.Faults{Drop: 0.03, Duplicate: 0.05, Reorder: 0.1, MaxDelay: 3 * time.Millisecond})
	return w
}

// of returns the shard of a key, as a store knows it.
func (w *counters) of(n *testNode, key string) (*base.Descriptor, bool) {
	for _, r := range n.store.all() {
		if d := r.desc.Load(); d != nil && d.Contains(base.UserKey([]byte(key))) {
			return d, true
		}
	}
	return nil, false
}

func (w *counters) run() int {
	for range 700 {
		w.act()
		w.c.eachStore(func(n *testNode) {
			for range w.rng.IntN(4) {
				w.request(n, w.keys[w.rng.IntN(len(w.keys))])
			}
		})
		switch w.rng.IntN(4) {
		case 0, 1:
			w.step()
		case 2:
			w.c.drain()
		default:
			w.c.each(func(n *testNode) { n.store.Poll() })
			for range w.rng.IntN(20) {
				w.c.net.Step()
			}
		}
		w.settleAnswers()
		if w.t.Failed() {
			w.t.Fatalf("repeat with -live.seed=%d", w.seed)
		}
	}
	w.end()
	return w.leased
}

// step lets time pass.
func (w *counters) step() {
	w.tick++
	for id, at := range w.wake {
		if at <= w.tick {
			w.c.nodes[id].paused = false
			delete(w.wake, id)
		}
	}
	w.c.tick()
}

// act does something to the world.
func (w *counters) act() {
	any := func() *testNode { return w.c.nodes[base.StoreID(1+w.rng.IntN(4))] }
	switch w.rng.IntN(60) {
	case 0:
		w.c.net.Isolate(any().id)
	case 1:
		w.c.net.Cut(any().id, any().id)
	case 2, 3, 4:
		w.c.net.HealAll()
	case 5:
		if n := any(); n.store != nil && w.rng.IntN(2) == 0 {
			w.c.crash(n, []int{0, 30, 100}[w.rng.IntN(3)])
			n.paused = false
			delete(w.wake, n.id)
		}
	case 6, 7, 8:
		if n := any(); n.store == nil {
			w.c.start(n)
		}
	case 9, 10, 11:
		if n := any(); n.store != nil { // half a promise to five of them
			n.paused = true
			w.wake[n.id] = w.tick + 4 + w.rng.IntN(37)
		}
	case 12, 13:
		n := any()
		if n.store == nil {
			return
		}
		for _, r := range n.store.all() {
			if r.lead.Load().leads && w.rng.IntN(2) == 0 {
				_ = n.store.requestTransfer(r.shard, 0, func(uint64, error) {})
			}
		}
	case 14:
		w.split(any())
	case 15, 16, 17:
		w.move(any())
	}
}

// split divides a shard that a store leads.
func (w *counters) split(n *testNode) {
	if n.store == nil || w.next > 56 {
		return
	}
	d, ok := w.of(n, w.keys[w.rng.IntN(len(w.keys))].key)
	if !ok || !n.store.lookup(d.Shard).lead.Load().leads {
		return
	}
	at := base.UserKey([]byte(string(rune('a' + w.rng.IntN(25)))))
	if !d.Contains(at) || string(at) == string(d.Start) {
		return
	}
	side := SplitSide{ID: base.ShardID(w.next), Start: at, Share: 500_000}
	w.next++
	n.store.call(n.store.lookup(d.Shard), func(r *replica) {
		n.store.workerOf(r.shard).startSplit(r, d.Epoch, []SplitSide{side}, func(*base.Descriptor, []*base.Descriptor, error) {})
	})
}

// move takes a step of moving a replica of a shard that a store leads.
func (w *counters) move(n *testNode) {
	if n.store == nil {
		return
	}
	d, ok := w.of(n, w.keys[w.rng.IntN(len(w.keys))].key)
	if !ok || !n.store.lookup(d.Shard).lead.Load().leads || isJoint(d) {
		return
	}
	var learner, out base.StoreID
	for _, rep := range d.Replicas {
		if rep.Role == base.RoleLearner {
			learner = rep.Store
		} else if rep.Store != n.id || w.rng.IntN(4) == 0 {
			out = rep.Store
		}
	}
	var changes []ReplicaChange
	voters := len(d.Replicas)
	if learner != 0 {
		voters--
	}
	switch free := w.free(d); {
	case learner != 0 && voters < 4 && w.rng.IntN(2) == 0:
		changes = []ReplicaChange{{Op: Promote, Store: learner}}
		if out != 0 && voters > 2 {
			changes = append(changes, ReplicaChange{Op: Demote, Store: out})
		}
	case learner != 0:
		changes = []ReplicaChange{{Op: Remove, Store: learner}}
	case free != 0:
		changes = []ReplicaChange{{Op: AddLearner, Store: free}}
	case out != 0 && voters > 3:
		changes = []ReplicaChange{{Op: Demote, Store: out}}
	default:
		return
	}
	req := &changeRequest{changes: changes, ticks: 3, done: func(*base.Descriptor, error) {}}
	n.store.call(n.store.lookup(d.Shard), func(r *replica) { n.store.workerOf(r.shard).startChange(r, req) })
}

// free returns a store without a replica of a shard, 0 if there is none.
func (w *counters) free(d *base.Descriptor) base.StoreID {
	for _, id := range w.c.ids() {
		if _, ok := d.ReplicaOn(id); !ok {
			return id
		}
	}
	return 0
}

// request counts a key up, or reads it.
func (w *counters) request(n *testNode, k *counter) {
	d, ok := w.of(n, k.key)
	if !ok {
		return
	}
	what := w.rng.IntN(4)
	if n.paused {
		what = 3 // its workers stand still, its readers do not
	}
	switch what {
	case 0:
		k.tried++
		w.writes++
		o := op(wire.OpPut, d.Shard, k.key, strconv.Itoa(k.tried))
		o.Version = d.Epoch.Version
		req := w.c.write(n, o, w.a, time.Duration(1+w.rng.IntN(10))*time.Second)
		w.open = append(w.open, counterOp{k: k, n: n, life: n.life, shard: d.Shard, req: req, value: k.tried})
	case 1:
		w.c.next++
		req := w.c.next
		w.a.expect(req)
		w.open = append(w.open, counterOp{k: k, n: n, life: n.life, shard: d.Shard, req: req, least: k.acked})
		n.store.ReadIndex([]ReadRequest{{
			Shard: d.Shard, Version: d.Epoch.Version, Key: base.UserKey([]byte(k.key)), Req: req, Waiter: w.a,
		}})
	default:
		o := op(wire.OpGet, d.Shard, k.key, "")
		o.Version = d.Epoch.Version
		out, ok := n.store.ReadNow(&o, nil, n.Boot())
		if !ok {
			return
		}
		var a wire.Answer
		if _, err := wire.DecodeAnswer(out, &a); err != nil {
			w.t.Fatal(err)
		}
		w.leased++
		w.saw("a lease", n, k, k.acked, a)
	}
}

// saw checks what a read has returned.
func (w *counters) saw(how string, n *testNode, k *counter, least int, a wire.Answer) {
	got := 0
	switch a.Code {
	case wire.OK:
		got, _ = strconv.Atoi(string(a.Payload))
	case wire.NotFound:
	default:
		return
	}
	if got < least {
		w.t.Errorf("by %s at %s, %s is %d, though %d was acknowledged before", how, n.id, k.key, got, least)
	}
	if got > k.tried {
		w.t.Errorf("by %s at %s, %s is %d, and no more than %d was written", how, n.id, k.key, got, k.tried)
	}
}

// settleAnswers takes the answers that are there.
func (w *counters) settleAnswers() {
	keep := w.open[:0]
	for _, o := range w.open {
		a, ok := w.a.of(o.req)
		switch {
		case !ok:
			keep = append(keep, o)
		case o.value > 0:
			if a.Code == wire.OK {
				o.k.acked = max(o.k.acked, o.value)
			}
		case a.Code == wire.OK && o.n.store != nil && o.n.life == o.life && !o.n.paused:
			w.readConfirmed(o)
		}
	}
	w.open = keep
}

// readConfirmed reads at the store that has confirmed it.
func (w *counters) readConfirmed(o counterOp) {
	g := op(wire.OpGet, o.shard, o.k.key, "")
	d, ok := o.n.store.Descriptor(o.shard)
	if !ok || !d.Contains(base.UserKey([]byte(o.k.key))) {
		return
	}
	g.Version = d.Epoch.Version
	var a wire.Answer
	if _, err := wire.DecodeAnswer(o.n.store.Read(&g, nil), &a); err != nil {
		w.t.Fatal(err)
	}
	w.indexed++
	w.saw("a read index", o.n, o.k, o.least, a)
}

// end heals everything and looks whether all of it works again.
func (w *counters) end() {
	c := w.c
	c.net.SetFaults(simnet.Faults{})
	c.net.HealAll()
	for _, id := range c.ids() {
		c.nodes[id].paused = false
		if c.nodes[id].store == nil {
			c.start(c.nodes[id])
		}
	}
	for _, k := range w.keys {
		k.tried++
		var req uint64
		c.until("a last write of "+k.key, func() bool {
			if a, ok := w.a.of(req); ok && a.Code == wire.OK {
				return true
			} else if req != 0 && !ok {
				return false
			}
			c.each(func(n *testNode) {
				if d, ok := w.of(n, k.key); ok && n.store.lookup(d.Shard).lead.Load().leads {
					o := op(wire.OpPut, d.Shard, k.key, strconv.Itoa(k.tried))
					o.Version = d.Epoch.Version
					req = c.write(n, o, w.a, time.Minute)
				}
			})
			return false
		})
		k.acked = k.tried
		seen := false
		c.until("a lease for "+k.key, func() bool {
			c.each(func(n *testNode) {
				if d, ok := w.of(n, k.key); ok {
					o := op(wire.OpGet, d.Shard, k.key, "")
					o.Version = d.Epoch.Version
					if out, ok := n.store.ReadNow(&o, nil, n.Boot()); ok {
						var a wire.Answer
						_, _ = wire.DecodeAnswer(out, &a)
						w.saw("a lease", n, k, k.acked, a)
						seen = seen || a.Code == wire.OK
					}
				}
			})
			return seen
		})
	}
	c.until("every request is answered", func() bool { return w.a.missing() == 0 })
	c.noFaults()
	w.t.Logf("%d writes, %d reads by a lease, %d by an index", w.writes, w.leased, w.indexed)
}
