package shardtest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport/simnet"
)

// live is a cluster whose stores run on their own goroutines in virtual time. Its methods belong to the goroutine that
// made it; clients and stores run beside that.
type live struct {
	t      testing.TB
	seed   int64
	net    *simnet.Net
	clock  clock.Clock
	obs    *observer
	nodes  []*liveNode
	shards []base.ShardID
	hist   history
	asks   liveAsks
	moving *moving // nil: replicas stay where they are
	size   int     // number of stores
	leased atomic.Int64
	paused int
	stop   chan struct{}
	wg     sync.WaitGroup
}

type liveNode struct {
	c  *live
	id base.StoreID
	fs *engine.FS

	mu struct {
		sync.RWMutex // read-held while the store is being read
		dead         bool
		store        *shard.Store
		eng          *engine.Engine
		net          *simnet.Node
	}
	life   uint64
	time   *pausing
	cancel context.CancelFunc
	joined chan struct{}
	using  sync.WaitGroup // requests, and streams of snapshots, that use store or engine
}

func (n *liveNode) start() {
	t := n.c.t
	t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "data", FS: n.fs, MemTableBytes: 256 << 10, Fatal: func(err error) {
		t.Errorf("engine of %s (seed %d): %v", n.id, n.c.seed, err)
	}})
	if err != nil {
		t.Fatalf("store %s (seed %d): %v", n.id, n.c.seed, err)
	}
	if n.c.moving == nil {
		logs, err := readLogs(eng)
		if err != nil {
			t.Fatalf("store %s (seed %d): %v", n.id, n.c.seed, err)
		}
		n.c.obs.boots(n.id, logs)
	}
	n.life++
	var store *shard.Store
	monitor := newMonitor(n.id, n.life, n.clock(), n.c.size, func() *shard.Store { return store }, n.sendLiveness)
	cfg := shard.Config{
		Liveness: monitor,
		Store:    n.id, Incarnation: n.life, Engine: eng, Sender: n, Indexes: n, Clock: n.clock(), Workers: 2, ApplyWorkers: 2,
		Tick: tick, Logger: quiet(), EntryBytes: 400, MaxSizePerMsg: 600, MaxInflightMsgs: 8, RequestTimeout: 3 * time.Second,
		OnLeader: n.c.obs.leads,
		Fault: func(id base.ShardID, r base.ReplicaID, reason string) {
			t.Errorf("%s faults (seed %d): %s", base.ReplicaName(id, r), n.c.seed, reason)
		},
	}
	if n.c.moving != nil {
		cfg.Snapshots, cfg.Compaction = carrier{n}, n.c.moving.compaction
		cfg.Merges, cfg.MergeTimeout = n, 3*time.Second
	}
	if store, err = shard.New(cfg); err != nil {
		t.Fatalf("store %s (seed %d): %v", n.id, n.c.seed, err)
	}
	in := &inlet{store: store, wake: make(chan struct{}, 1)}
	at := n.c.net.Node(n.id, in)
	at.SetIncarnation(n.life)
	n.mu.Lock()
	n.mu.store, n.mu.eng, n.mu.net, n.mu.dead = store, eng, at, false
	n.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.joined = cancel, make(chan struct{})
	var parts sync.WaitGroup
	parts.Go(func() { in.run(ctx) })
	parts.Go(func() { _ = monitor.Run(ctx) })
	parts.Go(func() {
		if err := store.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	go func() {
		defer close(n.joined)
		parts.Wait()
	}()
}

// sendLiveness is how the store's Monitor sends.
func (n *liveNode) sendLiveness(to base.StoreID, payload []byte) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.mu.dead {
		n.mu.net.SendLiveness(to, payload)
	}
}

// Send implements shard.Sender.
func (n *liveNode) Send(to base.StoreID, msgs []wire.RaftMessage) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.dead {
		return
	}
	for i := range msgs {
		m := &msgs[i]
		if n.c.moving != nil {
			n.c.moving.sent(m)
			continue
		}
		n.c.obs.sent(m, func() (logEnd, error) {
			logs, err := readLogs(n.mu.eng)
			if err != nil {
				return logEnd{}, err
			}
			return logs[m.Shard].end()
		})
	}
	n.mu.net.Send(to, msgs)
}

// crash cuts the power at this very moment: what was sent or answered before is out, nothing else ever will be.
func (n *liveNode) crash(keepPercent int) {
	n.mu.Lock()
	n.mu.dead = true
	fs := n.fs.CrashClone(keepPercent, n.c.seed+int64(n.life))
	n.mu.Unlock()
	n.c.net.Crash(n.id)
	n.cancel()
	<-n.joined
	n.using.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.mu.eng.Close(); err != nil {
		n.c.t.Error(err)
	}
	n.mu.store, n.mu.eng = nil, nil
	n.fs = fs
}

func (n *liveNode) up() bool { return n.mu.store != nil }

// wait is a shard.Waiter for one request.
type wait chan wire.Answer

func (w wait) Complete(_ uint64, a wire.Answer) { w <- a }

// do sends one operation to a store and returns its answer; Ambiguous if the store dies meanwhile.
func (n *liveNode) do(op *wire.Op) wire.Answer {
	w := make(wait, 1)
	n.mu.RLock()
	store := n.mu.store
	if n.mu.dead || store == nil {
		n.mu.RUnlock()
		return wire.Answer{Code: wire.Unavailable}
	}
	n.using.Add(1)
	n.mu.RUnlock()
	defer n.using.Done()
	if a, ok := n.readNow(store, op); ok {
		n.mu.RLock()
		defer n.mu.RUnlock()
		if n.mu.dead || n.mu.store != store {
			return wire.Answer{Code: wire.Ambiguous}
		}
		return a
	}
	if op.Code.IsRead() {
		store.ReadIndex([]shard.ReadRequest{{
			Shard: op.Shard, Version: op.Version, Key: op.Key, Req: 1, Waiter: w,
			Follower: op.Flags&wire.FlagFollower != 0, MaxAge: time.Duration(op.MaxAge) * time.Millisecond,
		}})
	} else {
		store.Write([]shard.WriteRequest{{Shard: op.Shard, Version: op.Version, Req: 1, Raw: op.Append(nil), Waiter: w}})
	}
	a := <-w
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.dead || n.mu.store != store {
		return wire.Answer{Code: wire.Ambiguous}
	}
	if op.Code.IsRead() && a.Code == wire.OK {
		if _, err := wire.DecodeAnswer(store.Read(op, nil), &a); err != nil {
			n.c.t.Error(err)
		}
	}
	return a
}

// client reads and writes random keys until the cluster stops its clients. Half of them only read, and stay with a
// store as long as it answers.
func (c *live) client(id int) {
	rng := rand.New(rand.NewPCG(uint64(c.seed), uint64(100+id)))
	leader := map[base.ShardID]base.StoreID{}
	for i := 0; ; i++ {
		select {
		case <-c.stop:
			return
		case <-time.After(time.Duration(rng.IntN(60)) * time.Millisecond):
		}
		sh := c.shards[rng.IntN(len(c.shards))]
		o := operation{client: id, key: fmt.Sprintf("%s/%d", sh, rng.IntN(3)), call: c.clock.Boot()}
		o.read = id%2 == 0 || rng.IntN(4) == 0
		op := wire.Op{Code: wire.OpGet, Shard: sh, Version: 1, Key: base.UserKey([]byte(o.key))}
		if !o.read {
			o.value = fmt.Sprintf("%d.%d", id, i)
			op.Code, op.Value = wire.OpPut, []byte(o.value)
		}
		to, anywhere := leader[sh], chooseReplica(rng, &op, &o)
		if to == 0 || anywhere || id%2 == 1 && rng.IntN(10) == 0 {
			to = base.StoreID(1 + rng.IntN(len(c.nodes)))
		}
		a := c.nodes[to-1].do(&op)
		o.back = c.clock.Boot()
		if !anywhere {
			leader[sh] = to
		}
		switch {
		case a.Code == wire.OK || a.Code == wire.NotFound:
			o.version = a.Arg
			if o.read {
				o.value = string(a.Payload)
			}
			c.hist.add(o)
		case a.Code == wire.Ambiguous:
			delete(leader, sh)
			if !o.read {
				o.open, o.back = true, math.MaxInt64
				c.hist.add(o)
			}
		case a.Code == wire.NotLeader && a.Arg > 0:
			leader[sh] = base.StoreID(a.Arg)
		case a.Code == wire.Failed || a.Code == wire.Invalid:
			c.t.Errorf("%s: %s %s (seed %d)", o.key, a.Code, a.Payload, c.seed)
		default:
			delete(leader, sh) // definite: it never happened and never will
		}
	}
}

// look checks the logs of all running stores at a moment at which nothing moves.
func (c *live) look() {
	synctest.Wait()
	for _, n := range c.nodes {
		if !n.up() {
			continue
		}
		logs, err := readLogs(n.mu.eng)
		if err != nil {
			c.t.Errorf("store %s (seed %d): %v", n.id, c.seed, err)
			return
		}
		for _, id := range shardsOf(logs) {
			st, _ := n.mu.store.Status(id)
			c.obs.look(n.id, logs[id], st.Term, st.Leads)
		}
	}
}

// torment does one random thing to the cluster.
func (c *live) torment(rng *rand.Rand) {
	any := func() *liveNode { return c.nodes[rng.IntN(len(c.nodes))] }
	n := any()
	switch rng.IntN(21) {
	case 18, 19:
		c.pauseOne(rng, c.leader(rng))
	case 20:
		c.pauseOne(rng, n)
	case 0:
		c.net.Isolate(n.id)
	case 1, 2:
		c.net.Cut(n.id, any().id)
	case 3:
		a, b := n.id, any().id
		c.net.Cut(a, b)
		c.net.Cut(b, a)
	case 4, 5, 6:
		c.net.HealAll()
	case 7, 8:
		if n.up() && c.down() < (len(c.nodes)-1)/2 {
			n.crash([]int{0, 50, 100}[rng.IntN(3)])
		}
	case 9, 10, 11:
		for _, n := range c.nodes {
			if !n.up() {
				n.start()
				break
			}
		}
	case 12:
		c.net.SetFaults(simnet.Faults{
			Drop: rng.Float64() * 0.2, Duplicate: rng.Float64() * 0.2, Reorder: rng.Float64() * 0.3,
			MinDelay: time.Millisecond, MaxDelay: time.Duration(1+rng.IntN(150)) * time.Millisecond,
		})
	case 15:
		c.net.Isolate(c.leader(rng).id)
	case 16, 17:
		// The leader's order to take over gets through and nothing comes back: two leaders for a while, and only the
		// quorum keeps the old one from answering reads.
		old := c.leader(rng)
		for _, m := range c.nodes {
			c.net.Cut(m.id, old.id)
		}
		if old.up() {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			for _, sh := range c.shards {
				_, _ = old.mu.store.Transfer(ctx, sh, any().id)
			}
			cancel()
		}
	case 13, 14:
		if n.up() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_, _ = n.mu.store.Transfer(ctx, c.shards[rng.IntN(len(c.shards))], any().id) // most are refused
			cancel()
		}
	}
}

// leader returns a store that leads some shard; any store if there is none.
func (c *live) leader(rng *rand.Rand) *liveNode {
	sh := c.shards[rng.IntN(len(c.shards))]
	for _, n := range c.nodes {
		if n.up() {
			if st, ok := n.mu.store.Status(sh); ok && st.Leads {
				return n
			}
		}
	}
	return c.nodes[rng.IntN(len(c.nodes))]
}

func (c *live) down() (n int) {
	for _, m := range c.nodes {
		if !m.up() {
			n++
		}
	}
	return n
}

// heal ends all faults and waits until every shard has taken a write and each of its replicas has applied that. Clients
// go on meanwhile, so that no two replicas need ever be equal at one instant: a follower hears of the last commit with
// the next write.
func (c *live) heal() {
	c.net.HealAll()
	c.net.SetFaults(simnet.Faults{MinDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond})
	for _, n := range c.nodes {
		if !n.up() {
			n.start()
		}
	}
	end := c.clock.Boot() + time.Minute
	for _, sh := range c.shards {
		key := base.UserKey([]byte(sh.String() + "/end"))
		op := wire.Op{Code: wire.OpPut, Shard: sh, Version: 1, Key: key, Value: []byte("x")}
		for i := 0; c.nodes[i%len(c.nodes)].do(&op).Code != wire.OK; i++ {
			time.Sleep(tick)
			if c.clock.Boot() > end {
				c.t.Fatalf("%s takes no write a minute after the last fault (seed %d)", sh, c.seed)
			}
		}
	}
	for _, sh := range c.shards {
		for _, written := c.applied(sh); ; time.Sleep(tick) {
			least, _ := c.applied(sh)
			if least >= written {
				break
			}
			if c.clock.Boot() > end {
				c.t.Fatalf("a replica of %s has applied %d of %d a minute after the last fault (seed %d)", sh, least, written, c.seed)
			}
		}
	}
}

// applied returns how far the replica of a shard that is furthest behind has applied, and the one that is furthest ahead.
func (c *live) applied(sh base.ShardID) (least, most uint64) {
	synctest.Wait()
	least = math.MaxUint64
	for _, n := range c.nodes {
		if st, ok := n.mu.store.Status(sh); ok {
			least, most = min(least, st.Applied), max(most, st.Applied)
		}
	}
	return least, most
}

// equal waits, once no client writes, until all replicas of each shard have applied all of the same log.
func (c *live) equal() {
	end := c.clock.Boot() + time.Minute
	for _, sh := range c.shards {
		for {
			least, most := c.applied(sh)
			for _, n := range c.nodes {
				if st, ok := n.mu.store.Status(sh); ok {
					least, most = min(least, st.LastIndex), max(most, st.LastIndex)
				}
			}
			if least == most {
				break
			}
			if c.clock.Boot() > end {
				c.t.Fatalf("replicas of %s still differ, %d and %d, a minute after the last write (seed %d)", sh, least, most, c.seed)
			}
			time.Sleep(tick)
		}
	}
}

// runLive torments a cluster for a while of virtual time and returns what its clients saw.
func runLive(t *testing.T, seed int64, stores, replicas, shards int, lasts time.Duration) *live {
	c := &live{t: t, seed: seed, size: stores, net: simnet.New(seed), clock: clock.Process(), obs: newObserver(t)}
	c.stop = make(chan struct{})
	seedRaft(seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 3))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.wg.Go(func() { _ = c.net.Run(ctx) })
	for i := range stores {
		n := &liveNode{c: c, id: base.StoreID(i + 1), fs: engine.NewMemFS()}
		c.nodes = append(c.nodes, n)
		n.start()
	}
	defer func() {
		for _, n := range c.nodes {
			if n.up() {
				n.crash(100)
			}
		}
		cancel()
		c.wg.Wait()
	}()
	for i := range shards {
		id := base.ShardID(10 + i)
		c.shards = append(c.shards, id)
		var on []base.StoreID
		for k := range replicas {
			on = append(on, base.StoreID(1+(i+k)%stores))
		}
		d := desc(id, id.String()+"/", id.String()+"0", on...)
		for _, st := range on {
			// Nobody campaigns, so that no log is looked at before all replicas are there.
			if err := c.nodes[st-1].mu.store.Create(d, nil, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.net.SetFaults(simnet.Faults{MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond})
	var clients sync.WaitGroup
	rest := sync.OnceFunc(func() {
		close(c.stop)
		clients.Wait()
	})
	defer rest() // before the stores go, however this ends
	for i := range 8 {
		clients.Go(func() { c.client(i) })
	}
	for end := c.clock.Boot() + lasts; c.clock.Boot() < end && !t.Failed(); {
		time.Sleep(time.Duration(rng.IntN(900)) * time.Millisecond)
		c.look()
		c.torment(rng)
	}
	c.heal()
	rest()
	c.equal()
	c.look()
	c.finish()
	return c
}

// finish compares the state of all stores with each other and with their logs.
func (c *live) finish() {
	c.t.Helper()
	r := newReplayer(c.t)
	defer r.close()
	for _, n := range c.nodes {
		r.check(fmt.Sprintf("%s at the end, seed %d", n.id, c.seed), n.mu.eng)
	}
}

func TestClustersUnderFaultsKeepRaftsPropertiesAndAreLinearizable(t *testing.T) {
	for _, size := range []struct {
		stores, replicas, shards, seeds int
	}{{3, 3, 4, 4}, {5, 5, 3, 3}, {5, 3, 6, 3}} {
		t.Run(fmt.Sprintf("%d stores, %d replicas, %d shards", size.stores, size.replicas, size.shards), func(t *testing.T) {
			eachSeed(t, size.seeds, func(t *testing.T, seed int64) {
				var c *live
				synctest.Test(t, func(t *testing.T) {
					c = runLive(t, seed, size.stores, size.replicas, size.shards, time.Minute)
				})
				reads, writes, open := 0, 0, 0
				for _, o := range c.hist.mu.ops {
					switch {
					case o.open:
						open++
					case o.read:
						reads++
					default:
						writes++
					}
				}
				terms := 0
				for _, g := range c.obs.mu.groups {
					terms += len(g.leaders)
				}
				t.Logf("%d reads, %d writes, %d of unknown outcome, %d leaders", reads, writes, open, terms)
				if reads < 100 || writes < 100 || terms <= size.shards {
					t.Errorf("too little happened to prove anything")
				}
				c.asks.check(t, &c.hist)
				c.checkLeases(t)
				c.hist.check(t)
			})
		})
	}
}
