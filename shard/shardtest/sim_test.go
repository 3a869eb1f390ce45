package shardtest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/liveness"
	"github.com/shardd/shardd/transport/simnet"
)

const tick = 100 * time.Millisecond

// sim is a cluster that moves only when told to. It belongs to the one goroutine of its test.
type sim struct {
	t     testing.TB
	seed  int64
	net   *simnet.Net
	clock clock.Clock
	obs   *observer
	tune  func(*shard.Config)
	nodes []*node // by store id, from 1
	// leases gives the stores that are started from now on Monitors; size is how many there will be.
	leases bool
	size   int
	reqs   []*request
	// atSync is called twice for every synced commit: before the sync has begun and after it, with nothing done between.
	atSync func(n *node, when string)

	trace struct {
		sync.Mutex // raft's own goroutines never trace; the engine's Fatal may
		on         bool
		terse      bool // no messages
		lines      []string
	}
}

// node is one store.
type node struct {
	s       *sim
	id      base.StoreID
	fs      *engine.FS
	eng     *engine.Engine
	store   *shard.Store // nil: down
	life    uint64
	net     *simnet.Node
	monitor *liveness.Monitor              // nil: no leases
	release func()                         // of held syncs, nil if they are not held
	filter  func(m *wire.RaftMessage) bool // false drops what the store sends; may change the message
	fatal   atomic.Pointer[error]          // the engine gave up
	faults  []string                       // replicas that stopped
	commits map[base.ShardID]shard.Status  // as of the last poll
}

// simulate runs f over a new sim in a bubble.
func simulate(t *testing.T, seed int64, stores int, tune func(*shard.Config), f func(s *sim)) {
	t.Helper()
	simulateWith(t, seed, stores, false, tune, f)
}

// simulateWith is simulate, maybe with leases.
func simulateWith(t *testing.T, seed int64, stores int, leases bool, tune func(*shard.Config), f func(s *sim)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, seed, newObserver(t), tune)
		s.leases, s.size = leases, stores
		for range stores {
			s.add(engine.NewMemFS(), 0)
		}
		defer s.stopAll()
		f(s)
		s.lookAll()
	})
}

func newSim(t testing.TB, seed int64, obs *observer, tune func(*shard.Config)) *sim {
	seedRaft(seed)
	return &sim{t: t, seed: seed, net: simnet.New(seed), clock: clock.Process(), obs: obs, tune: tune}
}

// withAndWithoutLeases runs f for both kinds of clusters; with -short for those with leases.
func withAndWithoutLeases(t *testing.T, f func(t *testing.T, leases bool)) {
	if !testing.Short() {
		t.Run("without leases", func(t *testing.T) { f(t, false) })
	}
	t.Run("with leases", func(t *testing.T) { f(t, true) })
}

// fork makes a world of what the stores' disks keep of theirs, when all of them lose power at this moment.
func (s *sim) fork(world int, keep []int) *sim {
	w := newSim(s.t, s.seed+int64(world), s.obs.fork(), s.tune)
	w.leases, w.size = s.leases, s.size
	for i, n := range s.nodes {
		m := &node{s: w, id: n.id, fs: n.fs.CrashClone(keep[i], s.seed+int64(len(s.nodes)*world+i)), life: n.life}
		w.nodes = append(w.nodes, m)
		w.start(m)
	}
	return w
}

// add starts one more store on a file system that has seen so many lives.
func (s *sim) add(fs *engine.FS, lives uint64) *node {
	s.t.Helper()
	n := &node{s: s, id: base.StoreID(len(s.nodes) + 1), fs: fs, life: lives}
	s.nodes = append(s.nodes, n)
	s.start(n)
	return n
}

func (s *sim) node(id base.StoreID) *node { return s.nodes[id-1] }

func (s *sim) logf(format string, args ...any) {
	s.trace.Lock()
	defer s.trace.Unlock()
	if s.trace.on {
		s.trace.lines = append(s.trace.lines, fmt.Sprintf(format, args...))
	}
}

// logMessage is logf for what stores send.
func (s *sim) logMessage(format string, args ...any) {
	if !s.trace.terse {
		s.logf(format, args...)
	}
}

// takeTrace returns what has happened since the last call.
func (s *sim) takeTrace() string {
	s.trace.Lock()
	defer s.trace.Unlock()
	out := strings.Join(s.trace.lines, "\n")
	s.trace.lines = nil
	return out
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start boots a store on what its file system holds.
func (s *sim) start(n *node) {
	s.t.Helper()
	n.fatal.Store(nil)
	eng, err := engine.Open(engine.Options{
		Dir: "data", FS: n.fs, ProbeInterval: -1,
		Fatal: func(err error) { n.fatal.Store(&err); s.logf("%s stops: the disk failed", n.id) },
	})
	if err != nil {
		s.t.Fatalf("store %s (seed %d): %v", n.id, s.seed, err)
	}
	n.eng = eng
	n.life++
	logs, err := readLogs(eng)
	if err != nil {
		s.t.Fatalf("store %s (seed %d): %v", n.id, s.seed, err)
	}
	s.obs.forget(n.id, func(id base.ShardID) bool {
		m, ok, err := eng.Mark(id)
		if err != nil {
			s.t.Fatal(err)
		}
		return ok && m.ReplicaID == 0
	})
	s.obs.boots(n.id, logs)
	cfg := shard.Config{
		Store: n.id, Incarnation: n.life, Engine: eng, Sender: n, Clock: s.clock, Workers: 1, ApplyWorkers: 1,
		Logger: quiet(),
		OnLeader: func(id base.ShardID, leader base.StoreID, term uint64) {
			s.logf("%s sees %s lead %s in term %d", n.id, leader, id, term)
			s.obs.leads(id, leader, term)
		},
		Fault: func(id base.ShardID, r base.ReplicaID, reason string) {
			reason, _, _ = strings.Cut(reason, "\n")
			n.faults = append(n.faults, reason)
			s.logf("%s faults: %s", base.ReplicaName(id, r), reason)
		},
	}
	if s.leases {
		n.monitor = newMonitor(n.id, n.life, s.clock, s.size, func() *shard.Store { return n.store },
			func(to base.StoreID, payload []byte) { n.net.SendLiveness(to, payload) })
		cfg.Liveness = n.monitor
	}
	if s.tune != nil {
		s.tune(&cfg)
	}
	if n.store, err = shard.New(cfg); err != nil {
		s.t.Fatalf("store %s (seed %d): %v", n.id, s.seed, err)
	}
	time.Sleep(time.Millisecond) // the engine's clock starts with it, and an age of 0 means none
	n.net = s.net.Node(n.id, n.store)
	n.net.SetIncarnation(n.life)
	n.commits = map[base.ShardID]shard.Status{}
}

// Send implements shard.Sender: what leaves the store is observed, traced, and given to the network.
func (n *node) Send(to base.StoreID, msgs []wire.RaftMessage) {
	for i := range msgs {
		m := msgs[i]
		if n.filter != nil && !n.filter(&m) {
			n.s.logMessage("%s withheld", describe(&m))
			continue
		}
		n.s.obs.sent(&m, func() (logEnd, error) { return n.end(m.Shard) })
		early := ""
		if n.release != nil {
			early = " (disk held)"
		}
		n.s.logMessage("%s%s", describe(&m), early)
		n.net.Send(to, []wire.RaftMessage{m})
	}
}

// end reads where a replica's log ends.
func (n *node) end(id base.ShardID) (logEnd, error) {
	logs, err := readLogs(n.eng)
	if err != nil {
		return logEnd{}, err
	}
	return logs[id].end()
}

// stop ends a store in order.
func (s *sim) stop(n *node) {
	if n.store == nil {
		return
	}
	s.net.Crash(n.id)
	n.free()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.store.Run(ended); err != nil { // answers what waits, and nothing else
		s.t.Error(err)
	}
	if err := n.eng.Close(); err != nil && n.fatal.Load() == nil {
		s.t.Error(err)
	}
	n.store, n.eng, n.filter = nil, nil, nil
	s.reap()
}

// crash cuts a store's power: a share of what was not synced stays.
func (s *sim) crash(n *node, keepPercent int) {
	fs := n.fs.CrashClone(keepPercent, s.seed)
	s.stop(n)
	n.fs = fs
}

func (s *sim) stopAll() {
	for _, n := range s.nodes {
		s.stop(n)
	}
}

// hold makes the store's syncs wait until free.
func (n *node) hold() {
	if n.release == nil {
		synctest.Wait()
		n.release = n.fs.HoldSyncs()
	}
}

func (n *node) free() {
	if n.release != nil {
		n.release()
		n.release = nil
		synctest.Wait()
	}
}

// poll gives a store one pass and lets the disk finish what it may.
func (s *sim) poll(n *node) (worked bool) {
	if n.store == nil {
		return false
	}
	watch := s.atSync != nil && n.release == nil
	if watch {
		n.hold()
	}
	worked = n.store.Poll()
	synctest.Wait()
	s.reap()
	if worked {
		s.checkCommits(n)
	}
	if watch {
		boundary := n.eng.SyncAge() > 0
		if boundary {
			s.atSync(n, "before the sync")
		}
		n.free()
		if boundary && s.atSync != nil {
			s.atSync(n, "after the sync")
		}
	}
	return worked
}

// checkCommits checks that a leader raises its commit index only to entries of its own term (section 5.4.2, figure 8).
func (s *sim) checkCommits(n *node) {
	for _, sum := range n.store.Summaries() {
		id := sum.Desc.Shard
		st, ok := n.store.Status(id)
		was, seen := n.commits[id]
		n.commits[id] = st
		if !ok || !seen || !st.Leads || !was.Leads || was.Term != st.Term || was.Commit == st.Commit {
			continue
		}
		logs, err := readLogs(n.eng)
		if err != nil {
			s.t.Fatal(err)
		}
		term, err := logs[id].log.Term(st.Commit)
		if err != nil {
			s.t.Fatal(err)
		}
		if term != st.Term {
			s.t.Errorf("%s leads %s in term %d and commits up to %d, an entry of term %d (seed %d)",
				n.id, id, st.Term, st.Commit, term, s.seed)
		}
	}
}

// live returns the running stores.
func (s *sim) live() []*node {
	return slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool { return n.store == nil })
}

// drainStores lets the stores work until only a message, a tick or a disk could give them more.
func (s *sim) drainStores() {
	for worked := true; worked; {
		worked = false
		for _, n := range s.live() {
			worked = s.poll(n) || worked
		}
	}
}

// settle moves everything until only a tick or a held disk could.
func (s *sim) settle() {
	for {
		s.drainStores()
		if !s.net.Step() {
			return
		}
	}
}

// tick moves the clock, and raft's clocks of the given stores, all by default.
func (s *sim) tick(nodes ...*node) {
	if len(nodes) == 0 {
		nodes = s.live()
	}
	time.Sleep(tick)
	s.beat(nodes)
	for _, n := range nodes {
		if n.store != nil {
			n.store.TickAll()
		}
	}
	s.settle()
}

// beat lets the stores' Monitors say what they have to say, and answer each other.
func (s *sim) beat(nodes []*node) {
	for range 3 {
		for _, n := range nodes {
			if n.store != nil && n.monitor != nil {
				n.monitor.Tick(s.clock.Boot())
			}
		}
		for s.leases && s.net.Step() {
		}
	}
}

// until ticks until cond holds.
func (s *sim) until(what string, cond func() bool) {
	s.t.Helper()
	s.settle()
	for range 300 {
		if cond() {
			return
		}
		s.tick()
	}
	s.t.Fatalf("not within 300 ticks: %s (seed %d)", what, s.seed)
}

// lookAll checks the logs of all running stores.
func (s *sim) lookAll() {
	s.t.Helper()
	for _, n := range s.live() {
		logs, err := readLogs(n.eng)
		if err != nil {
			s.t.Fatalf("store %s: %v", n.id, err)
		}
		for _, id := range shardsOf(logs) {
			st, _ := n.store.Status(id)
			s.obs.look(n.id, logs[id], st.Term, st.Leads)
		}
		if len(n.faults) > 0 {
			s.t.Errorf("store %s: %v (seed %d)", n.id, n.faults, s.seed)
		}
	}
}

func shardsOf(logs map[base.ShardID]*diskLog) []base.ShardID {
	var out []base.ShardID
	for id := range logs {
		out = append(out, id)
	}
	slices.SortFunc(out, cmp.Compare[base.ShardID])
	return out
}

// desc is a descriptor over [start, end) of user keys with one voter per store, replica ids from 1.
func desc(id base.ShardID, start, end string, stores ...base.StoreID) *base.Descriptor {
	d := &base.Descriptor{
		Shard: id, Start: base.UserKey([]byte(start)), End: base.UserEnd(),
		Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: base.ReplicaID(len(stores) + 1),
	}
	if end != "" {
		d.End = base.UserKey([]byte(end))
	}
	for i, st := range stores {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: st, Role: base.RoleVoter})
	}
	return d
}

// create makes a shard on its stores; with campaign the first one stands for election and leads.
func (s *sim) create(d *base.Descriptor, campaign bool) {
	s.t.Helper()
	for i, r := range d.Replicas {
		if err := s.node(r.Store).store.Create(d, nil, campaign && i == 0); err != nil {
			s.t.Fatal(err)
		}
	}
	if campaign {
		s.until("a leader of "+d.Shard.String(), func() bool { return s.leader(d.Shard) != nil })
	}
}

// leader returns the store that leads a shard in the highest term and that a majority of the running replicas follow.
func (s *sim) leader(id base.ShardID) *node {
	var best *node
	var term uint64
	replicas, follow := 0, 0
	for _, n := range s.live() {
		if st, ok := n.store.Status(id); ok && st.Leads && st.Term >= term {
			best, term = n, st.Term
		}
	}
	if best == nil {
		return nil
	}
	for _, n := range s.live() {
		if st, ok := n.store.Status(id); ok {
			if replicas++; st.Leader == best.id && st.Term == term {
				follow++
			}
		}
	}
	if follow*2 <= replicas {
		return nil
	}
	return best
}

// campaign makes a replica stand for election at once, as the leader's order to take over does.
func (s *sim) campaign(n *node, id base.ShardID) {
	st, _ := n.store.Status(id)
	from := st.Desc.Replicas[0]
	for _, r := range st.Desc.Replicas {
		if r.Store != n.id {
			from = r
		}
	}
	n.store.Step([]wire.RaftMessage{{
		Shard: id, From: from.Replica, To: st.Replica, FromStore: from.Store, ToStore: n.id, Msg: raftpb.Message{
			Type: raftpb.MsgTimeoutNow, From: uint64(from.Replica), To: uint64(st.Replica), Term: st.Term,
		},
	}})
}
