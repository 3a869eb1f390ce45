package shard

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
	"github.com/shardd/shardd/transport/simnet"
)

// manualClock is moved by the test.
type manualClock struct{ now atomic.Int64 }

func (c *manualClock) Boot() time.Duration { return time.Duration(c.now.Load()) }
func (c *manualClock) Wall() time.Time     { return time.Unix(1_700_000_000, 0).Add(c.Boot()) }

// cluster is a few stores in one process whose schedule the test owns: nothing moves but through its methods, except
// the engines' sync waiters, which settle waits for.
type cluster struct {
	t     *testing.T
	clock *manualClock
	net   *simnet.Net
	tune  func(*Config)
	nodes map[base.StoreID]*testNode
	next  uint64 // request ids
	live  bool   // stores have Monitors

	staged uint64 // ids of stagings
}

type testNode struct {
	c      *cluster
	id     base.StoreID
	fs     *engine.FS
	eng    *engine.Engine
	store  *Store
	life   uint64
	sender Sender
	fatal  atomic.Bool
	faults []string
	hold   bool  // apply and the life-cycle goroutine stand still
	inline int64 // the store's InlineBytes while they do not
	lazy   bool  // apply alone does
	paused bool  // the process stands still: messages wait in its inboxes
	ship   *shipper

	live     *liveness.Monitor
	promise  time.Duration // that its next life gives; 0: testPromise, negative: none
	recorded time.Duration // that its next life keeps quiet for; 0: testPromise
	mute     bool          // its Monitor is not heard
	deaf     bool          // it forgets what leaders release
	skew     time.Duration // of its clock
	rate     float64       // by which that runs too fast
	onBoot   func()        // its clock is about to be read
}

func newCluster(t *testing.T, stores int, tune func(*Config)) *cluster {
	t.Helper()
	if *allLive {
		return newLiveCluster(t, stores, tune)
	}
	return newPlainCluster(t, stores, tune)
}

// newPlainCluster is newCluster, always without store liveness: there are no leases, so that reads wait for a quorum, and
// nothing sleeps.
func newPlainCluster(t *testing.T, stores int, tune func(*Config)) *cluster {
	t.Helper()
	return makeCluster(t, stores, tune, false)
}

func makeCluster(t *testing.T, stores int, tune func(*Config), live bool) *cluster {
	t.Helper()
	seed := rand.Int64()
	t.Logf("simnet seed %d", seed)
	c := &cluster{
		t: t, clock: &manualClock{}, net: simnet.New(seed), tune: tune, nodes: map[base.StoreID]*testNode{}, live: live,
	}
	c.clock.now.Store(int64(time.Hour))
	for i := range stores {
		n := &testNode{c: c, id: base.StoreID(i + 1), fs: engine.NewMemFS()}
		c.nodes[n.id] = n
	}
	for _, id := range c.ids() {
		c.start(c.nodes[id])
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			c.stop(n)
		}
	})
	return c
}

// holdSyncs makes a store's disk stand still until release is called, at the latest when the test ends.
func (c *cluster) holdSyncs(n *testNode) (release func()) {
	release = sync.OnceFunc(n.fs.HoldSyncs())
	c.t.Cleanup(release)
	return release
}

func (c *cluster) ids() []base.StoreID {
	var out []base.StoreID
	for id := range c.nodes {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func (c *cluster) start(n *testNode) {
	c.t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "data", FS: n.fs, Fatal: func(error) { n.fatal.Store(true) }})
	if err != nil {
		c.t.Fatal(err)
	}
	n.eng = eng
	n.life++
	late := &lateSender{from: n}
	if n.ship == nil {
		n.ship = &shipper{c: c, from: n}
	}
	if c.live {
		n.live = c.newMonitor(n)
	}
	cfg := Config{
		Store: n.id, Incarnation: n.life, Engine: eng, Sender: late, Snapshots: n.ship, Clock: n, Liveness: n.live,
		Workers: 1, ApplyWorkers: 1,
		Registerer: prometheus.NewRegistry(),
		Fault: func(_ base.ShardID, _ base.ReplicaID, reason string) {
			c.t.Logf("fault on %s: %s", n.id, reason)
			n.faults = append(n.faults, reason)
		},
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	if n.store, err = New(cfg); err != nil {
		c.t.Fatal(err)
	}
	n.inline = n.store.cfg.InlineBytes
	at := c.net.Node(n.id, n.store)
	at.SetIncarnation(n.life)
	late.to = at
	n.sender = late
}

// Boot and Wall make a node its store's clock.
func (n *testNode) Boot() time.Duration {
	if f := n.onBoot; f != nil {
		f()
	}
	return n.c.clock.Boot() + n.skew
}

// Wall implements clock.Clock.
func (n *testNode) Wall() time.Time { return n.c.clock.Wall() }

// lateSender breaks the circle between a store and its network, and lets a test look at what is sent.
type lateSender struct {
	from *testNode
	to   Sender
	tap  func(to base.StoreID, msgs []wire.RaftMessage)
	pass func(m *wire.RaftMessage) bool // nil: all
}

func (l *lateSender) Send(to base.StoreID, msgs []wire.RaftMessage) {
	l.checkLeases(msgs)
	if l.tap != nil {
		l.tap(to, msgs)
	}
	if l.pass != nil {
		var kept []wire.RaftMessage
		for _, m := range msgs {
			if l.pass(&m) { // it may have changed it
				kept = append(kept, m)
			}
		}
		msgs = kept
	}
	l.to.Send(to, msgs)
}

// filter drops what the store sends unless f says otherwise; nil passes everything.
func (n *testNode) filter(f func(m *wire.RaftMessage) bool) { n.sender.(*lateSender).pass = f }

func (n *testNode) tap(f func(to base.StoreID, msgs []wire.RaftMessage)) {
	n.sender.(*lateSender).tap = f
}

// stop ends a store in order, as a process would on SIGTERM.
func (c *cluster) stop(n *testNode) {
	if n.store == nil {
		return
	}
	c.net.Crash(n.id)
	n.store.stop()
	if err := n.eng.Close(); err != nil && !n.fatal.Load() {
		c.t.Error(err)
	}
	n.store, n.eng = nil, nil
}

// crash ends a store as a power loss would, keeping a share of what was not synced.
func (c *cluster) crash(n *testNode, keepPercent int) {
	fs := n.fs.CrashClone(keepPercent, 1)
	c.stop(n)
	n.fs = fs
}

// each calls f for the running stores that do not stand still, in order.
func (c *cluster) each(f func(*testNode)) {
	for _, id := range c.ids() {
		if n := c.nodes[id]; n.store != nil && !n.paused {
			f(n)
		}
	}
}

// eachStore is each with those that stand still.
func (c *cluster) eachStore(f func(*testNode)) {
	for _, id := range c.ids() {
		if n := c.nodes[id]; n.store != nil {
			f(n)
		}
	}
}

// drain moves everything that can move without waiting for a disk.
func (c *cluster) drain() {
	for worked := true; worked; {
		worked = false
		c.each(func(n *testNode) {
			// The worker itself applies nothing either while apply stands still.
			if n.store.cfg.InlineBytes = n.inline; n.hold || n.lazy {
				n.store.cfg.InlineBytes = -1
			}
			if n.hold {
				worked = n.store.pool.Poll(0) || worked // harness stores have one worker
				return
			}
			if n.lazy {
				worked = n.store.pool.Poll(0) || worked
				worked = n.store.pollLife() || worked
				return
			}
			worked = n.store.Poll() || worked
		})
		c.each(func(n *testNode) { worked = n.ship.ship() || worked })
		for c.net.Step() {
			worked = true
		}
	}
}

// settle moves everything until nothing is left to do without a tick.
func (c *cluster) settle() {
	for {
		c.drain()
		syncing := false
		c.each(func(n *testNode) {
			for _, w := range n.store.workers {
				syncing = syncing || w.syncing > 0
			}
			syncing = syncing || !n.hold && n.store.life.busy()
		})
		if !syncing {
			return
		}
		runtime.Gosched()
	}
}

func (c *cluster) tick() {
	c.clock.now.Add(int64(100 * time.Millisecond))
	c.drift(100 * time.Millisecond)
	c.beat()
	c.each(func(n *testNode) { n.store.TickAll() })
	c.settle()
	if c.live {
		c.checkHolders()
	}
}

// until ticks until cond holds.
func (c *cluster) until(what string, cond func() bool) {
	c.t.Helper()
	c.settle()
	for range 200 {
		if cond() {
			return
		}
		c.tick()
	}
	c.t.Fatalf("not within 200 ticks: %s", what)
}

// desc is a descriptor over [start, end) of user keys with one replica per store, ids 1..n.
func desc(shard base.ShardID, start, end string, stores ...base.StoreID) *base.Descriptor {
	d := &base.Descriptor{
		Shard: shard, Start: base.UserKey([]byte(start)), End: base.UserEnd(),
		Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: base.ReplicaID(len(stores) + 1),
	}
	if end != "" {
		d.End = base.UserKey([]byte(end))
	}
	for i, s := range stores {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: s, Role: base.RoleVoter})
	}
	return d
}

// create makes a shard on its stores; the first one campaigns and leads.
func (c *cluster) create(d *base.Descriptor) {
	c.t.Helper()
	for i, r := range d.Replicas {
		if err := c.nodes[r.Store].store.Create(d, nil, i == 0); err != nil {
			c.t.Fatal(err)
		}
	}
	c.until("leader of "+d.Shard.String(), func() bool { return c.leader(d.Shard) != nil })
}

// leader returns the live store that leads a shard at the highest term and that a quorum follows, or nil.
func (c *cluster) leader(shard base.ShardID) *testNode {
	var best *testNode
	var term uint64
	followers := 0
	c.each(func(n *testNode) {
		if r := n.store.lookup(shard); r != nil {
			if l := r.lead.Load(); l.leads && l.term >= term {
				best, term = n, l.term
			}
		}
	})
	if best == nil {
		return nil
	}
	d, _ := best.store.Descriptor(shard)
	c.each(func(n *testNode) {
		if s, t, _ := n.store.Leader(shard); s == best.id && t == term {
			followers++
		}
	})
	voters := 0
	for _, r := range d.Replicas {
		if r.Role == base.RoleVoter {
			voters++
		}
	}
	if followers*2 <= voters {
		return nil
	}
	return best
}

// answers is a Waiter that checks that every request is completed exactly once.
type answers struct {
	t  testing.TB
	mu struct {
		sync.Mutex
		open map[uint64]bool
		got  map[uint64]wire.Answer
	}
}

func newAnswers(t testing.TB) *answers {
	a := &answers{t: t}
	a.mu.open, a.mu.got = map[uint64]bool{}, map[uint64]wire.Answer{}
	return a
}

func (a *answers) expect(req uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.open[req] = true
}

func (a *answers) Complete(req uint64, ans wire.Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.mu.open[req] {
		a.t.Errorf("request %d completed twice or never made: %s", req, ans.Code)
	}
	if ans.Req != req {
		a.t.Errorf("request %d has an answer for %d", req, ans.Req)
	}
	delete(a.mu.open, req)
	a.mu.got[req] = ans
}

func (a *answers) of(req uint64) (wire.Answer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ans, ok := a.mu.got[req]
	return ans, ok
}

func (a *answers) missing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.mu.open)
}

// version returns the Epoch.Version of a shard as a store knows it.
func version(n *testNode, shard base.ShardID) uint64 {
	d, ok := n.store.Descriptor(shard)
	if !ok {
		return 1
	}
	return d.Epoch.Version
}

// op builds a write or read for a shard at version 1.
func op(code wire.OpCode, shard base.ShardID, key, value string) wire.Op {
	return wire.Op{Code: code, Shard: shard, Version: 1, Key: base.UserKey([]byte(key)), Value: []byte(value)}
}

// write sends one write to a store without waiting for its answer.
func (c *cluster) write(n *testNode, o wire.Op, a *answers, deadline time.Duration) uint64 {
	c.next++
	req := c.next
	o.Req = 1_000_000 + req // the client's id; the store must answer with its caller's
	a.expect(req)
	if deadline != 0 {
		deadline += c.clock.Boot()
	}
	n.store.Write([]WriteRequest{{
		Shard: o.Shard, Version: o.Version, Req: req, Raw: o.Append(nil), Deadline: deadline, Waiter: a,
	}})
	return req
}

func (c *cluster) readIndex(n *testNode, shard base.ShardID, a *answers, deadline time.Duration) uint64 {
	c.next++
	req := c.next
	a.expect(req)
	if deadline != 0 {
		deadline += c.clock.Boot()
	}
	n.store.ReadIndex([]ReadRequest{{Shard: shard, Version: version(n, shard), Req: req, Deadline: deadline, Waiter: a}})
	return req
}

// put writes and waits for the answer, which must be OK.
func (c *cluster) put(shard base.ShardID, key, value string) wire.Answer {
	c.t.Helper()
	n := c.leader(shard)
	if n == nil {
		c.t.Fatalf("put %s: no leader", key)
	}
	a := newAnswers(c.t)
	o := op(wire.OpPut, shard, key, value)
	o.Version = version(n, shard)
	req := c.write(n, o, a, 0)
	c.until("put "+key, func() bool { _, ok := a.of(req); return ok })
	ans, _ := a.of(req)
	if ans.Code != wire.OK {
		c.t.Fatalf("put %s: %s %s", key, ans.Code, ans.Payload)
	}
	return ans
}

// get reads linearizably at the leader, whoever that is by then.
func (c *cluster) get(shard base.ShardID, key string) (value string, ok bool) {
	c.t.Helper()
	a := newAnswers(c.t)
	var n *testNode
	var req uint64
	c.until("read index", func() bool {
		if ans, done := a.of(req); n == nil || done && ans.Code == wire.NotLeader {
			if n = c.leader(shard); n == nil {
				return false
			}
			req = c.readIndex(n, shard, a, 0)
			c.settle()
		}
		ans, done := a.of(req)
		if done && ans.Code == wire.NotLeader {
			return false
		}
		if done && ans.Code != wire.OK {
			c.t.Fatalf("read index: %s %s", ans.Code, ans.Payload)
		}
		return done
	})
	return c.local(n, shard, key)
}

// local reads what a store has applied.
func (c *cluster) local(n *testNode, shard base.ShardID, key string) (string, bool) {
	c.t.Helper()
	o := op(wire.OpGet, shard, key, "")
	o.Version = version(n, shard)
	var a wire.Answer
	if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &a); err != nil {
		c.t.Fatal(err)
	}
	switch a.Code {
	case wire.OK:
		return string(a.Payload), true
	case wire.NotFound:
		return "", false
	}
	c.t.Fatalf("get %s on %s: %s %s", key, n.id, a.Code, a.Payload)
	return "", false
}

func (c *cluster) mustGet(shard base.ShardID, key, want string) {
	c.t.Helper()
	if got, ok := c.get(shard, key); !ok || got != want {
		c.t.Fatalf("get %s: %q %t, want %q", key, got, ok, want)
	}
}

// everywhere waits until all live stores have applied a value.
func (c *cluster) everywhere(shard base.ShardID, key, want string) {
	c.t.Helper()
	c.until(fmt.Sprintf("%s=%s on all stores", key, want), func() bool {
		all := true
		c.each(func(n *testNode) {
			if n.store.lookup(shard) != nil {
				v, ok := c.local(n, shard, key)
				all = all && ok && v == want
			}
		})
		return all
	})
}

func shardID(i int) base.ShardID { return base.ShardID(i) }
